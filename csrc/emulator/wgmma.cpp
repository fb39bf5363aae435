// wgmma.mma_async: 64 x n = 64 x K times K x n by 128 threads, where K elements are 32 bytes.
//
// D element i of thread 32 w + 4 g + t: row 16 w + g + 8 (i / 2 odd), column 8 (i / 4) + 2 t + i % 2; so each
// warp's D is n / 8 tiles of mma.m16n8, and A in registers is mma's A.  The layouts in shared memory, in
// chunks of 16 bytes, L leading and S stride offset, W chunks per span (1 without swizzle; 2, 4, 8):
//     K-major       line r, chunk c        16 W (r % 8) + S (r / 8) + (W == 1 ? L c : 16 c)
//     transposed    chunk of 8 lines c, k  W == 1: S c + 16 (k % 8) + L (k / 8)
//                                          else:   16 (c % W) + L (c / W) + 16 W (k % 8) + S (k / 8)
// and then bits 4.. of the address are XORed with its bits 7.. (1, 2 or 3 bits).
#include "wgmma.h"

#include "matrix_tiles.h"
#include "reports.h"

namespace emu {

SharedMatrix::SharedMatrix(uint64_t descriptor, bool is_transposed)
    : start((descriptor & 0x3fff) << 4),
      leading((descriptor >> 16 & 0x3fff) << 4),
      stride((descriptor >> 32 & 0x3fff) << 4),
      span((descriptor >> 62) == 0 ? 1 : 16 >> (descriptor >> 62)),      // 1: 128 bytes, 2: 64, 3: 32
      transposed(is_transposed),
      base_offset(descriptor >> 49 & 7) {}

uint32_t SharedMatrix::chunk(uint32_t line, uint32_t along) const {
    uint32_t offset;
    if (!transposed) {
        offset = line % 8 * 16 * span + line / 8 * stride + (span == 1 ? along * leading : along * 16);
    } else if (span == 1) {
        offset = line / 8 * stride + along % 8 * 16 + along / 8 * leading;
    } else {
        const uint32_t chunk = line / 8;
        offset = chunk % span * 16 + chunk / span * leading + along % 8 * 16 * span + along / 8 * stride;
    }
    const uint32_t address = (start + offset) % WINDOW;
    return address ^ (address >> 7 & (span - 1)) << 4;
}

namespace {

constexpr uint32_t WARPS = WARPGROUP / WARP, WORDS = 8;      // of depth: 32 bytes
constexpr uint32_t MAX_COLUMNS = 256;

Wgmma& of(void* const* arguments, uint32_t thread) { return *static_cast<Wgmma*>(arguments[thread]); }

// Lines of a matrix in shared memory, packed along k.
void load_lines(const char* window, const SharedMatrix& m, uint32_t lines, uint32_t (*to)[WORDS]) {
    each_chunk(m, lines, [&](uint32_t address, uint32_t line, uint32_t along) {
        if (!m.transposed) {
            std::memcpy(to[line] + along * 4, window + address, 16);
            return;
        }
        uint16_t column[8];
        std::memcpy(column, window + address, sizeof column);
        for (uint32_t i = 0; i < 8; ++i)
            std::memcpy(reinterpret_cast<char*>(to[line + i]) + along * 2, column + i, sizeof *column);
    });
}

template <class Tile> void negate(Tile& tile) {
    for (auto& line : tile.values)
        for (float& value : line) value = -value;
}

void tile_from_registers(TileA& tile, void* const* arguments, uint32_t warp) {
    for (uint32_t lane = 0; lane < WARP; ++lane)
        for (uint32_t r = 0; r < 4; ++r)
            tile.words[r / 2 * 4 + lane % 4][lane / 4 + r % 2 * 8] = of(arguments, warp * WARP + lane).a[r];
}

template <class Tile> void tile_from_lines(Tile& tile, const uint32_t (*lines)[WORDS], uint32_t count) {
    for (uint32_t line = 0; line < count; ++line)
        for (uint32_t w = 0; w < WORDS; ++w) tile.words[w][line] = lines[line][w];
}

void load_a(TileA (&tiles)[WARPS], const char* window, void* const* arguments) {
    const Wgmma& first = of(arguments, 0);
    uint32_t lines[64][WORDS];
    if (!first.shape.a_in_registers)
        load_lines(window, SharedMatrix(first.a_descriptor, first.shape.transposed_a), 64, lines);
    for (uint32_t warp = 0; warp < WARPS; ++warp) {
        TileA& tile = tiles[warp];
        if (first.shape.a_in_registers) tile_from_registers(tile, arguments, warp);
        else tile_from_lines(tile, lines + warp * TILE_ROWS, TILE_ROWS);
        std::memset(tile.values, 0, sizeof tile.values);
        widen(tile, first.shape.a, WORDS);
        if (first.shape.negate_a) negate(tile);
    }
}

// ---- sums: one warp's part of 8 columns -------------------------------------------------------------------

void begin_sums(TileC& c, void* const* arguments, uint32_t warp, uint32_t block) {
    const Wgmma& first = of(arguments, 0);
    if (!first.accumulate || first.shape.d == MmaType::s32) {  // integers: d is added at the end, exactly
        std::memset(&c, 0, sizeof c);
        return;
    }
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        const uint32_t* d = of(arguments, warp * WARP + lane).d;
        const uint32_t g = lane / 4, t = lane % 4 * 2;
        for (uint32_t h = 0; h < 2; ++h) {
            float* two = &c.values[g + 8 * h][t];
            if (first.shape.d == MmaType::f32) {
                std::memcpy(two, d + 4 * block + 2 * h, 8);
            } else {
                const uint32_t pair = d[2 * block + h];
                two[0] = f16_to_float(static_cast<uint16_t>(pair));
                two[1] = f16_to_float(static_cast<uint16_t>(pair >> 16));
            }
        }
    }
}

void finish_sums(const TileC& c, void* const* arguments, uint32_t warp, uint32_t block) {
    const WgmmaShape& shape = of(arguments, 0).shape;
    const bool accumulate = of(arguments, 0).accumulate;
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        uint32_t* d = of(arguments, warp * WARP + lane).d;
        const uint32_t g = lane / 4, t = lane % 4 * 2;
        for (uint32_t h = 0; h < 2; ++h) {
            const float* two = &c.values[g + 8 * h][t];
            uint32_t* words = d + 4 * block + 2 * h;
            if (shape.d == MmaType::f32) {
                std::memcpy(words, two, 8);
            } else if (shape.d == MmaType::f16) {
                d[2 * block + h] = float_to_f16(two[0]) | static_cast<uint32_t>(float_to_f16(two[1])) << 16;
            } else {
                for (uint32_t i = 0; i < 2; ++i)
                    words[i] = add_integer(accumulate ? words[i] : 0, two[i], shape.saturate);
            }
        }
    }
}

