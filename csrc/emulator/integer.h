// Integer instructions of PTX whose meaning is more than one C++ operator.  Part of scalar.h.
//
// Names follow the opcode.  Template parameter T carries type and sign: mul_hi<int32_t>(a, b) is mul.hi.s32.
// What PTX leaves unspecified (division by zero) is given a fixed value here, never undefined behaviour.
#pragma once
#include <cstdint>
#include <limits>
#include <type_traits>

namespace emu {

template <class T> struct Wider;
template <> struct Wider<int8_t> { using Type = int16_t; };
template <> struct Wider<uint8_t> { using Type = uint16_t; };
template <> struct Wider<int16_t> { using Type = int32_t; };
template <> struct Wider<uint16_t> { using Type = uint32_t; };
template <> struct Wider<int32_t> { using Type = int64_t; };
template <> struct Wider<uint32_t> { using Type = uint64_t; };
template <> struct Wider<int64_t> { using Type = __int128; };
template <> struct Wider<uint64_t> { using Type = unsigned __int128; };
template <class T> using wider = typename Wider<T>::Type;

template <class T> constexpr int WIDTH_OF = 8 * static_cast<int>(sizeof(T));

template <class T> inline T least(T a, T b) { return a < b ? a : b; }
template <class T> inline T greatest(T a, T b) { return a < b ? b : a; }

// `value` limited to the range of T.
template <class T, class From> inline T clamp_to(From value) {
    const __int128 wide = value;                         // holds all values of both types
    if (wide < std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
    if (wide > std::numeric_limits<T>::max()) return std::numeric_limits<T>::max();
    return static_cast<T>(value);
}

// ---- add, sub, mul, mad -------------------------------------------------------------------------------

inline int32_t add_sat(int32_t a, int32_t b) { return clamp_to<int32_t>(int64_t(a) + b); }
inline int32_t sub_sat(int32_t a, int32_t b) { return clamp_to<int32_t>(int64_t(a) - b); }

template <class T> inline T mul_hi(T a, T b) {
    return static_cast<T>((static_cast<wider<T>>(a) * b) >> WIDTH_OF<T>);
}
template <class T> inline wider<T> mul_wide(T a, T b) { return static_cast<wider<T>>(a) * b; }
inline int32_t mad_hi_sat(int32_t a, int32_t b, int32_t c) {
    return clamp_to<int32_t>(int64_t(mul_hi<int32_t>(a, b)) + c);
}

// 24-bit products: of the low 24 bits of a and b (sign-extended for s32), bits 31..0 or 47..16.
template <class T> inline wider<T> product24(T a, T b) {
    return static_cast<wider<T>>(static_cast<T>(static_cast<uint32_t>(a) << 8) >> 8) *
           static_cast<T>(static_cast<T>(static_cast<uint32_t>(b) << 8) >> 8);
}
template <class T> inline T mul24_lo(T a, T b) { return static_cast<T>(product24(a, b)); }
template <class T> inline T mul24_hi(T a, T b) { return static_cast<T>(product24(a, b) >> 16); }
inline int32_t mad24_hi_sat(int32_t a, int32_t b, int32_t c) {
    return clamp_to<int32_t>(int64_t(mul24_hi<int32_t>(a, b)) + c);
}

// ---- extended precision: the carry is 0 or 1, for sub the borrow --------------------------------------

template <class T> inline T add_carry(T a, T b, bool carry_in, bool& carry_out) {
    T partial, sum;
    const bool first = __builtin_add_overflow(a, b, &partial);
    const bool second = __builtin_add_overflow(partial, static_cast<T>(carry_in), &sum);
    carry_out = first || second;
    return sum;
}
template <class T> inline T sub_borrow(T a, T b, bool borrow_in, bool& borrow_out) {
    T partial, difference;
    const bool first = __builtin_sub_overflow(a, b, &partial);
    const bool second = __builtin_sub_overflow(partial, static_cast<T>(borrow_in), &difference);
    borrow_out = first || second;
    return difference;
}

// ---- division: PTX leaves a zero divisor open; all ones, as the code that ptxas makes of it gives -----

template <class T> inline T divide(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed<T>::value && b == static_cast<T>(-1)) return static_cast<T>(-static_cast<wider<T>>(a));
    return static_cast<T>(a / b);
}
template <class T> inline T remainder(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed<T>::value && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
}

// ---- sums of absolute differences and dot products ----------------------------------------------------

template <class T> inline T sad(T a, T b, T c) {
    using Bits = typename std::make_unsigned<T>::type;
    const Bits difference = static_cast<Bits>(a < b ? Bits(b) - Bits(a) : Bits(a) - Bits(b));
    return static_cast<T>(Bits(c) + difference);
}

// Four products of bytes; A and B are int8_t or uint8_t.
template <class A, class B> inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8)
        c += static_cast<uint32_t>(static_cast<int32_t>(static_cast<A>(a >> i)) * static_cast<B>(b >> i));
    return c;
}
// Two products of the halves of a (A: int16_t or uint16_t) with bytes first and first + 1 of b.
template <class A, class B> inline uint32_t dp2a(uint32_t a, uint32_t b, uint32_t c, int first) {
    for (int i = 0; i < 2; ++i)
        c += static_cast<uint32_t>(static_cast<int32_t>(static_cast<A>(a >> 16 * i)) *
                                   static_cast<B>(b >> 8 * (first + i)));
    return c;
}

