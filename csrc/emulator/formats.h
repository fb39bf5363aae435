// The number formats of PTX: f16, bf16, tf32, floats of 8, 6 and 4 bits, and how values are rounded to them.
//
// Decoding is exact.  Encoding rounds once, from an exact value, in the chosen direction:
//     uint16_t h = round_to<F16>(1.0 / 3, Round::zero);        float x = f16_to_float(h);
// A value that a double cannot hold (a 64-bit integer) goes through encode(), as significand * 2^exponent.
// Registers hold bits: uint16_t for f16 and bf16, uint32_t for a pair (low half first), uint8_t below that.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emu {

enum class Round : uint32_t { nearest_even, zero, down, up, nearest_away };
enum class Overflow : uint32_t { infinity, finite };      // finite (.satfinite): the largest value instead

template <int WIDTH> struct Unsigned;
template <> struct Unsigned<8> { using Type = uint8_t; };
template <> struct Unsigned<16> { using Type = uint16_t; };
template <> struct Unsigned<32> { using Type = uint32_t; };
template <> struct Unsigned<64> { using Type = uint64_t; };

// LARGEST: the bits of the largest finite value.  INFINITE: those of infinity, 0 where the format has none.
// QUIET: the NaN that PTX writes; a format without NaN gets its largest value instead.
template <int EXPONENT, int FRACTION, int STORAGE, uint64_t LARGEST, uint64_t INFINITE, uint64_t QUIET>
struct Format {
    using Bits = typename Unsigned<STORAGE>::Type;
    static constexpr int exponent_bits = EXPONENT, fraction_bits = FRACTION;
    static constexpr int bias = (1 << (EXPONENT - 1)) - 1;
    static constexpr uint64_t largest = LARGEST, infinity = INFINITE, nan = QUIET;
    static constexpr uint64_t sign = uint64_t(1) << (EXPONENT + FRACTION);
    static constexpr uint64_t smallest_normal = uint64_t(1) << FRACTION;
};
using F64 = Format<11, 52, 64, 0x7fefffffffffffff, 0x7ff0000000000000, 0x7fffffffffffffff>;
using F32 = Format<8, 23, 32, 0x7f7fffff, 0x7f800000, 0x7fffffff>;
using TF32 = Format<8, 10, 32, 0x3fbff, 0x3fc00, 0x3ffff>;    // 13 bits higher in a register: see tf32()
using F16 = Format<5, 10, 16, 0x7bff, 0x7c00, 0x7fff>;
using BF16 = Format<8, 7, 16, 0x7f7f, 0x7f80, 0x7fff>;
using E5M2 = Format<5, 2, 8, 0x7b, 0x7c, 0x7f>;
using E4M3 = Format<4, 3, 8, 0x7e, 0, 0x7f>;
using E3M2 = Format<3, 2, 8, 0x1f, 0, 0x1f>;
using E2M3 = Format<2, 3, 8, 0x1f, 0, 0x1f>;
using E2M1 = Format<2, 1, 8, 0x7, 0, 0x7>;

// ---- encoding -----------------------------------------------------------------------------------------

// Whether the bits dropped below `kept` round it away from zero; `half` is half a unit of kept.
inline bool rounds_away(Round round, bool negative, uint64_t kept, uint64_t dropped, uint64_t half) {
    switch (round) {
        case Round::nearest_even: return dropped > half || (dropped == half && (kept & 1));
        case Round::nearest_away: return dropped >= half;
        case Round::down: return negative && dropped;
        case Round::up: return !negative && dropped;
        default: return false;
    }
}

// A magnitude beyond the range becomes infinity, unless the direction of rounding or .satfinite forbids it.
template <class To> inline uint64_t out_of_range(bool negative, Round round, Overflow overflow) {
    const bool inwards = round == Round::zero || round == (negative ? Round::up : Round::down);
    return To::infinity && overflow == Overflow::infinity && !inwards ? To::infinity : To::largest;
}

// (-1)^negative * significand * 2^exponent, rounded once.
template <class To>
inline typename To::Bits encode(bool negative, uint64_t significand, int exponent, Round round,
                                Overflow overflow) {
    using Bits = typename To::Bits;
    const uint64_t sign = negative ? To::sign : 0;
    if (!significand) return static_cast<Bits>(sign);
    const int zeros = __builtin_clzll(significand);
    significand <<= zeros;
    const int scale = exponent + 63 - zeros;              // 1.xxx * 2^scale, the leading one at bit 63
    if (scale > To::bias + 1) return static_cast<Bits>(sign | out_of_range<To>(negative, round, overflow));
    const bool subnormal = scale < 1 - To::bias;
    const int shift = 63 - To::fraction_bits + (subnormal ? 1 - To::bias - scale : 0);
    uint64_t kept = 0;
    if (shift < 64) {
        const uint64_t half = uint64_t(1) << (shift - 1);
        kept = significand >> shift;
        kept += rounds_away(round, negative, kept, significand & (2 * half - 1), half);
    } else {                                              // all of it is below the last place
        const uint64_t dropped = shift > 64 ? 1 : significand > uint64_t(1) << 63 ? 3 : 2;
        kept = rounds_away(round, negative, 0, dropped, 2);
    }
    // The leading one of a normal number adds 1 to the exponent field; so does a carry out of the fraction.
    const uint64_t field = subnormal ? 0 : static_cast<uint64_t>(scale + To::bias - 1);
    const uint64_t magnitude = (field << To::fraction_bits) + kept;
    if (magnitude > To::largest) return static_cast<Bits>(sign | out_of_range<To>(negative, round, overflow));
    return static_cast<Bits>(sign | magnitude);
}

