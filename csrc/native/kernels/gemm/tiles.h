// Panels for the tile unit (AMX), and the micro-kernels on them: 32 x 32 sums in four tiles of 16 x 16.
//
// A step is 32 elements of k: one row of a tile of a, 16 pairs in 16 rows of a tile of b.
//     a: [k/32][part][32 rows][16 pairs]      b: [k/32][part][16 pairs][32 columns]      padded with zeros
// Elements are read 16 rows (or columns) x 32 at a time into 16 registers of pairs: rows where k is
// contiguous, columns where it is not; if the panel wants the other, a transposition of 16 x 16 pairs follows.
//
// bfloat16 has one part.  float32 has three, x = x1 + x2 + x3 exactly (8 + 8 + 8 bits): the six products that
// matter, added in float32, have float32's accuracy (csrc/native/README.md has the analysis).
#pragma once
#include "kernels/gemm/operand.h"
#include "kernels/tiles.h"

namespace nn::NN_LEVEL {

constexpr int mr = 32, nv = 2, nr = 32;
constexpr int pair_step = 16;  // pairs that a step of the micro-kernel takes
constexpr bool either_side = true;  // sums of exchanged operands may be transposed: mr = nr = nv * width
template <class T>
constexpr int parts = 1;
template <>
constexpr int parts<float> = 3;
template <class T>
constexpr double rate = parts<T> == 1 ? 64 : 10;  // multiplications in the time of moving a byte

// ---- packing ----

static inline uint32_t first_bits(int64_t n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1; }

struct Block {  // 16 rows x 32 elements of an operand
    int64_t first, rows, k, left;  // from where, and how many there are
};

// The parts of 32 floats of which element i is paired with element 16 + i.
static inline void split(Bits (&part)[3], Vec low, Vec high) {
    for (int p = 0; p < 3; ++p) {
        const Bits l = (bits_of(low) + 0x8000) & 0xffff0000u, h = (bits_of(high) + 0x8000) & 0xffff0000u;
        part[p] = l >> 16 | h;
        low -= float_of(l);
        high -= float_of(h);
    }
}

static inline Bits magnitude(Bits a, Vec x) {
    return (Bits)_mm512_max_epu32((__m512i)a, (__m512i)(bits_of(x) & 0x7fffffff));
}

// seen[i]: magnitudes of row i (k contiguous), or in lane i of seen[0]
static inline void load_block(Bits (&to)[3][16], const Operand<float>& from, const Block& at,
                              Bits* seen) {
    for (int i = 0; i < 16; ++i) {
        Vec low, high;
        if (from.inner == 1) {
            const uint32_t mask = i < at.rows ? first_bits(at.left) : 0;
            const float* const p = from.row(at.first + (mask ? i : 0)) + at.k;
            low = (Vec)_mm512_maskz_loadu_ps((__mmask16)mask, p);
            high = (Vec)_mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + 16);
        } else {
            const __mmask16 mask = (__mmask16)first_bits(at.rows);
            const float* const p = from.data + at.first + (at.k + i) * from.inner;
            low = (Vec)_mm512_maskz_loadu_ps(i < at.left ? mask : 0, p);
            high = (Vec)_mm512_maskz_loadu_ps(i + 16 < at.left ? mask : 0, p + 16 * from.inner);
        }
        Bits& most = seen[from.inner == 1 ? i : 0];
        most = magnitude(magnitude(most, low), high);
        Bits three[3];
        split(three, low, high);
        for (int p = 0; p < 3; ++p) to[p][i] = three[p];
    }
}

