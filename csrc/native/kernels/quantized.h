// Dot products of blocks of 32 quantized weights with int8 activations, exact
// in integers on every level: 16 outputs side by side, four elements of the sum
// in each 32 bits.
#pragma once
#include "kernels/packed.h"

namespace nn::NN_LEVEL {

// Sums of a block: integers, or floats that hold integers below 2^24.
#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
typedef Int Whole;
static inline Vec as_floats(Whole x) { return __builtin_convertvector(x, Vec); }
static inline Whole whole(int32_t x) { return Whole{} + x; }
#else
typedef Vec Whole;
static inline Vec as_floats(Whole x) { return x; }
static inline Whole whole(int32_t x) { return set((float)x); }
#endif

#if defined(__AVX512VNNI__)
// vpdpbusd takes unsigned weights: q + 128 (and q + 8 for 4 bits); what is too
// much is in the start.
static inline Whole start_signed(int32_t sum_of_x) { return whole(-128 * sum_of_x); }
static inline Whole dot_unsigned(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return (Int)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(four));
}
static inline Whole dot_signed(Whole acc, Bits w, const int8_t* x) {
    return dot_unsigned(acc, w ^ 0x80808080u, x);
}
#elif defined(__AVX512BW__)
// vpmaddubsw would saturate for q + 128: |q| and the activation with q's sign
// instead.
static inline Whole start_signed(int32_t) { return Whole{}; }
static inline Whole sum_pairs(Whole acc, __m512i products) {
    return acc + (Int)_mm512_madd_epi16(products, _mm512_set1_epi16(1));
}
static inline Whole dot_unsigned(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return sum_pairs(acc, _mm512_maddubs_epi16((__m512i)w, _mm512_set1_epi32(four)));
}
static inline Whole dot_signed(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    const __m512i all = _mm512_set1_epi32(four), q = (__m512i)w;
    const __m512i turned = _mm512_mask_sub_epi8(all, _mm512_movepi8_mask(q), _mm512_setzero_si512(), all);
    return sum_pairs(acc, _mm512_maddubs_epi16(_mm512_abs_epi8(q), turned));
}
#elif defined(__AVX2__)
static inline Whole start_signed(int32_t) { return Whole{}; }
static inline Whole sum_pairs(Whole acc, __m256i products) {
    return acc + (Int)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
}
static inline Whole dot_unsigned(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return sum_pairs(acc, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(four)));
}
static inline Whole dot_signed(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    const __m256i q = (__m256i)w;
    return sum_pairs(acc,
                     _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(_mm256_set1_epi32(four), q)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
// Run in emulation alone: no such machine was at hand. Four bits are 0 to 15, so a
// product of signed bytes serves them, too. One row comes here, several where
// there is no smmla (below).
static inline Whole start_signed(int32_t) { return Whole{}; }
static inline Whole dot_signed(Whole acc, Bits w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return (Int)vdotq_s32((int32x4_t)acc, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
static inline Whole dot_unsigned(Whole acc, Bits w, const int8_t* x) { return dot_signed(acc, w, x); }
#else
static inline Whole start_signed(int32_t) { return Whole{}; }
static inline Whole dot_signed(Whole acc, Bits w, const int8_t* x) {
    for (int j = 0; j < 4; ++j)
        acc += __builtin_convertvector((Int)(w << (24 - 8 * j)) >> 24, Vec) * (float)x[j];
    return acc;
}
static inline Whole dot_unsigned(Whole acc, Bits w, const int8_t* x) { return dot_signed(acc, w, x); }
#endif

// A register of quants, four or eight along k, added to the sums of its outputs; x: of the activations
// those that belong to its low bits
template <Format format>
static inline Whole dot_register(Whole acc, Bits w, const int8_t* x) {
    if constexpr (format == Format::q8_0) return dot_signed(acc, w, x);
    acc = dot_unsigned(acc, w & 0x0f0f0f0fu, x);
    return dot_unsigned(acc, (w >> 4) & 0x0f0f0f0fu, x + 16);
}
template <Format format>
static inline Whole start_of(int32_t sum_of_x) {
    return format == Format::q8_0 ? start_signed(sum_of_x) : whole(-8 * sum_of_x);
}

// dots[r] of block b of R rows; the weight's registers lie 64 bytes apart from
// `quants` on
template <Format format, int R>
static inline void block_dots(Whole (&dots)[R], const Inputs& x, int64_t b, const uint8_t* quants) {
    const int8_t* const from = x.quants + b * block;
    const int64_t row = x.blocks * block;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) dots[r] = start_of<format>(x.sums[r * x.blocks + b]);
#pragma GCC unroll 8
    for (int64_t i = 0; i < Blocks<format>::quants_bytes / 64; ++i) {
        Bits w;
        memcpy(&w, quants + i * 64, sizeof w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) dots[r] = dot_register<format>(dots[r], w, from + r * row + 4 * i);
    }
}

// `width` float16
#if defined(__AVX512F__)
static inline Vec load_half(const uint8_t* p) {
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
#elif defined(__F16C__)
static inline Vec load_half(const uint8_t* p) {
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
#elif defined(__aarch64__)
static inline Vec load_half(const uint8_t* p) {
    float16x4_t half;
    memcpy(&half, p, sizeof half);
    return (Vec)vcvt_f32_f16(half);
}
#else
static inline Vec load_half(const uint8_t* p) {
    Short half;
    memcpy(&half, p, sizeof half);
    const Bits h = __builtin_convertvector(half, Bits), exponent = h & 0x7c00u;
    const Vec scaled = float_of((h & 0x7fffu) << 13) * 0x1p112f;  // makes denormals right, too
    const Bits special = bits_of(scaled) | 0x7f800000u;
    const Bits magnitude = exponent == 0x7c00u ? special : bits_of(scaled);
    return float_of(magnitude | (h & 0x8000u) << 16);
}
#endif

// ---- two rows and more, where there is smmla (Arm's i8mm) ----
//
// It multiplies two rows with two outputs, eight elements of k of each: the work of two sdot, and the same
// integers.  A register of four outputs becomes halves of two registers of two outputs; that is done once for
// all rows.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool multiplies_squares = true;

// The first halves of two registers, and the second ones
template <class V>
static inline V first_halves(V a, V b) { return (V)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b); }
template <class V>
static inline V second_halves(V a, V b) { return (V)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b); }

// to[k / 8]: a block of two rows, from x and from x + stride on
static inline void two_rows(Int (&to)[block / 8], const int8_t* x, int64_t stride) {
#pragma GCC unroll 2
    for (int i = 0; i < block / 8; i += 2) {
        Int one, other;
        memcpy(&one, x + 8 * i, sizeof one);
        memcpy(&other, x + stride + 8 * i, sizeof other);
        to[i] = first_halves(one, other);
        to[i + 1] = second_halves(one, other);
    }
}

// to[k / 8][0 and 1]: a block of four outputs, two by two; the weight's registers lie as in block_dots
template <Format format>
static inline void two_outputs(Int (&to)[block / 8][2], const uint8_t* quants) {
#pragma GCC unroll 4
    for (int i = 0; i < Blocks<format>::quants_bytes / 128; ++i) {
        uint32x4_t here, next;
        memcpy(&here, quants + i * 128, sizeof here);
        memcpy(&next, quants + i * 128 + 64, sizeof next);
        const uint8x16_t both[2] = {(uint8x16_t)vzip1q_u32(here, next), (uint8x16_t)vzip2q_u32(here, next)};
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            if constexpr (format == Format::q8_0) {
                to[i][j] = (Int)both[j];
            } else {
                const uint8x16_t low = vandq_u8(both[j], vdupq_n_u8(15)), high = vshrq_n_u8(both[j], 4);
                to[i][j] = (Int)vsubq_u8(low, vdupq_n_u8(8));
                to[i + 2][j] = (Int)vsubq_u8(high, vdupq_n_u8(8));
            }
        }
    }
}

// {row 0 x output 0, row 0 x output 1, row 1 x output 0, row 1 x output 1}
static inline Whole square(const Int (&rows_here)[block / 8], const Int (&outputs)[block / 8][2], int which) {
    int32x4_t dots = {};
#pragma GCC unroll 4
    for (int i = 0; i < block / 8; ++i)
        dots = vmmlaq_s32(dots, (int8x16_t)rows_here[i], (int8x16_t)outputs[i][which]);
    return (Int)dots;
}
#else
constexpr bool multiplies_squares = false;
#endif

}  // namespace nn::NN_LEVEL