void multiply(uint32_t, Thread* const* threads, void* const* arguments, uint32_t site) {
    const Wgmma& first = of(arguments, 0);
    const WgmmaShape& shape = first.shape;
    wgmma_issued(threads, arguments, site);
    const char* window = threads[0]->shared + threads[0]->window;
    const uint32_t depth = WORDS * 32 / element_bits(shape.a);
    TileA a[WARPS];
    TileB b;
    TileC c;
    uint32_t columns[MAX_COLUMNS][WORDS];
    load_a(a, window, arguments);
    load_lines(window, SharedMatrix(first.b_descriptor, shape.transposed_b), shape.n, columns);
    for (uint32_t block = 0; block < shape.n / TILE_COLUMNS; ++block) {
        tile_from_lines(b, columns + block * TILE_COLUMNS, TILE_COLUMNS);
        widen(b, shape.b, WORDS);
        if (shape.negate_b) negate(b);
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            begin_sums(c, arguments, warp, block);
            multiply_add(c, a[warp], b, depth);
            finish_sums(c, arguments, warp, block);
        }
    }
}

}  // namespace

void wgmma(Thread& t, Wgmma& arguments, uint32_t site) {
    wgmma_begin(t, arguments, site);
    warpgroup_collective(t, multiply, &arguments, site);
}

}  // namespace emu
