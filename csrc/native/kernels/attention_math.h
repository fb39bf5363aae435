// What the attention kernels share: which keys a query sees, powers of two, sums across registers.
//
// Scores are kept in units of ln 2 (the queries are multiplied by scale log2 e), so that a probability is a
// power of two: no division by ln 2 per score.
#pragma once
#include "kernels/heads.h"

namespace nn::NN_LEVEL {

constexpr float minus_infinity = -__builtin_inff();
constexpr float log2_e = 1.44269504088896341f, ln_2 = 0.693147180559945309f;

// Query t stands at position first + t; hidden keys of [low, high) are the mask's.
struct Sight {
    int64_t keys, window;
    bool causal;
    int64_t low(int64_t position) const { return window && position >= window ? position - window + 1 : 0; }
    int64_t high(int64_t position) const {
        const int64_t end = causal ? position + 1 : window ? position + window : keys;
        return end < 0 ? 0 : end < keys ? end : keys;
    }
};

// Boolean, broadcast to [B,H,T,S]: axes of one element have stride 0.
struct Mask {
    const uint8_t* data = nullptr;
    int64_t stride[4] = {};
    const uint8_t* row(int64_t b, int64_t h, int64_t t) const {
        return data + b * stride[0] + h * stride[1] + t * stride[2];
    }
};

static inline bool take_mask(Mask& mask, const Array& array, const int64_t (&sizes)[4]) {
    if (!array.data) return true;
    mask.data = static_cast<const uint8_t*>(array.data);
    for (int i = 0; i < 4; ++i) {
        if (array.shape[i] != 1 && array.shape[i] != sizes[i]) return false;
        mask.stride[i] = array.shape[i] == 1 ? 0 : array.stride[i];
    }
    return true;
}

// 2^x for x <= 0, to 2^-23 of itself; 0 below -125 (and at -inf); NaN stays NaN.  x = n + r, |r| <= 1/2, 2^r
// by a polynomial of least relative error, n added to the exponent.
static inline Vec power_of_two(Vec x) {
    const Vec shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);
    Vec p = set(1.3264731799e-3f);
    p = p * r + 9.6715139437e-3f;
    p = p * r + 5.5507337316e-2f;
    p = p * r + 2.4022242060e-1f;
    p = p * r + 6.9314697761e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);
    return (Vec)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)(shifted - 12582912.0f));
#else
    const Vec whole = (Vec)(((Int)shifted << 23) + 0x3f800000);  // 2^n: a product keeps NaN, a sum of bits not
    return x < -125.0f ? Vec{} : p * whole;
#endif
}

// ln x for x >= 1, NaN stays NaN; Cephes' polynomial (logf.c), ln 2 in two parts.
static inline Vec natural_log(Vec x) {
    const Bits bits = bits_of(x) - 0x3f3504f3u;  // the mantissa from sqrt(1/2) on
    const Vec e = __builtin_convertvector((Int)bits >> 23, Vec);
    const Vec f = (Vec)((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f, z = f * f;
    Vec p = set(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return x != x ? x : f + (p * f * z - e * 2.12194440e-4f - z * 0.5f) + e * 0.693359375f;
}

static inline float smallest(Vec x) { return -largest(-x); }

// Lane i: the sum of x[i]'s lanes.
static inline Vec sums_of(Vec (&x)[width]) {
#pragma GCC unroll 4
    for (int step = 1; step < width; step *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < width; i += 2 * step) {
            const Vec a = x[i], b = x[i + step];
#ifdef __clang__
            Vec first, second;
            for (int j = 0; j < width; ++j) {
                first[j] = j & step ? b[j - step] : a[j];
                second[j] = j & step ? b[j] : a[j + step];
            }
#else
            Int from_first, from_second;
#pragma GCC unroll 16
            for (int j = 0; j < width; ++j) {
                from_first[j] = j & step ? width + j - step : j;
                from_second[j] = j & step ? width + j : j + step;
            }
            const Vec first = __builtin_shuffle(a, b, from_first),
                      second = __builtin_shuffle(a, b, from_second);
#endif
            x[i] = first + second;
        }
    return x[0];
}

static inline int64_t padded(int64_t count) { return (count + width - 1) / width * width; }

}  // namespace nn::NN_LEVEL
