// bfloat16 matrix product with float32 sums: both operands packed, one micro-kernel.
//
// Elements lie in pairs along k, as vdpbf16ps (AVX-512-BF16), tdpbf16ps (AMX) and bfdot (Arm) want them; the
// other levels take a pair apart with a shift and a mask and use two multiply-adds.
//     a: panels of mr rows, [k/2][mr][2] (AMX: [k/32][mr][32])    b: panels of nr columns, [k/2][nr][2]
// padded with zeros.  The micro-kernel keeps mr x nr sums in registers over the whole of k.  Every sum is
// formed in the order of k: an element does not depend on the tile it lies in, nor on the other rows.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

#if defined(__AMX_BF16__)
constexpr int mr = 32, nv = 2,
              pair_step = 16;  // two by two tiles of 16 x 16 sums, 32 elements of k at a time
#elif defined(__AVX512F__)
constexpr int mr = 12, nv = 2, pair_step = 1;  // 24 sums + 4 halves of b + 2 of a, in 32 registers
#elif defined(__aarch64__)
constexpr int mr = 8, nv = 2, pair_step = 1;
#else
constexpr int mr = 4, nv = 2, pair_step = 1;  // 8 + 4 + 2 in 16
#endif
constexpr int nr = nv * width;

static inline int64_t padded_pairs(int64_t k) {
    return ((k + 1) / 2 + pair_step - 1) / pair_step * pair_step;
}

#if defined(__AMX_BF16__)
// Once per thread and loop; what is in tiles is lost when they are released, which the system wants.
struct Tiles {
    Tiles() {
        alignas(64) uint8_t shape[64] = {1};  // palette 1: 8 tiles of 16 rows of 64 bytes
        for (int t = 0; t < 8; ++t) shape[16 + 2 * t] = 64, shape[48 + t] = 16;
        _tile_loadconfig(shape);
    }
    ~Tiles() { _tile_release(); }
};

static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < pairs; k += 16, a += 16 * mr, b += 16 * nr) {
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + 16 * 16, 64);
        _tile_loadd(6, b, nr * 4);
        _tile_loadd(7, b + 16, nr * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, &sums[0][0], sizeof sums[0]);
    _tile_stored(1, &sums[0][1], sizeof sums[0]);
    _tile_stored(2, &sums[16][0], sizeof sums[0]);
    _tile_stored(3, &sums[16][1], sizeof sums[0]);
}
static inline int64_t place_in_a(int64_t pair, int64_t i) { return pair / 16 * 16 * mr + i * 16 + pair % 16; }
#else
struct Tiles {
    ~Tiles() {}  // not trivial: no warning of an unused variable
};

// sums[mr][nr] of one panel of a and one of b, over `pairs` pairs
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs) {
    for (int i = 0; i < mr; ++i)
        for (int v = 0; v < nv; ++v) sums[i][v] = Vec{};
    for (int64_t k = 0; k < pairs; ++k, a += mr, b += nr) {
        Bits column[nv];
        for (int v = 0; v < nv; ++v) memcpy(&column[v], b + v * width, sizeof(Bits));
#pragma GCC unroll 12
        for (int i = 0; i < mr; ++i) {
            const Bits row = Bits{} + a[i];
#pragma GCC unroll 2
            for (int v = 0; v < nv; ++v) sums[i][v] = dot2(sums[i][v], row, column[v]);
        }
    }
}
static inline int64_t place_in_a(int64_t pair, int64_t i) { return pair * mr + i; }
#endif
static inline int64_t place_in_b(int64_t pair, int64_t j) { return pair * nr + j; }

struct Operand {  // element (i, k) of a, or (j, k) of b: k is the axis of the sum
    const bf16* data;
    int64_t outer, inner;  // strides along i or j, and along k
};

static inline int64_t panels(int64_t count, int size) { return (count + size - 1) / size; }

static inline uint32_t pair_at(const Operand& from, const bf16* row, int64_t pair) {
    uint32_t both;
    const bf16* const p = row + 2 * pair * from.inner;
    if (from.inner == 1)
        memcpy(&both, p, sizeof both);
    else
        both = (uint32_t)p[0].bits | (uint32_t)p[from.inner].bits << 16;
    return both;
}

// One panel: `size` rows of the operand from row `first`, `count` of which there are.
template <int size, class Place>
static inline void pack_panel(uint32_t* to, const Operand& from, int64_t first, int64_t count, int64_t k,
                              const Place& place, int64_t done = 0) {
    const int64_t pairs = padded_pairs(k), here = count - first < size ? count - first : size;
    constexpr int64_t step = 64;  // pairs at a time, so that what is written stays in the first cache
    for (int64_t start = done; start < pairs; start += step) {
        const int64_t end = start + step < pairs ? start + step : pairs, whole = end < k / 2 ? end : k / 2;
        int64_t packed = start;  // pairs of all rows
        if (from.outer == 1)     // rows lie side by side: read along them
            for (; packed < whole; ++packed)
                for (int64_t i = 0; i < here; ++i)
                    to[place(packed, i)] = pair_at(from, from.data + first + i, packed);
        for (int64_t i = 0; i < size; ++i) {
            int64_t pair = i < here ? packed : start;
            if (i < here) {
                const bf16* const row = from.data + (first + i) * from.outer;
                if (from.inner == 1)
                    for (; pair < whole; ++pair) to[place(pair, i)] = pair_at({nullptr, 0, 1}, row, pair);
                else
                    for (; pair < whole; ++pair) to[place(pair, i)] = pair_at(from, row, pair);
                if (k % 2 && pair == k / 2 && pair < end)
                    to[place(pair++, i)] = row[(k - 1) * from.inner].bits;
            }
            for (; pair < end; ++pair) to[place(pair, i)] = 0;
        }
    }
}