static inline void load_block(Bits (&to)[1][16], const Operand<bf16>& from, const Block& at, Bits*) {
    for (int i = 0; i < 16; ++i) {
        if (from.inner == 1) {
            const uint32_t mask = i < at.rows ? first_bits(at.left) : 0;
            const bf16* const p = from.row(at.first + (mask ? i : 0)) + at.k;
            to[0][i] = (Bits)_mm512_maskz_loadu_epi16(mask, p);
        } else {
            const __mmask16 mask = (__mmask16)first_bits(at.rows);
            const bf16* const p = from.data + at.first + (at.k + 2 * i) * from.inner;
            const __m256i low = _mm256_maskz_loadu_epi16(2 * i < at.left ? mask : 0, p),
                          high = _mm256_maskz_loadu_epi16(2 * i + 1 < at.left ? mask : 0, p + from.inner);
            to[0][i] = (Bits)_mm512_cvtepu16_epi32(low) | (Bits)_mm512_cvtepu16_epi32(high) << 16;
        }
    }
}

static inline uint32_t largest_bits(Bits x) { return _mm512_reduce_max_epu32((__m512i)x); }

// One step of 16 of a panel's 32 rows: all parts.
template <bool is_a, class T>
static inline void pack_block(uint32_t* to, const Operand<T>& from, const Block& at, Bits* seen) {
    Bits found[parts<T>][16];
    load_block(found, from, at, seen);
    for (int p = 0; p < parts<T>; ++p) {
        if (is_a != (from.inner == 1)) transpose(found[p]);
        for (int i = 0; i < 16; ++i)
            memcpy(to + p * 16 * 32 + i * (is_a ? 16 : 32), &found[p][i], sizeof(Bits));
    }
}

static inline Block half_panel(int64_t first, int64_t count, int64_t k, int64_t half) {
    const int64_t left = count - first - half * 16;
    return {first + half * 16, left < 0 ? 0 : left < 16 ? left : 16, 0, k};
}

// One panel of 32 rows (of a: `is_a`; of b otherwise) from row `first`, `count` of which there are.
template <bool is_a, class T>
static inline Range pack_panel(uint32_t* to, const Operand<T>& from, int64_t first, int64_t count,
                               int64_t k) {
    Range range;
    for (int half = 0; half < 2; ++half) {
        Bits seen[16] = {};
        uint32_t* out = to + half * (is_a ? 16 * 16 : 16);
        for (Block at = half_panel(first, count, k, half); at.left > 0; at.k += 32, at.left -= 32) {
            pack_block<is_a>(out, from, at, seen);
            out += parts<T> * 16 * 32;
        }
        if (parts<T> == 1) continue;
        for (int i = 0; i < 16; ++i)
            range.add(from.inner == 1 ? largest_bits(seen[i]) : (uint32_t)seen[0][i]);
    }
    return range;
}

// Several panels, `words` apart.  Where k is not contiguous all of them take a step together: what they read
// lies side by side.
template <bool is_a, class T>
static inline Range pack_panels(uint32_t* to, int64_t words, const Operand<T>& from, int64_t first,
                                int64_t count, int64_t number, int64_t k) {
    constexpr int64_t together = 16;
    Range range;
    if (from.inner == 1) {
        for (int64_t q = 0; q < number; ++q)
            range.add(pack_panel<is_a>(to + q * words, from, first + q * 32, count, k));
        return range;
    }
    for (int64_t q = 0; q < number; q += together) {
        const int64_t halves = 2 * (number - q < together ? number - q : together);
        Bits seen[2 * together] = {};
        for (int64_t step = 0; step < panels(k, 32); ++step)
            for (int64_t h = 0; h < halves; ++h) {
                Block at = half_panel(first + q * 32, count, k - step * 32, h);
                at.k = step * 32;
                uint32_t* const panel = to + (q + h / 2) * words + step * parts<T> * 16 * 32;
                pack_block<is_a>(panel + h % 2 * (is_a ? 16 * 16 : 16), from, at, seen + h);
            }
        for (int64_t h = 0; parts<T> > 1 && h < halves; ++h)
            for (int i = 0; i < 16; ++i) range.add((uint32_t)seen[h][i]);
    }
    return range;
}

