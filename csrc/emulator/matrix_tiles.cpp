// Widening packed elements to float, and the inner loop of every matrix product: see matrix_tiles.h.
#include "matrix_tiles.h"

namespace emu {
namespace {

// The compiler splits these where the processor's vectors are shorter.
using Words8 = uint32_t __attribute__((vector_size(32)));
using Integers8 = int32_t __attribute__((vector_size(32)));
using Floats8 = float __attribute__((vector_size(32)));

Floats8 widen_f16(Words8 raw) {
#if defined(__F16C__) && !defined(__clang__)
    using Halves = short __attribute__((vector_size(16)));
    return __builtin_ia32_vcvtph2ps256(__builtin_convertvector(raw, Halves));
#else
    Floats8 wide;
    for (int i = 0; i < 8; ++i) wide[i] = f16_to_float(static_cast<uint16_t>(raw[i]));
    return wide;
#endif
}

// How eight elements become floats.  `raw` holds the bits of one in each place, zero above.
struct FromF16 {
    static constexpr uint32_t bits = 16;
    static Floats8 eight(Words8 raw) { return widen_f16(raw); }
};
struct FromBF16 {
    static constexpr uint32_t bits = 16;
    static Floats8 eight(Words8 raw) { return Floats8(raw << 16); }
};
struct FromTF32 {                                                // the low 13 bits do not take part
    static constexpr uint32_t bits = 32;
    static Floats8 eight(Words8 raw) { return Floats8(raw & 0xffffe000u); }
};
struct FromE5M2 {                                                // the upper half of an f16
    static constexpr uint32_t bits = 8;
    static Floats8 eight(Words8 raw) { return widen_f16(raw << 8); }
};
struct FromE4M3 {                        // as an f16 its exponent is 8 too small; it has a NaN, no infinity
    static constexpr uint32_t bits = 8;
    static Floats8 eight(Words8 raw) {
        const Words8 magnitude = raw & 0x7fu, sign = raw & 0x80u;
        const Floats8 value = widen_f16(magnitude << 7 | sign << 8) * 256.0f;
        return Floats8(Words8(value) | (Words8(magnitude == 0x7fu) & 0x7fc00000u));
    }
};
template <uint32_t BITS, bool SIGNED> struct FromInteger {
    static constexpr uint32_t bits = BITS;
    static Floats8 eight(Words8 raw) {
        const Integers8 value = Integers8(raw << (32 - BITS)) >> (32 - BITS);
        return __builtin_convertvector(SIGNED ? value : Integers8(raw), Floats8);
    }
};

template <class From, uint32_t LANES>
void widen_words(const uint32_t (*words)[LANES], uint32_t depth_words, float (*values)[LANES]) {
    constexpr uint32_t per_word = 32 / From::bits, mask = per_word == 1 ? ~0u : (1u << From::bits % 32) - 1;
    for (uint32_t w = 0; w < depth_words; ++w)
        for (uint32_t lane = 0; lane < LANES; lane += 8) {
            Words8 packed;
            std::memcpy(&packed, words[w] + lane, sizeof packed);
            for (uint32_t e = 0; e < per_word; ++e) {
                const Floats8 wide = From::eight(packed >> e * From::bits % 32 & mask);
                std::memcpy(values[w * per_word + e] + lane, &wide, sizeof wide);
            }
        }
}

template <uint32_t LANES>
void widen_any(MmaType element, const uint32_t (*words)[LANES], uint32_t depth, float (*values)[LANES]) {
    switch (element) {
        case MmaType::f16: return widen_words<FromF16>(words, depth, values);
        case MmaType::bf16: return widen_words<FromBF16>(words, depth, values);
        case MmaType::tf32: return widen_words<FromTF32>(words, depth, values);
        case MmaType::e4m3: return widen_words<FromE4M3>(words, depth, values);
        case MmaType::e5m2: return widen_words<FromE5M2>(words, depth, values);
        case MmaType::s8: return widen_words<FromInteger<8, true>>(words, depth, values);
        case MmaType::u8: return widen_words<FromInteger<8, false>>(words, depth, values);
        case MmaType::s4: return widen_words<FromInteger<4, true>>(words, depth, values);
        case MmaType::u4: return widen_words<FromInteger<4, false>>(words, depth, values);
        default: return;                                             // bits are multiplied as words
    }
}

}  // namespace

void widen(TileA& tile, MmaType element, uint32_t depth_words) {
    widen_any(element, tile.words, depth_words, tile.values);
}
void widen(TileB& tile, MmaType element, uint32_t depth_words) {
    widen_any(element, tile.words, depth_words, tile.values);
}

// The sums of eight rows stay in registers while the depth is walked: a line of b, a column of a at a time.
void multiply_add(TileC& c, const TileA& a, const TileB& b, uint32_t depth) {
    for (uint32_t row = 0; row < TILE_ROWS; row += 8) {
        Floats8 sums[8];
        std::memcpy(sums, c.values[row], sizeof sums);
        for (uint32_t k = 0; k < depth; ++k) {
            Floats8 line;
            std::memcpy(&line, b.values[k], sizeof line);
            for (uint32_t r = 0; r < 8; ++r) sums[r] += a.values[k][row + r] * line;
        }
        std::memcpy(c.values[row], sums, sizeof sums);
    }
}

void multiply_bits(TileC& c, const TileA& a, const TileB& b, uint32_t depth_words, bool exclusive) {
    for (uint32_t row = 0; row < TILE_ROWS; ++row)
        for (uint32_t n = 0; n < TILE_COLUMNS; ++n) {
            int count = 0;
            for (uint32_t w = 0; w < depth_words; ++w) {
                const uint32_t x = a.words[w][row], y = b.words[w][n];
                count += __builtin_popcount(exclusive ? x ^ y : x & y);
            }
            c.values[row][n] = static_cast<float>(count);
        }
}

}  // namespace emu