static inline Bits halves(Short low, Short high) {
    return __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
}

static inline Short load_short(const bf16* p) {
    Short x;
    memcpy(&x, p, sizeof x);
    return x;
}

// A whole panel of b, a register at a time; from the first pair that it leaves on, pack_panel does the rest.
static inline int64_t pack_registers(uint32_t* to, const Operand& from, int64_t first, int64_t k) {
    int64_t pair = 0;
    if (from.outer == 1) {
        for (; pair < k / 2; ++pair)
            for (int v = 0; v < nv; ++v) {
                const bf16* const p = from.data + first + v * width + 2 * pair * from.inner;
                const Bits both = halves(load_short(p), load_short(p + from.inner));
                memcpy(to + pair * nr + v * width, &both, sizeof both);
            }
    } else if (from.inner == 1) {
        for (; pair + width <= k / 2; pair += width)
            for (int v = 0; v < nv; ++v) {
                Bits rows_here[width];
                for (int i = 0; i < width; ++i)
                    memcpy(&rows_here[i], from.data + (first + v * width + i) * from.outer + 2 * pair,
                           sizeof(Bits));
                transpose(rows_here);
                for (int i = 0; i < width; ++i)
                    memcpy(to + (pair + i) * nr + v * width, &rows_here[i], sizeof(Bits));
            }
    }
    return pair;
}

template <int size, class Place>
static inline void pack(uint32_t* to, const Operand& from, int64_t count, int64_t k, const Place& place,
                        bool registers_do) {
    const int64_t pairs = padded_pairs(k);
    parallel_for(panels(count, size), (double)(size * pairs) * 12, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            uint32_t* const panel = to + p * size * pairs;
            const bool by_registers = registers_do && (p + 1) * size <= count;
            const int64_t done = by_registers ? pack_registers(panel, from, p * size, k) : 0;
            pack_panel<size>(panel, from, p * size, count, k, place, done);
        }
    });
}

template <class Out>
static inline void write_tile(Out* c, int64_t ldc, const Vec (&sums)[mr][nv], int64_t rows_here,
                              int64_t cols_here, const bf16* bias, bool add) {
    for (int64_t i = 0; i < rows_here; ++i)
        for (int v = 0; v < nv; ++v) {
            const int64_t left = cols_here - v * width;
            if (left <= 0) continue;
            Vec y = sums[i][v];
            Out* const to = c + i * ldc + v * width;
            if (left >= width) {
                if (add) y += load(to);
                if (bias) y += load(bias + v * width);
                store(to, y);
            } else {
                if (add) y += load(to, left);
                if (bias) y += load(bias + v * width, left);
                store(to, y, left);
            }
        }
}

// c[m,n] = a bT (+ bias[n]) (+ c) with a[m,k], b[n,k] as Operand has them.
template <class Out>
static inline void gemm_bf16(Out* c, int64_t ldc, const Operand& a, const Operand& b, int64_t m, int64_t n,
                             int64_t k, const bf16* bias = nullptr, bool add = false) {
    const int64_t pairs = padded_pairs(k), row_panels = panels(m, mr), col_panels = panels(n, nr);
    if (m == 0 || n == 0) return;
    const Scratch<uint32_t> packed_a(row_panels * mr * pairs), packed_b(col_panels * nr * pairs);
    pack<mr>(packed_a.data, a, m, k, place_in_a, false);
    pack<nr>(packed_b.data, b, n, k, place_in_b, true);
    // tiles of 8 x 8 panels: a's stay in the second cache, a panel of b in the first while 8 of a pass by
    constexpr int64_t side = 8;
    const int64_t across = panels(col_panels, side), tiles = panels(row_panels, side) * across;
    parallel_for(tiles, (double)(side * side * mr * nr) * (double)k / 8, [&](int64_t begin, int64_t end) {
        const Tiles tiles_of_this_thread;
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t top = tile / across * side, left = tile % across * side;
            for (int64_t q = left; q < left + side && q < col_panels; ++q)
                for (int64_t p = top; p < top + side && p < row_panels; ++p) {
                    Vec sums[mr][nv];
                    micro_kernel(sums, packed_a + p * mr * pairs, packed_b + q * nr * pairs, pairs);
                    const int64_t rows_here = m - p * mr < mr ? m - p * mr : mr;
                    write_tile(c + p * mr * ldc + q * nr, ldc, sums, rows_here, n - q * nr,
                               bias ? bias + q * nr : bias, add);
                }
        }
    });
}

}  // namespace nn::NN_LEVEL