// ---- bits ---------------------------------------------------------------------------------------------

inline uint32_t popc(uint32_t a) { return static_cast<uint32_t>(__builtin_popcount(a)); }
inline uint32_t popc(uint64_t a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
inline uint32_t clz(uint32_t a) { return a ? static_cast<uint32_t>(__builtin_clz(a)) : 32; }
inline uint32_t clz(uint64_t a) { return a ? static_cast<uint32_t>(__builtin_clzll(a)) : 64; }

inline uint32_t brev(uint32_t a) {
    a = (a >> 1 & 0x55555555u) | (a & 0x55555555u) << 1;
    a = (a >> 2 & 0x33333333u) | (a & 0x33333333u) << 2;
    a = (a >> 4 & 0x0f0f0f0fu) | (a & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(a);
}
inline uint64_t brev(uint64_t a) {
    return static_cast<uint64_t>(brev(static_cast<uint32_t>(a))) << 32 | brev(static_cast<uint32_t>(a >> 32));
}

// Position of the most significant bit that is not a copy of the sign; all ones where there is none.
template <class T> inline uint32_t bfind(T a) {
    using Bits = typename std::make_unsigned<T>::type;
    const Bits bits = static_cast<Bits>(a < 0 ? ~a : a);
    return bits ? WIDTH_OF<T> - 1 - clz(bits) : 0xffffffffu;
}
template <class T> inline uint32_t bfind_shiftamt(T a) {
    const uint32_t position = bfind(a);
    return position == 0xffffffffu ? position : WIDTH_OF<T> - 1 - position;
}

// Position of the |offset|-th set bit of mask from `base` on, upwards (offset > 0) or down; all ones: none.
inline uint32_t fns(uint32_t mask, uint32_t base, int32_t offset) {
    if (offset == 0) return base < 32 && (mask >> base & 1) ? base : 0xffffffffu;
    int64_t wanted = offset < 0 ? -int64_t(offset) : offset;
    for (uint32_t position = base; position < 32; position += offset > 0 ? 1u : 0xffffffffu)
        if ((mask >> position & 1) && --wanted == 0) return position;
    return 0xffffffffu;
}

// `length` bits from `position`; beyond the end of a signed operand, copies of its sign.
template <class T> inline T bfe(T a, uint32_t position, uint32_t length) {
    position &= 0xff, length &= 0xff;
    using Bits = typename std::make_unsigned<T>::type;
    if (length == 0) return 0;
    const uint32_t last = WIDTH_OF<T> - 1;
    const T shifted = static_cast<T>(position > last ? (a < 0 ? -1 : 0) : a >> position);
    if (length > last) return shifted;
    const Bits field = static_cast<Bits>(static_cast<Bits>(shifted) << (last + 1 - length));
    return static_cast<T>(static_cast<T>(field) >> (last + 1 - length));
}
template <class T> inline T bfi(T a, T b, uint32_t position, uint32_t length) {
    position &= 0xff, length &= 0xff;
    if (length == 0 || position >= WIDTH_OF<T>) return b;
    const T ones = length >= WIDTH_OF<T> ? static_cast<T>(-1) : static_cast<T>((T(1) << length) - 1);
    const T mask = static_cast<T>(ones << position);
    return static_cast<T>((a << position & mask) | (b & ~mask));
}

// `width` ones from `position`.  clamp: operands of 32 and more count as such; wrap: modulo 32.
inline uint32_t bmsk(uint32_t position, uint32_t width, bool clamp) {
    if (clamp && position >= 32) return 0;
    const uint32_t first = position & 31;
    const uint32_t count = clamp && width >= 32 ? 32 : width & 31;
    return static_cast<uint32_t>(((uint64_t(1) << count) - 1) << first);
}
// The low `width` bits, sign- or zero-extended.
template <class T> inline T szext(T a, uint32_t width, bool clamp) {
    if (clamp && width >= 32) return a;
    const uint32_t count = width & 31;
    if (!count) return 0;
    return static_cast<T>(static_cast<T>(static_cast<uint32_t>(a) << (32 - count)) >> (32 - count));
}

// ---- shifts: amounts beyond the width are clamped, not undefined --------------------------------------

template <class T> inline T shl(T a, uint32_t amount) {
    return amount >= static_cast<uint32_t>(WIDTH_OF<T>) ? T(0) : static_cast<T>(a << amount);
}
template <class T> inline T shr(T a, uint32_t amount) {
    return static_cast<T>(amount < static_cast<uint32_t>(WIDTH_OF<T>) ? a >> amount : a < 0 ? -1 : 0);
}
// Funnel shifts of high:low.
inline uint32_t shf_l_wrap(uint32_t low, uint32_t high, uint32_t amount) {
    return static_cast<uint32_t>(((uint64_t(high) << 32 | low) << (amount & 31)) >> 32);
}
inline uint32_t shf_r_wrap(uint32_t low, uint32_t high, uint32_t amount) {
    return static_cast<uint32_t>((uint64_t(high) << 32 | low) >> (amount & 31));
}
inline uint32_t shf_l_clamp(uint32_t low, uint32_t high, uint32_t amount) {
    return amount >= 32 ? low : shf_l_wrap(low, high, amount);
}
inline uint32_t shf_r_clamp(uint32_t low, uint32_t high, uint32_t amount) {
    return amount >= 32 ? high : shf_r_wrap(low, high, amount);
}

// ---- logic --------------------------------------------------------------------------------------------

// Any function of three bits: bit 4a + 2b + c of `table`.  The compiler folds it for constant tables.
template <int TABLE, class T> inline T lop3(T a, T b, T c) {
    T result = 0;
    if (TABLE & 0x01) result |= ~a & ~b & ~c;
    if (TABLE & 0x02) result |= ~a & ~b & c;
    if (TABLE & 0x04) result |= ~a & b & ~c;
    if (TABLE & 0x08) result |= ~a & b & c;
    if (TABLE & 0x10) result |= a & ~b & ~c;
    if (TABLE & 0x20) result |= a & ~b & c;
    if (TABLE & 0x40) result |= a & b & ~c;
    if (TABLE & 0x80) result |= a & b & c;
    return result;
}

// prmt: four bytes out of the eight of b:a.  Bit 3 of a selector asks for copies of the byte's sign.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selectors) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t selector = selectors >> 4 * i & 15;
        const uint8_t byte = static_cast<uint8_t>(bytes >> 8 * (selector & 7));
        const uint8_t chosen = selector & 8 ? (byte & 0x80 ? 0xff : 0) : byte;
        result |= static_cast<uint32_t>(chosen) << 8 * i;
    }
    return result;
}
// The special forms are generic ones whose selectors depend on the low two bits of c.
inline uint32_t prmt_mode(uint32_t a, uint32_t b, uint32_t c, const uint16_t (&selectors)[4]) {
    return prmt(a, b, selectors[c & 3]);
}
constexpr uint16_t PRMT_F4E[4] = {0x3210, 0x4321, 0x5432, 0x6543};
constexpr uint16_t PRMT_B4E[4] = {0x5670, 0x6701, 0x7012, 0x0123};
constexpr uint16_t PRMT_RC8[4] = {0x0000, 0x1111, 0x2222, 0x3333};
constexpr uint16_t PRMT_ECL[4] = {0x3210, 0x3211, 0x3222, 0x3333};
constexpr uint16_t PRMT_ECR[4] = {0x0000, 0x1110, 0x2210, 0x3210};
constexpr uint16_t PRMT_RC16[4] = {0x1010, 0x3232, 0x1010, 0x3232};

