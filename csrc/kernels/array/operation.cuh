// Elementwise operations: N neighbours at once where the code is short (light), else one (heavy).
#pragma once

#include "nn/array.h"

#include <math.h>
#include <stdint.h>
#include <type_traits>

namespace nn::array {

template <class C> __device__ __forceinline__ C quiet_max(C a, C b) { return a > b || a != a ? a : b; }
template <class C> __device__ __forceinline__ C quiet_min(C a, C b) { return a < b || a != a ? a : b; }

__device__ inline float remainder_of(float a, float b) {
    float r = fmodf(a, b);
    if (r != 0.0f && (r < 0.0f) != (b < 0.0f)) r += b;
    return r == 0.0f ? copysignf(0.0f, b) : r;
}

__device__ inline float floor_divided(float a, float b) {            // NumPy's: floor(a / b) without rounding
    if (b == 0.0f) return a / b;
    const float r = fmodf(a, b);
    float q = (a - r) / b;                           // a whole number, but for rounding
    if (r != 0.0f && (r < 0.0f) != (b < 0.0f)) q -= 1.0f;
    if (q == 0.0f) return copysignf(0.0f, a / b);
    const float whole = floorf(q);
    return q - whole > 0.5f ? whole + 1.0f : whole;
}

__device__ inline int64_t floor_divided(int64_t a, int64_t b) {
    if (b == 0) return 0;
    if (b == -1) return static_cast<int64_t>(0 - static_cast<uint64_t>(a));
    const int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

__device__ inline int64_t remainder_of(int64_t a, int64_t b) {
    return b == 0 ? 0 : a - b * floor_divided(a, b);
}

__device__ inline int64_t power_of(int64_t a, int64_t n) {
    if (n < 0) return a == 1 ? 1 : a == -1 ? (n & 1 ? -1 : 1) : 0;
    int64_t y = 1;
    for (; n; n >>= 1, a *= a)
        if (n & 1) y *= a;
    return y;
}

// 2 / pi: a zero word, then the bits from 2^-1 downwards.
__constant__ uint32_t TWO_OVER_PI[] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0,
                                       0xdb629599, 0x3c439041, 0xfe5163ab, 0xdebbc561};

// x = quadrant pi/2 + result, the result within pi/4, for every finite x.  CUDA's own reduction of large
// angles keeps an array in local memory; this one takes the 96 bits of 2/pi that matter from constant memory
// (Payne & Hanek 1983).
__device__ inline double reduced_angle(float x, int* quadrant) {
    constexpr double HALF_PI = 1.5707963267948966;
    if (fabsf(x) < 1e5f) {
        const double k = rint(x * 0.6366197723675814);
        *quadrant = static_cast<int>(k);
        return fma(-k, 6.123233995736766e-17, fma(-k, HALF_PI, static_cast<double>(x)));
    }
    const uint32_t bits = __float_as_uint(x);
    const int first = static_cast<int>(bits >> 23 & 255u) - 120;     // the bit that counts 2 in the product
    const int word = min(first / 32, 5), part = first % 32;
    const uint64_t window = static_cast<uint64_t>(TWO_OVER_PI[word]) << 32 | TWO_OVER_PI[word + 1];
    const uint64_t beyond = static_cast<uint64_t>(TWO_OVER_PI[word + 2]) << 32 | TWO_OVER_PI[word + 3];
    const uint64_t high = part ? window << part | beyond >> (64 - part) : window;
    const uint64_t low = beyond << part >> 32, mantissa = (bits & 0x7fffffu) | 0x800000u;
    const uint64_t turns = mantissa * high + (mantissa * low >> 32);     // in 2^-62 quadrants, modulo 4
    const uint64_t whole = (turns + (1ULL << 61)) >> 62;
    const int64_t part_turn = static_cast<int64_t>(turns - (whole << 62));
    const double rest = static_cast<double>(part_turn) * (HALF_PI / (1ULL << 62));
    const bool negative = x < 0.0f;
    *quadrant = negative ? -static_cast<int>(whole) : static_cast<int>(whole);
    return negative ? -rest : rest;
}

// sin(x + turn pi/2)                       (polynomials: Cephes, sinf and cosf)
__device__ inline float sine(float x, int turn) {
    if (!(fabsf(x) < __int_as_float(0x7f800000))) return x - x;
    int quadrant;
    const double r = reduced_angle(x, &quadrant), s = r * r;
    quadrant += turn;
    const double sin = r + r * s * (-1.6666654611e-1 + s * (8.3321608736e-3 + s * -1.9515295891e-4));
    const double rest = 4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5);
    const double cos = 1.0 - 0.5 * s + s * s * rest;
    const float y = static_cast<float>(quadrant & 1 ? cos : sin);
    return quadrant & 2 ? -y : y;
}

template <class C> __device__ __forceinline__ C sign_of(C a) {
    return a > C(0) ? C(1) : a < C(0) ? C(-1) : a;
}

