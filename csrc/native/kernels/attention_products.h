// The products inside attention: c[m, lanes] (+)= a[m, k] b[k, lanes], lanes lying side by side in registers.
//
// Elements E are float32, or bfloat16 in pairs along k as vdpbf16ps and tdpbf16ps want them: a "unit" is one
// float or one pair.  a is read where it lies, by rows or by columns (float32), a unit at a time for all
// lanes; with tiles (AMX) whole tiles are read: 16 rows, 16 units.
#pragma once
#include "kernels/attention_math.h"
#include "kernels/tiles.h"

namespace nn::NN_LEVEL {

template <class E>
struct Left {  // unit k of row i: data[i * row + k * step]
    const E* data;
    int64_t row, step;
};

template <class E>
struct Shape;  // of blocks: registers of queries, keys, units that a product over k is padded to

template <>
struct Shape<float> {
    using Word = float;  // a unit as the right operand holds it
    static constexpr int vecs = 3, keys = 64, elements = 1, whole = 1;
};

#if defined(__AMX_BF16__)
template <>
struct Shape<bf16> {
    using Word = uint32_t;
    static constexpr int vecs = 4, keys = 64, elements = 2, whole = 16;
};
#else
template <>
struct Shape<bf16> {
    using Word = uint32_t;
    static constexpr int vecs = 3, keys = 64, elements = 2, whole = 1;
};
#endif

// Units of `count` elements along k, padded.
template <class E>
static inline int64_t units(int64_t count) {
    constexpr int64_t one = Shape<E>::elements * Shape<E>::whole;
    return (count + one - 1) / one * Shape<E>::whole;
}

constexpr int rows_at_once = width == 16 ? 8 : 4;

static inline Vec multiply_add(Vec sum, const float* a, Vec b) { return sum + *a * b; }
static inline Vec multiply_add(Vec sum, const bf16* a, Bits b) {
    uint32_t both;
    memcpy(&both, a, sizeof both);
    return dot2(sum, Bits{} + both, b);
}

static inline Vec load_word(const float* p) { return load(p); }
static inline Bits load_word(const uint32_t* p) {
    Bits x;
    memcpy(&x, p, sizeof x);
    return x;
}

// rows_at_once rows of c by `nv` registers; rows from `count` on are computed as the last one's and dropped.
// A function of its own, so that what surrounds it takes none of the registers.
template <int nv, class E, class Word>
__attribute__((noinline)) static void row_block(float* c, int64_t ldc, const Left<E>& a, int64_t count,
                                                const Word* b, int64_t ldb, int64_t k, bool add) {
    const E* row[rows_at_once];
    Vec sums[rows_at_once][nv];
#pragma GCC unroll 8
    for (int i = 0; i < rows_at_once; ++i) {
        const int64_t at = i < count ? i : count - 1;
        row[i] = a.data + at * a.row;
#pragma GCC unroll 3
        for (int v = 0; v < nv; ++v) sums[i][v] = add ? load(c + at * ldc + v * width) : Vec{};
    }
    const int64_t step = a.step * Shape<E>::elements;
    for (int64_t u = 0, at = 0; u < k; ++u, at += step, b += ldb) {
        decltype(load_word(b)) right[nv];
#pragma GCC unroll 3
        for (int v = 0; v < nv; ++v) right[v] = load_word(b + v * width);
#pragma GCC unroll 8
        for (int i = 0; i < rows_at_once; ++i)
#pragma GCC unroll 3
            for (int v = 0; v < nv; ++v) sums[i][v] = multiply_add(sums[i][v], row[i] + at, right[v]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows_at_once; ++i)
        if (i < count)
#pragma GCC unroll 3
            for (int v = 0; v < nv; ++v) store(c + i * ldc + v * width, sums[i][v]);
}

template <int nv, class E, class Word>
static inline void columns_block(float* c, int64_t ldc, const Left<E>& a, int64_t m, const Word* b,
                                 int64_t ldb, int64_t k, bool add) {
    for (int64_t i = 0; i < m; i += rows_at_once)
        row_block<nv>(c + i * ldc, ldc, Left<E>{a.data + i * a.row, a.row, a.step}, m - i, b, ldb, k, add);
}

template <class E, class Word>
static inline void product_by_registers(float* c, int64_t ldc, const Left<E>& a, const Word* b, int64_t ldb,
                                        int64_t m, int64_t vecs, int64_t k, bool add) {
    for (int64_t v = 0; v < vecs;) {
        const int64_t left = vecs - v;
        if (left == 3 || left > 4) {
            columns_block<3>(c + v * width, ldc, a, m, b + v * width, ldb, k, add);
            v += 3;
        } else if (left != 1) {
            columns_block<2>(c + v * width, ldc, a, m, b + v * width, ldb, k, add);
            v += 2;
        } else {
            columns_block<1>(c + v * width, ldc, a, m, b + v * width, ldb, k, add);
            v += 1;
        }
    }
}

#if defined(__AMX_BF16__)
using AttentionTiles = Tiles;

// `mi` by `nj` tiles of 16 rows and 16 lanes
template <int mi, int nj>
static inline void tile_block(float* c, int64_t ldc, const bf16* a, int64_t lda, const uint32_t* b,
                              int64_t ldb, int64_t k, bool add) {
    float* const below = c + 16 * ldc;
    if (add) {
        _tile_loadd(0, c, ldc * 4);
        if (nj > 1) _tile_loadd(1, c + 16, ldc * 4);
        if (mi > 1) _tile_loadd(2, below, ldc * 4);
        if (mi > 1 && nj > 1) _tile_loadd(3, below + 16, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t u = 0; u < k; u += 16, a += 32, b += 16 * ldb) {
        _tile_loadd(4, a, lda * 2);
        _tile_loadd(6, b, ldb * 4);
        _tile_dpbf16ps(0, 4, 6);
        if (nj > 1) {
            _tile_loadd(7, b + 16, ldb * 4);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (mi > 1) {
            _tile_loadd(5, a + 16 * lda, lda * 2);
            _tile_dpbf16ps(2, 5, 6);
            if (nj > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, ldc * 4);
    if (nj > 1) _tile_stored(1, c + 16, ldc * 4);
    if (mi > 1) _tile_stored(2, below, ldc * 4);
    if (mi > 1 && nj > 1) _tile_stored(3, below + 16, ldc * 4);
}

static inline void product(float* c, int64_t ldc, const Left<bf16>& a, const uint32_t* b, int64_t ldb,
                           int64_t m, int64_t vecs, int64_t k, bool add) {
    for (int64_t v = 0; v < vecs; v += 2)
        for (int64_t i = 0; i < m; i += 32) {
            float* const to = c + i * ldc + v * 16;
            const bf16* const from = a.data + i * a.row;
            const uint32_t* const right = b + v * 16;
            if (m - i > 16 && vecs - v > 1)
                tile_block<2, 2>(to, ldc, from, a.row, right, ldb, k, add);
            else if (m - i > 16)
                tile_block<2, 1>(to, ldc, from, a.row, right, ldb, k, add);
            else if (vecs - v > 1)
                tile_block<1, 2>(to, ldc, from, a.row, right, ldb, k, add);
            else
                tile_block<1, 1>(to, ldc, from, a.row, right, ldb, k, add);
        }
}
#else
struct AttentionTiles {
    ~AttentionTiles() {}  // not trivial: no warning of an unused variable
};
static inline void product(float* c, int64_t ldc, const Left<bf16>& a, const uint32_t* b, int64_t ldb,
                           int64_t m, int64_t vecs, int64_t k, bool add) {
    product_by_registers(c, ldc, a, b, ldb, m, vecs, k, add);
}
#endif

// m rows of c (with tiles: rounded up to 16, in a and c alike), `vecs` registers of lanes, k units
static inline void product(float* c, int64_t ldc, const Left<float>& a, const float* b, int64_t ldb,
                           int64_t m, int64_t vecs, int64_t k, bool add) {
    product_by_registers(c, ldc, a, b, ldb, m, vecs, k, add);
}

}  // namespace nn::NN_LEVEL
