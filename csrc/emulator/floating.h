// Floating-point instructions of PTX on f32 and f64: directed rounding, flushing, saturation, min and max,
// approximations.  Part of scalar.h.
//
// add.rn, mul.rn, fma.rn, div.rn and sqrt.rn are the C++ operations themselves; a module is compiled without
// contraction, so they round once.  Modifiers are wrapped around: .ftz is flush() of operands and result,
// .sat is saturate() of the result.  Approximations are libm's functions, closer than the hardware's.
#pragma once
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "formats.h"

namespace emu {

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline double float_of(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline uint64_t bits_of(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float canonical_nan(float) { return float_of(uint32_t(F32::nan)); }
inline double canonical_nan(double) { return float_of(uint64_t(F64::nan)); }

// ---- modifiers ----------------------------------------------------------------------------------------

template <class T> inline T flush(T value) {              // .ftz: subnormals become zeros of the same sign
    return std::fabs(value) < std::numeric_limits<T>::min() ? std::copysign(T(0), value) : value;
}
template <class T> inline T saturate(T value) {           // .sat: to [0, 1]; NaN and -0 become +0
    return value > 0 ? (value < 1 ? value : T(1)) : T(0);
}

template <class T> inline T relu(T value) {               // .relu: what has a minus sign becomes +0, -0 too
    return value == value && std::signbit(value) ? T(0) : value;
}

// ---- directed rounding of f32 -------------------------------------------------------------------------
// The exact result is high + low: high the nearest double, low what is left, known nearly but with its sign.

inline float next_below(float value) {
    const uint32_t bits = bits_of(value);
    if (!(bits & 0x7fffffffu)) return float_of(0x80000001u);
    return float_of(bits >> 31 ? bits + 1 : bits - 1);
}
inline float next_above(float value) { return -next_below(-value); }

inline float narrow(double high, double low, Round round) {
    const float nearest = static_cast<float>(high);
    if (!std::isfinite(high)) return nearest;
    if (round == Round::zero) round = high > 0 ? Round::down : Round::up;
    const double above = static_cast<double>(nearest) - high;      // exact: the two are neighbours
    if (round == Round::down && above > low) return next_below(nearest);
    if (round == Round::up && above < low) return next_above(nearest);
    return nearest;
}

inline float sum_directed(double a, double b, Round round) {       // a + b, rounded once, to float
    const double high = a + b;
    if (high == 0) return round == Round::down && (std::signbit(a) || std::signbit(b)) ? -0.0f : float(high);
    const double rest = high - a;
    return narrow(high, (a - (high - rest)) + (b - rest), round);
}
inline float add_directed(float a, float b, Round round) { return sum_directed(a, b, round); }
inline float mul_directed(float a, float b, Round round) {
    return narrow(static_cast<double>(a) * b, 0, round);
}
inline float fma_directed(float a, float b, float c, Round round) {
    return sum_directed(static_cast<double>(a) * b, c, round);     // the product of two floats is exact
}
inline float div_directed(float a, float b, Round round) {
    const double high = static_cast<double>(a) / b;
    const double rest = std::fma(-high, static_cast<double>(b), static_cast<double>(a));
    return narrow(high, rest / b, round);
}
inline float sqrt_directed(float a, Round round) {
    const double high = std::sqrt(static_cast<double>(a));
    const double rest = std::fma(-high, high, static_cast<double>(a));
    return narrow(high, rest / (2 * high), round);
}

// ---- directed rounding of f64: by the processor's own rounding mode -----------------------------------
// The operands are volatile so that no compiler moves the operation out of the region where the mode is set.

class RoundingMode {
public:
    explicit RoundingMode(Round round) { std::fesetround(mode(round)); }
    ~RoundingMode() { std::fesetround(FE_TONEAREST); }

private:
    static int mode(Round round) {
        return round == Round::zero ? FE_TOWARDZERO : round == Round::down ? FE_DOWNWARD
             : round == Round::up ? FE_UPWARD : FE_TONEAREST;
    }
};

template <class Operation>
inline double directed(double a, double b, double c, Round round, Operation operation) {
    volatile double x = a, y = b, z = c;
    RoundingMode mode(round);
    volatile double result = operation(x, y, z);
    return result;
}
inline double add_directed(double a, double b, Round round) {
    return directed(a, b, 0, round, [](double x, double y, double) { return x + y; });
}
inline double mul_directed(double a, double b, Round round) {
    return directed(a, b, 0, round, [](double x, double y, double) { return x * y; });
}
inline double fma_directed(double a, double b, double c, Round round) {
    return directed(a, b, c, round, [](double x, double y, double z) { return std::fma(x, y, z); });
}
inline double div_directed(double a, double b, Round round) {
    return directed(a, b, 0, round, [](double x, double y, double) { return x / y; });
}
inline double sqrt_directed(double a, Round round) {
    return directed(a, 0, 0, round, [](double x, double, double) { return std::sqrt(x); });
}

// ---- min and max --------------------------------------------------------------------------------------
// One NaN gives way to the other operand, or with .NaN wins over it; -0 is below +0.

template <class T> inline T min_number(T a, T b) {
    if (a < b) return a;
    if (b < a) return b;
    if (a == b) return std::signbit(a) ? a : b;
    return a == a ? a : b == b ? b : canonical_nan(a);
}
template <class T> inline T max_number(T a, T b) {
    if (a > b) return a;
    if (b > a) return b;
    if (a == b) return std::signbit(a) ? b : a;
    return a == a ? a : b == b ? b : canonical_nan(a);
}
template <class T> inline T min_nan(T a, T b) {
    return a == a && b == b ? min_number(a, b) : canonical_nan(a);
}
template <class T> inline T max_nan(T a, T b) {
    return a == a && b == b ? max_number(a, b) : canonical_nan(a);
}
// .xorsign.abs: `magnitude` is the min or max of the absolute values; the sign is the product of the signs.
template <class T> inline T xor_sign(T magnitude, T a, T b) {
    return magnitude != magnitude ? magnitude : std::signbit(a) != std::signbit(b) ? -magnitude : magnitude;
}

// ---- tests --------------------------------------------------------------------------------------------

template <class T> inline bool is_subnormal(T value) {
    return value != 0 && std::fabs(value) < std::numeric_limits<T>::min();
}
template <class T> inline bool is_normal(T value) {
    const T magnitude = std::fabs(value);
    return magnitude >= std::numeric_limits<T>::min() && magnitude <= std::numeric_limits<T>::max();
}

// ---- approximations -----------------------------------------------------------------------------------

// a * (1 / b), where 1 / b is flushed to zero for |b| beyond 2^126.
inline float div_approx(float a, float b) {
    if (std::fabs(b) > 0x1p126f && std::fabs(b) <= std::numeric_limits<float>::max())
        return a * std::copysign(0.0f, b);
    return a / b;
}
inline float rcp_approx(float a) { return 1.0f / a; }
inline float rsqrt_approx(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline double rsqrt_approx(double a) { return 1.0 / std::sqrt(a); }

// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 see and give the upper 32 bits of a double only.
inline double upper_half(double value) { return float_of(bits_of(value) & ~uint64_t(0xffffffff)); }
inline double rcp_gross(double a) { return upper_half(flush(1.0 / upper_half(flush(a)))); }
inline double rsqrt_gross(double a) { return upper_half(1.0 / std::sqrt(upper_half(flush(a)))); }

// ---- pairs of floats in 64 bits -----------------------------------------------------------------------

inline float low_float(uint64_t pair) { return float_of(static_cast<uint32_t>(pair)); }
inline float high_float(uint64_t pair) { return float_of(static_cast<uint32_t>(pair >> 32)); }
inline uint64_t float_pair(float low, float high) {
    return static_cast<uint64_t>(bits_of(high)) << 32 | bits_of(low);
}

}  // namespace emu
