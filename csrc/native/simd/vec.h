// A register of floats, as wide as the level has them: one source for every level.
//
// Built on the vector extensions of GCC and Clang, which compile + - * / ?: and shuffles for any width;
// intrinsics only where those give bad code.  Everything is in namespace nn::NN_LEVEL, which the build names
// per level: -DNN_LEVEL=avx512 -DNN_LEVEL_NUMBER=2.  Use nothing of the C++ library here whose functions are
// inline: see core/types.h.
#pragma once
#include <math.h>
#include <string.h>

#include "core/types.h"

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__x86_64__)
#include <emmintrin.h>  // a tenth of the other to read, and all that there is without AVX
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef NN_LEVEL
#error "compiled once per level, with -DNN_LEVEL=generic and so on: see csrc/native/build.py"
#endif

namespace nn::NN_LEVEL {

#if defined(__AVX512F__)
constexpr int width = 16;
#elif defined(__AVX__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif

typedef float Vec __attribute__((vector_size(width * 4)));
typedef int32_t Int __attribute__((vector_size(width * 4)));
typedef uint32_t Bits __attribute__((vector_size(width * 4)));
typedef uint16_t Short __attribute__((vector_size(width * 2)));

static inline Vec set(float x) { return Vec{} + x; }
static inline Bits bits_of(Vec x) { return (Bits)x; }
static inline Vec float_of(Bits x) { return (Vec)x; }

// ---- memory ----

static inline Vec load(const float* p) {
    Vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }

static inline Vec widen(Short x) {
#if defined(__AVX512F__)  // a conversion of vectors is four instructions in GCC 12
    return float_of((Bits)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#elif defined(__AVX2__)
    return float_of((Bits)_mm256_cvtepu16_epi32((__m128i)x) << 16);
#else
    return float_of(__builtin_convertvector(x, Bits) << 16);
#endif
}

// To nearest, ties to even, denormals kept, which vcvtneps2bf16 would flush; NaN stays NaN.
static inline Short narrow(Vec x) {
#if defined(__AVX512BF16__)
    constexpr int denormal = 0x20;
    if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)x, denormal) == 0, 1))
        return (Short)_mm512_cvtneps_pbh((__m512)x);
#endif
    const Bits b = bits_of(x);
    const Bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    const Bits quiet = (b >> 16) | 0x40;
    const Bits kept = (Bits)((x == x) ? (Int)rounded : (Int)quiet);
#if defined(__AVX512F__)
    return (Short)_mm512_cvtepi32_epi16((__m512i)kept);
#else
    return __builtin_convertvector(kept, Short);
#endif
}

static inline Vec load(const bf16* p) {
    Short x;
    memcpy(&x, p, sizeof x);
    return widen(x);
}
static inline void store(bf16* p, Vec x) {
    const Short y = narrow(x);
    memcpy(p, &y, sizeof y);
}