template <class To>
inline typename To::Bits round_to(double value, Round round = Round::nearest_even,
                                  Overflow overflow = Overflow::infinity) {
    using Bits = typename To::Bits;
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool negative = bits >> 63;
    const int field = static_cast<int>(bits >> 52 & 0x7ff);
    const uint64_t fraction = bits & 0xfffffffffffff;
    if (field == 0x7ff) {
        if (fraction) return static_cast<Bits>(To::nan);
        const bool keep = To::infinity && overflow == Overflow::infinity;
        return static_cast<Bits>((negative ? To::sign : 0) | (keep ? To::infinity : To::largest));
    }
    if (!field) return encode<To>(negative, fraction, -1074, round, overflow);
    return encode<To>(negative, fraction | uint64_t(1) << 52, field - 1075, round, overflow);
}

// ---- decoding -----------------------------------------------------------------------------------------

template <class From> inline float decode(uint32_t bits) {       // any format narrower than float; exact
    const uint32_t magnitude = bits & (From::sign - 1);
    const uint32_t sign = bits & From::sign ? 0x80000000u : 0;
    if (From::infinity && magnitude == From::infinity) return sign ? -INFINITY : INFINITY;
    if (magnitude > From::largest) return NAN;
    // As the bits of a float the value is too small by the difference of the biases; subnormals likewise.
    const uint32_t wide = sign | magnitude << (23 - From::fraction_bits);
    const uint32_t scale = static_cast<uint32_t>(254 - From::bias) << 23;      // 2^(127 - bias)
    float value, factor;
    std::memcpy(&value, &wide, sizeof value);
    std::memcpy(&factor, &scale, sizeof factor);
    return value * factor;
}

// ---- f16 and bf16, with short cuts: kernels live on them ----------------------------------------------

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}
inline uint16_t float_to_bf16(float value) {                     // to nearest even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return BF16::nan;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);     // may carry into infinity
}

// Builtins rather than <immintrin.h>, which every translated module would have to compile.
#if defined(__F16C__) && defined(__GNUC__) && !defined(__clang__)
inline float f16_to_float(uint16_t bits) {
    using Halves = short __attribute__((vector_size(16)));
    return __builtin_ia32_vcvtph2ps(Halves{static_cast<short>(bits)})[0];
}
inline uint16_t float_to_f16(float value) {                      // to nearest even
    using Floats = float __attribute__((vector_size(16)));
    if (value != value) return F16::nan;
    return static_cast<uint16_t>(__builtin_ia32_vcvtps2ph(Floats{value}, 0)[0]);
}
#elif defined(__ARM_FP16_FORMAT_IEEE)
inline float f16_to_float(uint16_t bits) {
    __fp16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}
inline uint16_t float_to_f16(float value) {
    if (value != value) return F16::nan;
    const __fp16 half = static_cast<__fp16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
inline float f16_to_float(uint16_t bits) { return decode<F16>(bits); }
inline uint16_t float_to_f16(float value) { return round_to<F16>(value); }
#endif

// ---- 8 bits and tf32 ----------------------------------------------------------------------------------

inline float e4m3_to_float(uint8_t bits) { return decode<E4M3>(bits); }
inline float e5m2_to_float(uint8_t bits) { return decode<E5M2>(bits); }

// tf32 keeps the place of a float, its low 13 bits zero.  A tensor core ignores those bits: tf32_operand().
inline uint32_t tf32(float value, Round round, Overflow overflow = Overflow::infinity) {
    return value != value ? static_cast<uint32_t>(F32::nan) : round_to<TF32>(value, round, overflow) << 13;
}
inline float tf32_operand(uint32_t bits) {
    bits &= 0xffffe000u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// ue8m0, the scale factors of block formats: 2^(bits - 127), 0xff is NaN.  The sign of the value is dropped.
inline uint8_t round_to_ue8m0(double value, Round round, Overflow overflow = Overflow::infinity) {
    const uint8_t beyond = overflow == Overflow::finite ? 0xfe : 0xff;
    if (value != value) return 0xff;
    if (std::isinf(value)) return beyond;
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);       // in [0.5, 1), or 0
    const int field = exponent - 1 + 127 + (round == Round::up && fraction != 0.5);
    if (field < 0 || fraction == 0) return 0;
    return field > 254 ? beyond : static_cast<uint8_t>(field);
}
inline float ue8m0_to_float(uint8_t bits) { return bits == 0xff ? NAN : std::ldexp(1.0f, bits - 127); }

}  // namespace emu
