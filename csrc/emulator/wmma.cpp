// wmma.load, wmma.store and wmma.mma, what nvcuda::wmma becomes.  Which element a fragment holds where is not
// documented, and differs between GPUs; here a lane's registers are consecutive elements of the matrix, line
// after line (matrix.h, WmmaTile).  A kernel that relies on another order fails here, as it may on the next
// GPU; one that treats all elements alike, as it should, works.
#include <algorithm>

#include "matrix_tiles.h"

namespace emu {
namespace {

constexpr uint32_t ALL = 0xffffffffu;

struct Run {                     // consecutive elements of one line that a lane holds
    uint32_t line, first, count;
};

// Small matrices are held several times over: A of 16x16 f16 has 256 elements, but 32 lanes have room for
// 512.
Run lane_run(const WmmaTile& tile, uint32_t lane) {
    const uint32_t count = tile.registers * 32 / tile.bits;
    const uint32_t number = lane * count % (tile.lines * tile.length);
    return {number / tile.length, number % tile.length, count};
}

// visit(byte of the registers, byte relative to the matrix, number of bytes) for what lies together in
// memory.
template <class Visit> void each_piece(const WmmaTile& tile, uint32_t lane, int64_t stride, Visit visit) {
    const Run run = lane_run(tile, lane);
    const int64_t bits = tile.bits;
    if (tile.along) return visit(0, (run.line * stride + run.first) * bits / 8, run.count * tile.bits / 8);
    for (uint32_t i = 0; i < run.count; ++i)
        visit(i * tile.bits / 8, ((run.first + i) * stride + run.line) * bits / 8, tile.bits / 8);
}

void announce(Thread& t, const WmmaTile& tile, const char* matrix, int64_t stride, uint32_t what,
              uint32_t site) {
    each_piece(tile, t.lane, stride, [&](uint32_t, int64_t place, uint32_t bytes) {
        for (uint32_t at = 0; at < bytes; at += 16)
            access(t, matrix + place + at, std::min(bytes - at, 16u), what, site);
    });
}

void together(uint32_t, Thread* const*, void* const*, uint32_t) {}

// Each lane moves its own elements; that all lanes come at all is looked at where hooks are compiled in.
void begin_move(Thread& t, const WmmaTile& tile, const char* matrix, int64_t stride, uint32_t what,
                uint32_t site) {
    if (!t.launch->hooks) return;
    announce(t, tile, matrix, stride, what, site);
    char nothing;
    collective(t, ALL, together, &nothing, site);
}

// ---- wmma.mma ---------------------------------------------------------------------------------------------

Wmma& of(void* const* arguments, uint32_t lane) { return *static_cast<Wmma*>(arguments[lane]); }

struct Operands {                // a warp's fragments put together: lines are rows of A, columns of B
    uint32_t a[32][8], b[32][8];
    uint32_t words;              // per line
};

// Word w of the matrix is in lane w / held.  f16 fragments have 8 registers, however small the matrix.
void gather(Operands& operands, void* const* arguments, const Wmma& shape) {
    const uint32_t words = operands.words = shape.k * element_bits(shape.a) / 32;
    const bool eight = shape.a == MmaType::f16;
    const uint32_t a_held = eight ? 8 : shape.m * words / WARP, b_held = eight ? 8 : shape.n * words / WARP;
    for (uint32_t w = 0; w < shape.m * words; ++w)
        operands.a[w / words][w % words] = of(arguments, w / a_held).a_[w % a_held];
    for (uint32_t w = 0; w < shape.n * words; ++w)
        operands.b[w / words][w % words] = of(arguments, w / b_held).b_[w % b_held];
}

void first_sums(const Wmma& m, MmaType kind, uint32_t count, float* sums) {
    for (uint32_t i = 0; i < count; ++i) {
        if (kind == MmaType::f32) sums[i] = bits<float>(m.c_[i]);
        else if (kind == MmaType::f16)
            sums[i] = f16_to_float(static_cast<uint16_t>(m.c_[i / 2] >> i % 2 * 16));
        else sums[i] = 0;  // integers: c is added at the end, exactly
    }
}

void set_half(uint32_t& pair, uint32_t index, uint32_t half) {
    pair = (pair & 0xffff0000u >> index * 16) | half << index * 16;
}

void set_results(Wmma& m, const Wmma& shape, uint32_t count, const float* sums) {
    for (uint32_t i = 0; i < count; ++i) {
        if (shape.d == MmaType::f32) m.d_[i] = bits<uint32_t>(sums[i]);
        else if (shape.d == MmaType::f16) set_half(m.d_[i / 2], i % 2, float_to_f16(sums[i]));
        else m.d_[i] = add_integer(m.c_[i], sums[i], shape.saturate);
    }
}

// visit(arguments of a lane, how many elements it holds, where they are in the tile), for a tile of C or D.
template <class Visit>
void each_holder(void* const* arguments, const Wmma& shape, uint32_t row, uint32_t column, TileC& c,
                 Visit visit) {
    const uint32_t held = shape.m * shape.n / WARP;  // 8 neighbours in a row; 2 in the shapes m8n8
    for (uint32_t r = 0; r < std::min(shape.m, TILE_ROWS); ++r)
        for (uint32_t n = 0; n < TILE_COLUMNS; n += held)
            visit(of(arguments, ((row + r) * shape.n + column + n) / held), held, &c.values[r][n]);
}

void multiply_tile(void* const* arguments, const Wmma& shape, const TileA& a, const TileB& b, uint32_t row,
                   uint32_t column) {
    const uint32_t words = shape.k * element_bits(shape.a) / 32;
    TileC c;
    each_holder(arguments, shape, row, column, c, [&](const Wmma& m, uint32_t count, float* sums) {
        first_sums(m, shape.c, count, sums);
    });
    if (is_bits(shape.a)) multiply_bits(c, a, b, words, shape.a == MmaType::b1_xor);
    else multiply_add(c, a, b, shape.k);
    each_holder(arguments, shape, row, column, c, [&](Wmma& m, uint32_t count, const float* sums) {
        set_results(m, shape, count, sums);
    });
}

void wmma_words(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    const Wmma& shape = of(arguments, 0);
    Operands operands;
    gather(operands, arguments, shape);
    TileA a{};
    TileB b;
    for (uint32_t row = 0; row < shape.m; row += TILE_ROWS) {
        for (uint32_t r = 0; r < std::min(shape.m, TILE_ROWS); ++r)
            for (uint32_t w = 0; w < operands.words; ++w) a.words[w][r] = operands.a[row + r][w];
        widen(a, shape.a, operands.words);
        for (uint32_t column = 0; column < shape.n; column += TILE_COLUMNS) {
            for (uint32_t n = 0; n < TILE_COLUMNS; ++n)
                for (uint32_t w = 0; w < operands.words; ++w) b.words[w][n] = operands.b[column + n][w];
            widen(b, shape.b, operands.words);
            multiply_tile(arguments, shape, a, b, row, column);
        }
    }
}

// f64, m8n8k4: lane 4i + k holds A (i, k) and B (k, i), and two neighbours of C's row lane / 4.
void wmma_doubles(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    const auto of = [&](uint32_t lane) -> WmmaDouble& { return *static_cast<WmmaDouble*>(arguments[lane]); };
    for (uint32_t lane = 0; lane < WARP; ++lane)
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t row = lane / 4, column = lane % 4 * 2 + i;
            double sum = of(lane).c[i];
            for (uint32_t k = 0; k < 4; ++k) sum = std::fma(of(row * 4 + k).a, of(column * 4 + k).b, sum);
            of(lane).d[i] = sum;
        }
}

}  // namespace

void wmma_load(Thread& t, const WmmaTile& tile, const char* matrix, int64_t stride, void* registers,
               uint32_t what, uint32_t site) {
    begin_move(t, tile, matrix, stride, what, site);
    char* to = static_cast<char*>(registers);
    each_piece(tile, t.lane, stride, [&](uint32_t at, int64_t place, uint32_t bytes) {
        std::memcpy(to + at, matrix + place, bytes);
    });
}

void wmma_store(Thread& t, const WmmaTile& tile, char* matrix, int64_t stride, const void* registers,
                uint32_t what, uint32_t site) {
    begin_move(t, tile, matrix, stride, what, site);
    const char* from = static_cast<const char*>(registers);
    each_piece(tile, t.lane, stride, [&](uint32_t at, int64_t place, uint32_t bytes) {
        std::memcpy(matrix + place, from + at, bytes);
    });
}

void wmma(Thread& t, Wmma& arguments, uint32_t site) { collective(t, ALL, wmma_words, &arguments, site); }
void wmma(Thread& t, WmmaDouble& arguments, uint32_t site) {
    collective(t, ALL, wmma_doubles, &arguments, site);
}

}  // namespace emu