// Operations that are worth N copies of their code.
#define NN_EACH(...)                                  \
    {                                                 \
        _Pragma("unroll") for (int j = 0; j < N; ++j) y[j] = static_cast<C>(__VA_ARGS__); \
        return;                                       \
    }

template <class C, int N>
__device__ __forceinline__ void light(C (&y)[N], const C (&a)[N], const C (&b)[N], const C (&c)[N], int op) {
    switch (op) {
        case NN_COPY: NN_EACH(a[j])
        case NN_NEGATIVE: NN_EACH(-a[j])
        case NN_ABS: NN_EACH(a[j] < C(0) || (a[j] == C(0)) ? C(0) - a[j] : a[j])
        case NN_SIGN: NN_EACH(sign_of(a[j]))
        case NN_SQUARE: NN_EACH(a[j] * a[j])
        case NN_LOGICAL_NOT: NN_EACH(a[j] == C(0))
        case NN_ISNAN: NN_EACH(a[j] != a[j])
        case NN_ISFINITE: NN_EACH(a[j] - a[j] == C(0))
        case NN_ISINF: NN_EACH(a[j] == a[j] && !(a[j] - a[j] == C(0)))
        case NN_ADD: NN_EACH(a[j] + b[j])
        case NN_SUBTRACT: NN_EACH(a[j] - b[j])
        case NN_MULTIPLY: NN_EACH(a[j] * b[j])
        case NN_MAXIMUM: NN_EACH(quiet_max(a[j], b[j]))
        case NN_MINIMUM: NN_EACH(quiet_min(a[j], b[j]))
        case NN_EQUAL: NN_EACH(a[j] == b[j])
        case NN_NOT_EQUAL: NN_EACH(a[j] != b[j])
        case NN_LESS: NN_EACH(a[j] < b[j])
        case NN_LESS_EQUAL: NN_EACH(a[j] <= b[j])
        case NN_GREATER: NN_EACH(a[j] > b[j])
        case NN_GREATER_EQUAL: NN_EACH(a[j] >= b[j])
        case NN_LOGICAL_AND: NN_EACH(a[j] != C(0) && b[j] != C(0))
        case NN_LOGICAL_OR: NN_EACH(a[j] != C(0) || b[j] != C(0))
        case NN_LOGICAL_XOR: NN_EACH((a[j] != C(0)) != (b[j] != C(0)))
        case NN_WHERE: NN_EACH(a[j] != C(0) ? b[j] : c[j])
    }
    if constexpr (std::is_same_v<C, int64_t>) {
        switch (op) {
            case NN_AND: NN_EACH(a[j] & b[j])
            case NN_OR: NN_EACH(a[j] | b[j])
            case NN_XOR: NN_EACH(a[j] ^ b[j])
        }
    } else {
        switch (op) {
            case NN_DIVIDE: NN_EACH(a[j] / b[j])
            case NN_SQRT: NN_EACH(sqrt(a[j]))
        }
    }
    if constexpr (std::is_same_v<C, float>) {
        switch (op) {
            case NN_RSQRT: NN_EACH(rsqrtf(a[j]))
            case NN_RECIPROCAL: NN_EACH(1.0f / a[j])
            case NN_EXP: NN_EACH(expf(a[j]))
            case NN_LOG: NN_EACH(logf(a[j]))
            case NN_TANH: NN_EACH(tanhf(a[j]))
        }
    }
}
#undef NN_EACH

__device__ inline float heavy(float a, float b, int op) {
    switch (op) {
        case NN_FLOOR: return floorf(a);
        case NN_CEIL: return ceilf(a);
        case NN_TRUNC: return truncf(a);
        case NN_ROUND: return rintf(a);
        case NN_EXPM1: return expm1f(a);
        case NN_LOG1P: return log1pf(a);
        case NN_LOG2: return log2f(a);
        case NN_SIN: return sine(a, 0);
        case NN_COS: return sine(a, 1);
        case NN_ERF: return erff(a);
        case NN_FLOOR_DIVIDE: return floor_divided(a, b);
        case NN_REMAINDER: return remainder_of(a, b);
        case NN_POWER: return powf(a, b);
    }
    return 0.0f;
}

__device__ inline int64_t heavy(int64_t a, int64_t b, int op) {
    switch (op) {
        case NN_INVERT: return ~a;
        case NN_SHIFT_LEFT: return b < 0 || b > 63 ? 0 : a << b;
        case NN_SHIFT_RIGHT: return a >> (b < 0 || b > 63 ? 63 : b);
        case NN_FLOOR_DIVIDE: return floor_divided(a, b);
        case NN_REMAINDER: return remainder_of(a, b);
        case NN_POWER: return power_of(a, b);
    }
    return 0;                                        // floor, round, ...: copies, by the host
}

__device__ inline double heavy(double, double, int) { return 0.0; }

}  // namespace nn::array
