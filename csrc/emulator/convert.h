// What cvt does beyond the formats themselves: rounding to integers, ranges, NaN.  Part of scalar.h.
//
//     to_integer<int32_t>(2.5f, Round::nearest_even)  == 2        cvt.rni.s32.f32
//     from_integer<F16>(int64_t(-70000), Round::zero) == 0xfbff   cvt.rz.f16.s64
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "formats.h"
#include "half.h"
#include "integer.h"

namespace emu {

// To an integral value of the same type: .rni .rzi .rmi .rpi.
template <class T> inline T to_integral(T value, Round round) {
    switch (round) {
        case Round::zero: return std::trunc(value);
        case Round::down: return std::floor(value);
        case Round::up: return std::ceil(value);
        default: return std::rint(value);
    }
}

// Values beyond the range take its nearest end.  NaN becomes 0; where f64 or 64-bit integers take part, the
// value with only the top bit set.
template <class Integer, class From> inline Integer to_integer(From value, Round round) {
    using Limits = std::numeric_limits<Integer>;
    constexpr bool wide = sizeof(From) == 8 || sizeof(Integer) == 8;
    constexpr Integer top_bit = static_cast<Integer>(uint64_t(1) << (8 * sizeof(Integer) - 1));
    constexpr From beyond = static_cast<From>(uint64_t(1) << (Limits::digits - 1)) * 2;  // max() + 1, exactly
    if (value != value) return wide ? top_bit : Integer(0);
    const From integral = to_integral(value, round);
    if (integral >= beyond) return Limits::max();
    if (integral <= static_cast<From>(Limits::min())) return Limits::min();
    return static_cast<Integer>(integral);
}

template <class To, class Integer> inline typename To::Bits from_integer(Integer value, Round round) {
    const bool negative = value < 0;
    const uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
    return encode<To>(negative, magnitude, 0, round, Overflow::infinity);
}

// ---- pairs of narrow floats: the first operand of the PTX instruction is the high one -----------------

inline uint32_t pack_bytes(uint8_t high, uint8_t low) { return static_cast<uint32_t>(high) << 8 | low; }

// cvt.pack: a and b limited to WIDTH bits, above them what fits of c.  16 bits: a is the upper half.
template <int WIDTH, bool SIGNED> inline uint32_t limit_to(int32_t value) {
    constexpr int32_t low = SIGNED ? -(1 << (WIDTH - 1)) : 0;
    constexpr int32_t high = SIGNED ? (1 << (WIDTH - 1)) - 1 : (1 << WIDTH) - 1;
    return static_cast<uint32_t>(value < low ? low : value > high ? high : value) & ((1u << WIDTH) - 1);
}
template <int WIDTH, bool SIGNED> inline uint32_t pack_limited(int32_t a, int32_t b, uint32_t c) {
    const uint32_t pair = limit_to<WIDTH, SIGNED>(a) << WIDTH | limit_to<WIDTH, SIGNED>(b);
    return WIDTH == 16 ? pair : c << (2 * WIDTH & 31) | pair;
}

}  // namespace emu
