// The arithmetic that mma, wmma and wgmma share: tiles of 16 rows, 8 columns and up to 64 elements of depth.
//
// A lane's registers are packed words; they are put side by side as [depth][row] and [depth][column], widened
// to float, and multiplied one depth at a time, 8 columns in a vector.  Integers of 4 and 8 bits go the same
// way: what one instruction sums stays below 2^24, where float is exact.  Every number of words below is of
// 32-bit words, "depth" counts along k.
#pragma once
#include <cstdint>

#include "matrix.h"

namespace emu {

constexpr uint32_t TILE_ROWS = 16, TILE_COLUMNS = 8;
constexpr uint32_t TILE_DEPTH = 64, TILE_WORDS = 8;      // at most

struct TileA {
    alignas(64) uint32_t words[TILE_WORDS][TILE_ROWS];
    alignas(64) float values[TILE_DEPTH][TILE_ROWS];
};
struct TileB {
    alignas(64) uint32_t words[TILE_WORDS][TILE_COLUMNS];
    alignas(64) float values[TILE_DEPTH][TILE_COLUMNS];
};
struct TileC {
    alignas(64) float values[TILE_ROWS][TILE_COLUMNS];
};

constexpr uint32_t element_bits(MmaType e) {
    switch (e) {
        case MmaType::f16: case MmaType::bf16: return 16;
        case MmaType::e4m3: case MmaType::e5m2: case MmaType::s8: case MmaType::u8: return 8;
        case MmaType::s4: case MmaType::u4: return 4;
        case MmaType::b1_and: case MmaType::b1_xor: return 1;
        default: return 32;
    }
}
constexpr bool is_bits(MmaType e) { return e == MmaType::b1_and || e == MmaType::b1_xor; }

void widen(TileA&, MmaType, uint32_t depth_words);                            // words -> values
void widen(TileB&, MmaType, uint32_t depth_words);
void multiply_add(TileC&, const TileA&, const TileB&, uint32_t depth);        // c += a * b
// c = population counts of a & b, or of a ^ b
void multiply_bits(TileC&, const TileA&, const TileB&, uint32_t depth_words, bool exclusive);

// c + sum as s32: modulo 2^32, or stopping at the ends of the range.
inline uint32_t add_integer(uint32_t c, float sum, bool saturate) {
    const int64_t exact = int64_t(static_cast<int32_t>(c)) + static_cast<int64_t>(sum);
    if (!saturate) return static_cast<uint32_t>(exact);
    return static_cast<uint32_t>(exact < INT32_MIN ? INT32_MIN : exact > INT32_MAX ? INT32_MAX : exact);
}

}  // namespace emu