// ---- packed 16-bit integers: T is int16_t or uint16_t -------------------------------------------------

template <class T, class Operation> inline uint32_t both_halves(uint32_t a, uint32_t b, Operation operation) {
    const uint16_t low = static_cast<uint16_t>(operation(static_cast<T>(a), static_cast<T>(b)));
    const uint16_t high = static_cast<uint16_t>(operation(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
    return static_cast<uint32_t>(high) << 16 | low;
}
template <class T> inline uint32_t add_x2(uint32_t a, uint32_t b) {
    return both_halves<T>(a, b, [](T x, T y) { return x + y; });
}
template <class T> inline uint32_t min_x2(uint32_t a, uint32_t b) {
    return both_halves<T>(a, b, least<T>);
}
template <class T> inline uint32_t max_x2(uint32_t a, uint32_t b) {
    return both_halves<T>(a, b, greatest<T>);
}
inline uint32_t relu_x2(uint32_t a) { return max_x2<int16_t>(a, 0); }

// ---- video instructions on 2 or 4 lanes of a register -------------------------------------------------
// A, B and D are the integer types of a lane of the operands and the result: uint8_t for .u32 of vadd4.

template <class A, class B, class Operation>
inline int32_t video_lane(uint32_t a, uint32_t b, int shift, Operation operation) {
    return operation(int32_t(static_cast<A>(a >> shift)), int32_t(static_cast<B>(b >> shift)));
}
template <class D, class A, class B, bool SATURATE, class Operation>
inline uint32_t video(uint32_t a, uint32_t b, Operation operation) {
    using Bits = typename std::make_unsigned<D>::type;
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += WIDTH_OF<D>) {
        const int32_t value = video_lane<A, B>(a, b, shift, operation);
        const D kept = SATURATE ? clamp_to<D>(value) : static_cast<D>(value);
        result |= static_cast<uint32_t>(static_cast<Bits>(kept)) << shift;
    }
    return result;
}
template <class A, class B, class Operation>
inline uint32_t video_sum(uint32_t a, uint32_t b, uint32_t c, Operation operation) {      // .add
    for (int shift = 0; shift < 32; shift += WIDTH_OF<A>)
        c += static_cast<uint32_t>(video_lane<A, B>(a, b, shift, operation));
    return c;
}
inline int32_t video_add(int32_t a, int32_t b) { return a + b; }
inline int32_t video_sub(int32_t a, int32_t b) { return a - b; }
inline int32_t video_absdiff(int32_t a, int32_t b) { return a < b ? b - a : a - b; }

}  // namespace emu