// ---- micro-kernels: sums[32][32] (+)= a panel of a times one of b, over `pairs` pairs ----

static inline void begin_sums(const Vec (&sums)[mr][nv], bool add) {
    if (!add) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, &sums[0][0], sizeof sums[0]);
        _tile_loadd(1, &sums[0][1], sizeof sums[0]);
        _tile_loadd(2, &sums[16][0], sizeof sums[0]);
        _tile_loadd(3, &sums[16][1], sizeof sums[0]);
    }
}

static inline void end_sums(Vec (&sums)[mr][nv]) {
    _tile_stored(0, &sums[0][0], sizeof sums[0]);
    _tile_stored(1, &sums[0][1], sizeof sums[0]);
    _tile_stored(2, &sums[16][0], sizeof sums[0]);
    _tile_stored(3, &sums[16][1], sizeof sums[0]);
}

// Some lines of both panels, fetched between two multiplications: a tile load that waits for the second cache
// keeps the tile unit waiting, too (all that a later step takes: 1.6 times as fast; in one go: no gain).
template <int lines>
static inline void fetch(const uint32_t* a, const uint32_t* b, int64_t first) {
#pragma GCC unroll 8
    for (int i = 0; i < lines; ++i) {
        __builtin_prefetch(a + (first + i) * 16);
        __builtin_prefetch(b + (first + i) * 16);
    }
}

#define NN_TILES_A(p)               \
    _tile_loadd(4, a + (p) * 512, 64); \
    _tile_loadd(5, a + (p) * 512 + 256, 64);
#define NN_TILES_B(p)                 \
    _tile_loadd(6, b + (p) * 512, 128); \
    _tile_loadd(7, b + (p) * 512 + 16, 128);
#define NN_TILES_MULTIPLY(at, lines)    \
    _tile_dpbf16ps(0, 4, 6);            \
    fetch<lines>(a, b, at);             \
    _tile_dpbf16ps(1, 4, 7);            \
    fetch<lines>(a, b, at + lines);     \
    _tile_dpbf16ps(2, 5, 6);            \
    fetch<lines>(a, b, at + 2 * lines); \
    _tile_dpbf16ps(3, 5, 7);            \
    fetch<lines>(a, b, at + 3 * lines);

struct Nothing {
    void begin(int64_t) const {}
    void some() const {}
    void end() const {}
};

// `meanwhile`: what other units do, step by step, while the tile unit works: they write the sums of the tile
// before.
template <class T, class Meanwhile>
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs,
                                bool add, Meanwhile&& meanwhile) {
    begin_sums(sums, add);
    meanwhile.begin(panels(pairs, pair_step));
    for (int64_t k = 0; k < pairs; k += 16, a += parts<T> * 512, b += parts<T> * 512) {
        if constexpr (parts<T> == 1) {
            NN_TILES_A(0) NN_TILES_B(0) NN_TILES_MULTIPLY(64, 8)
        } else {  // smallest first, and one operand changed at a time
            NN_TILES_A(0) NN_TILES_B(2) NN_TILES_MULTIPLY(96, 4)
            NN_TILES_B(1) NN_TILES_MULTIPLY(112, 4)
            NN_TILES_A(1) NN_TILES_MULTIPLY(128, 4)
            NN_TILES_B(0) NN_TILES_MULTIPLY(144, 4)
            NN_TILES_A(2) NN_TILES_MULTIPLY(160, 4)
            NN_TILES_A(0) NN_TILES_MULTIPLY(176, 4)
        }
        meanwhile.some();
    }
    meanwhile.end();
    end_sums(sums);
}
template <class T>
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs,
                                bool add = false) {
    micro_kernel<T>(sums, a, b, pairs, add, Nothing{});
}
#undef NN_TILES_A
#undef NN_TILES_B
#undef NN_TILES_MULTIPLY

}  // namespace nn::NN_LEVEL
