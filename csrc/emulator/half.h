// Instructions on f16 and bf16, one or a pair in a register.  Part of scalar.h.
//
// F is the format, F16 or BF16.  Values are widened to float: rounding a sum or a product of two halves to
// float and then to half equals rounding it once, as 24 >= 2 * 11 + 2 bits.  That does not hold for fma: its
// exact result goes through a double rounded to odd, which loses nothing that the second rounding needs.
#pragma once
#include <cmath>
#include <cstdint>

#include "floating.h"
#include "formats.h"

namespace emu {

template <class F> inline float widen(uint16_t bits);
template <> inline float widen<F16>(uint16_t bits) { return f16_to_float(bits); }
template <> inline float widen<BF16>(uint16_t bits) { return bf16_to_float(bits); }

template <class F> inline uint16_t shorten(float value);              // to nearest even; NaN becomes 0x7fff
template <> inline uint16_t shorten<F16>(float value) { return float_to_f16(value); }
template <> inline uint16_t shorten<BF16>(float value) { return float_to_bf16(value); }

// a + b rounded to odd: an inexact sum gets an odd last bit, so that a later rounding knows it was not exact.
inline double add_to_odd(double a, double b) {
    const double sum = a + b;
    const double rest = sum - a;
    const double error = (a - (sum - rest)) + (b - rest);
    const uint64_t bits = bits_of(sum);
    if (!(error > 0 || error < 0) || (bits & 1)) return sum;          // exact, already odd, or not finite
    return float_of((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

template <class F> inline uint16_t add_half(uint16_t a, uint16_t b) {
    return shorten<F>(widen<F>(a) + widen<F>(b));
}
template <class F> inline uint16_t sub_half(uint16_t a, uint16_t b) {
    return shorten<F>(widen<F>(a) - widen<F>(b));
}
template <class F> inline uint16_t mul_half(uint16_t a, uint16_t b) {
    return shorten<F>(widen<F>(a) * widen<F>(b));
}
template <class F> inline uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c) {
    const double exact = add_to_odd(static_cast<double>(widen<F>(a)) * widen<F>(b), widen<F>(c));
    if (!(std::fabs(exact) >= 0x1p-126 && std::fabs(exact) <= 0x1p127)) return round_to<F>(exact);
    // In the normal range of float: 24 bits, the last one odd if anything was dropped, then the short cut.
    const uint64_t bits = bits_of(exact), dropped = bits & 0x1fffffff, odd = dropped != 0;
    return shorten<F>(static_cast<float>(float_of((bits - dropped) | odd << 29)));
}

template <class F> inline uint16_t neg_half(uint16_t a) { return a ^ 0x8000; }
template <class F> inline uint16_t abs_half(uint16_t a) { return a & 0x7fff; }
template <class F> inline uint16_t ex2_half(uint16_t a) { return shorten<F>(std::exp2(widen<F>(a))); }
template <class F> inline uint16_t tanh_half(uint16_t a) { return shorten<F>(std::tanh(widen<F>(a))); }

template <class F> inline uint16_t flush_half(uint16_t a) {
    return (a & 0x7fff) < F::smallest_normal ? a & 0x8000 : a;
}
template <class F> inline uint16_t saturate_half(uint16_t a) { return shorten<F>(saturate(widen<F>(a))); }
template <class F> inline uint16_t relu_half(uint16_t a) { return shorten<F>(relu(widen<F>(a))); }

template <class F> inline uint16_t min_half(uint16_t a, uint16_t b) {
    return shorten<F>(min_number(widen<F>(a), widen<F>(b)));
}
template <class F> inline uint16_t max_half(uint16_t a, uint16_t b) {
    return shorten<F>(max_number(widen<F>(a), widen<F>(b)));
}
template <class F> inline uint16_t min_nan_half(uint16_t a, uint16_t b) {
    return shorten<F>(min_nan(widen<F>(a), widen<F>(b)));
}
template <class F> inline uint16_t max_nan_half(uint16_t a, uint16_t b) {
    return shorten<F>(max_nan(widen<F>(a), widen<F>(b)));
}
inline uint16_t xor_sign_half(uint16_t magnitude, uint16_t a, uint16_t b) {       // magnitude >= 0, or NaN
    return magnitude == 0x7fff ? magnitude : static_cast<uint16_t>(magnitude | ((a ^ b) & 0x8000));
}

// ---- pairs: the operation on the low and on the high halves -------------------------------------------

inline uint32_t half_pair(uint16_t low, uint16_t high) { return static_cast<uint32_t>(high) << 16 | low; }

template <class Operation, class... Pairs> inline uint32_t each_half(Operation operation, Pairs... pairs) {
    return half_pair(static_cast<uint16_t>(operation(static_cast<uint16_t>(pairs)...)),
                     static_cast<uint16_t>(operation(static_cast<uint16_t>(pairs >> 16)...)));
}

}  // namespace emu