// The first n < width elements; the others are 0, and are not read or written.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
static inline Vec load(const float* p, int64_t n) {
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void store(float* p, Vec x, int64_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
static inline Vec load(const bf16* p, int64_t n) {
    return widen((Short)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
static inline void store(bf16* p, Vec x, int64_t n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)narrow(x));
}
#else
static inline Vec load(const float* p, int64_t n) {
    float all[width] = {};
    for (int64_t i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
}
static inline void store(float* p, Vec x, int64_t n) {
    float all[width];
    store(all, x);
    for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}
static inline Vec load(const bf16* p, int64_t n) {
    bf16 all[width] = {};
    for (int64_t i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
}
static inline void store(bf16* p, Vec x, int64_t n) {
    bf16 all[width];
    store(all, x);
    for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}
#endif

// ---- arithmetic: + - * / are the compiler's; a * b + c becomes one instruction where there is one ----

static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where a is NaN
static inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec abs(Vec a) { return float_of(bits_of(a) & 0x7fffffff); }
static inline Vec pick(Int where, Vec a, Vec b) { return where ? a : b; }

// x, rounded: what is added to it is not fused with the product that it is.  A difference that must be 0 stays 0.
static inline Vec apart(Vec x) {
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

static inline Vec sqrt(Vec a) {
#if defined(__AVX512F__)
    return (Vec)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX__)
    return (Vec)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
    return (Vec)_mm_sqrt_ps((__m128)a);
#elif defined(__aarch64__)
    return (Vec)vsqrtq_f32((float32x4_t)a);
#else
    for (int i = 0; i < width; ++i) a[i] = sqrtf(a[i]);
    return a;
#endif
}

#if defined(__AVX512F__)
// Rows to columns: pairs and fours within the quarters of registers, then the quarters.  (What the compiler
// makes of the loops below builds its shuffles at run time: eight times slower.)
static inline void transpose(Bits (&rows)[16]) {
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_epi32((__m512i)rows[2 * i], (__m512i)rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)rows[2 * i], (__m512i)rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // b[i + c]: column c of each quarter, rows i to i + 3
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512i even_top = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88);  // quarters 0 and 2
        const __m512i odd_top = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd);
        const __m512i even_low = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
        rows[c] = (Bits)_mm512_shuffle_i32x4(even_top, even_low, 0x88);
        rows[8 + c] = (Bits)_mm512_shuffle_i32x4(even_top, even_low, 0xdd);
        rows[4 + c] = (Bits)_mm512_shuffle_i32x4(odd_top, odd_low, 0x88);
        rows[12 + c] = (Bits)_mm512_shuffle_i32x4(odd_top, odd_low, 0xdd);
    }
}
#else
// Rows to columns, in log2(width) rounds of exchanging blocks of 1, 2, 4, ... with the row so far away.
static inline void transpose(Bits (&rows)[width]) {
#pragma GCC unroll 4  // else the patterns of the shuffles are built each time
    for (int step = 1; step < width; step *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) {
            if (i & step) continue;
            const Bits a = rows[i], b = rows[i | step];
#ifdef __clang__
            Bits first, second;
            for (int j = 0; j < width; ++j) {
                first[j] = j & step ? b[j - step] : a[j];
                second[j] = j & step ? b[j] : a[j + step];
            }
#else
            Bits from_first, from_second;
#pragma GCC unroll 16
            for (uint32_t j = 0; j < (uint32_t)width; ++j) {
                from_first[j] = j & step ? width + j - step : j;
                from_second[j] = j & step ? width + j : j + step;
            }
            const Bits first = __builtin_shuffle(a, b, from_first),
                       second = __builtin_shuffle(a, b, from_second);
#endif
            rows[i] = first;
            rows[i | step] = second;
        }
}
#endif

// One order of addition per width: halves folded onto each other.
static inline float sum(Vec a) {
    float all[width];
    store(all, a);
    for (int half = width / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) all[i] += all[i + half];
    return all[0];
}
// NaN if any is.
static inline float largest(Vec a) {
    float all[width];
    store(all, a);
    for (int half = width / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) {
            const float x = all[i], y = all[i + half];
            all[i] = x != x || x > y ? x : y;
        }
    return all[0];
}

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool multiplies_pairs = true;  // of bfloat16, in one instruction
#else
constexpr bool multiplies_pairs = false;
#endif

// acc + the product of two pairs of bfloat16 per lane, each product added in float32 (by bfdot both at
// once).  vdpbf16ps takes denormals for 0.
static inline Vec dot2(Vec acc, Bits a, Bits b) {
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (Vec)vbfdotq_f32((float32x4_t)acc, (bfloat16x8_t)a, (bfloat16x8_t)b);
#else
    acc += float_of(a << 16) * float_of(b << 16);
    return acc + float_of(a & 0xffff0000u) * float_of(b & 0xffff0000u);
#endif
}

// The first n lanes of a, b in the others.
static inline Vec first_lanes(Vec a, int64_t n, Vec b) {
    Int lane;
    for (int i = 0; i < width; ++i) lane[i] = i;
    return lane < (Int{} + (int32_t)n) ? a : b;
}

}  // namespace nn::NN_LEVEL
