// exp, sigmoid, tanh and the normal distribution of a register, to about an ulp of their own.
#pragma once
#include "simd/vec.h"

namespace nn::NN_LEVEL {

// e^x = 2^n e^r with |r| <= ln2/2; Cephes' polynomial (Moshier, expf.c), ln2 in two parts (Cody & Waite).
// 0 below -104, inf above 89; NaN stays NaN.  Without an instruction for it 2^n is two factors, since n may
// lie outside the exponents of either side.
static inline Vec exp(Vec x) {
#if defined(__AVX512F__)  // either takes its second operand where one is NaN
    x = (Vec)_mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), (__m512)x));
#else
    x = x > 89.0f ? set(89.0f) : x;
    x = x < -104.0f ? set(-104.0f) : x;
#endif
    const Vec shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to an integer in the low bits
    const Vec n = shifted - 12582912.0f;
    Vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Vec p = set(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const Int whole = (Int)bits_of(shifted) - 0x4b400000;  // n, from the low bits
    const Int half = whole >> 1;
    return p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
#endif
}

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// Near 0 by Cephes' polynomial (tanhf.c), since 1 - 2/(e^2x + 1) cancels there.
static inline Vec tanh(Vec x) {
    const Vec a = abs(x), z = x * x;
    Vec p = set(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const Vec near = p * z * x + x, far = 1.0f - 2.0f / (exp(a + a) + 1.0f);
    return a < 0.625f ? near : (x < 0.0f ? -far : far);
}

// Phi(x), the normal distribution function, and e = exp(-x^2/2), of which phi(x) = e / sqrt(2 pi).  The tail is
// e t P(t), t = 1 / (1 + 0.3 |x|): P is a fit of degree 9 to the scaled complementary error function, within
// 4e-9 for |x| <= 14.5, beyond which e is 0.  1 - tail on the other side.  (erf(z) = 2 Phi(z sqrt 2) - 1.)
struct Normal {
    Vec below, e;
};
static inline Normal normal(Vec x) {
    const Vec t = 1.0f / (1.0f + 0.3f * abs(x)), e = exp(-0.5f * x * x);
    Vec p = set(-0.0206235517f);
    p = p * t + 0.112436064f;
    p = p * t - 0.228214651f;
    p = p * t + 0.191785932f;
    p = p * t - 0.0794246346f;
    p = p * t + 0.0961574391f;
    p = p * t + 0.0783894435f;
    p = p * t + 0.110235468f;
    p = p * t + 0.119571812f;
    p = p * t + 0.119686693f;
    const Vec tail = e * (t * p);
    return {x < 0.0f ? tail : 1.0f - tail, e};
}

}  // namespace nn::NN_LEVEL
