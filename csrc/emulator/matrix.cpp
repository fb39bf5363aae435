// ldmatrix, stmatrix, movmatrix and mma.sync.  Layouts are those of the figures in the PTX manual; for all
// but m8n8k4 of f16 they are one formula.  With g = lane / 4, t = lane % 4, e the element within a 32-bit
// register, P elements per register:
//     A register r: row g + 8 (r odd), k = 4P (r / 2) + P t + e
//     B register r: k = 4P r + P t + e, column g
//     C and D element i: row g + 8 (i / 2), column 2t + i % 2
// So a register is a whole "depth word": number 4 (r / 2) + t of A's row, number 4r + t of B's column.
#include "matrix_tiles.h"

namespace emu {
namespace {

constexpr uint32_t ALL = 0xffffffffu;

// ---- ldmatrix, stmatrix, movmatrix ------------------------------------------------------------------------

using Matrix = uint16_t[8][8];
template <class T> T& of(void* const* arguments, uint32_t lane) { return *static_cast<T*>(arguments[lane]); }

// Register of lane L: elements (L / 4, 2 (L % 4)) and the one right of it; transposed: (2 (L % 4), L / 4) and
// the one below.
template <bool TRANSPOSED> uint32_t fragment(const Matrix& m, uint32_t lane) {
    const uint32_t g = lane / 4, t = lane % 4 * 2;
    if (TRANSPOSED) return m[t][g] | static_cast<uint32_t>(m[t + 1][g]) << 16;
    return m[g][t] | static_cast<uint32_t>(m[g][t + 1]) << 16;
}
template <bool TRANSPOSED> void set_fragment(Matrix& m, uint32_t lane, uint32_t value) {
    const uint32_t g = lane / 4, t = lane % 4 * 2;
    const auto low = static_cast<uint16_t>(value), high = static_cast<uint16_t>(value >> 16);
    (TRANSPOSED ? m[t][g] : m[g][t]) = low;
    (TRANSPOSED ? m[t + 1][g] : m[g][t + 1]) = high;
}

template <uint32_t COUNT, bool TRANSPOSED>
void load_matrices(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    Matrix m[COUNT];
    for (uint32_t i = 0; i < COUNT; ++i)
        for (uint32_t r = 0; r < 8; ++r)
            std::memcpy(m[i][r], of<MatrixRows>(arguments, 8 * i + r).row, sizeof m[i][r]);
    for (uint32_t lane = 0; lane < WARP; ++lane)
        for (uint32_t i = 0; i < COUNT; ++i)
            of<MatrixRows>(arguments, lane).registers[i] = fragment<TRANSPOSED>(m[i], lane);
}

template <uint32_t COUNT, bool TRANSPOSED>
void store_matrices(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    Matrix m[COUNT];
    for (uint32_t lane = 0; lane < WARP; ++lane)
        for (uint32_t i = 0; i < COUNT; ++i)
            set_fragment<TRANSPOSED>(m[i], lane, of<MatrixRows>(arguments, lane).registers[i]);
    for (uint32_t i = 0; i < COUNT; ++i)
        for (uint32_t r = 0; r < 8; ++r)
            std::memcpy(of<MatrixRows>(arguments, 8 * i + r).row, m[i][r], sizeof m[i][r]);
}

void transpose_matrix(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    Matrix m;
    for (uint32_t lane = 0; lane < WARP; ++lane) set_fragment<false>(m, lane, of<uint32_t>(arguments, lane));
    for (uint32_t lane = 0; lane < WARP; ++lane) of<uint32_t>(arguments, lane) = fragment<true>(m, lane);
}

// ---- mma --------------------------------------------------------------------------------------------------

struct Tiles { TileA a; TileB b; TileC c; };

// visit(g, t, product) for all lanes 4g + t; unrolled so that places within a tile cost no arithmetic.
template <class Visit> inline void each_lane(Mma* const* products, Visit visit) {
    for (uint32_t g = 0; g < 8; ++g) {
        visit(g, 0, *products[4 * g]);
        visit(g, 1, *products[4 * g + 1]);
        visit(g, 2, *products[4 * g + 2]);
        visit(g, 3, *products[4 * g + 3]);
    }
}

template <uint32_t HALVES, uint32_t STEPS>      // 8 rows of A each; B registers, each a step of 4 depth words
void gather(Tiles& tiles, Mma* const* products) {
    each_lane(products, [&](uint32_t g, uint32_t t, const Mma& m) {
        for (uint32_t r = 0; r < STEPS * HALVES; ++r)
            tiles.a.words[r / HALVES * 4 + t][g + r % HALVES * 8] = m.a[r];
        for (uint32_t r = 0; r < STEPS; ++r) tiles.b.words[r * 4 + t][g] = m.b[r];
    });
}

float from_f16_pair(uint32_t pair, uint32_t index) {
    return f16_to_float(static_cast<uint16_t>(pair >> index * 16));
}
uint32_t to_f16_pair(const float* two) {
    return float_to_f16(two[0]) | static_cast<uint32_t>(float_to_f16(two[1])) << 16;
}

void begin_sums(TileC& c, Mma* const* products, MmaType kind) {
    if (kind == MmaType::f32) {
        each_lane(products, [&](uint32_t g, uint32_t t, const Mma& m) {
            for (uint32_t h = 0; h < 2; ++h) std::memcpy(&c.values[g + 8 * h][2 * t], m.c + 2 * h, 8);
        });
    } else if (kind == MmaType::f16) {
        each_lane(products, [&](uint32_t g, uint32_t t, const Mma& m) {
            for (uint32_t i = 0; i < 4; ++i)
                c.values[g + i / 2 * 8][2 * t + i % 2] = from_f16_pair(m.c[i / 2], i % 2);
        });
    } else {
        std::memset(&c, 0, sizeof c);  // integers: c is added at the end, exactly
    }
}

void finish_sums(const TileC& c, Mma* const* products, const MmaShape& shape) {
    if (shape.sum == MmaType::f32) {
        each_lane(products, [&](uint32_t g, uint32_t t, Mma& m) {
            for (uint32_t h = 0; h < 2; ++h) std::memcpy(m.c + 2 * h, &c.values[g + 8 * h][2 * t], 8);
        });
    } else if (shape.sum == MmaType::f16) {
        each_lane(products, [&](uint32_t g, uint32_t t, Mma& m) {
            for (uint32_t h = 0; h < 2; ++h) m.c[h] = to_f16_pair(&c.values[g + 8 * h][2 * t]);
        });
    } else {
        each_lane(products, [&](uint32_t g, uint32_t t, Mma& m) {
            for (uint32_t i = 0; i < shape.m / 4u; ++i)
                m.c[i] = add_integer(m.c[i], c.values[g + i / 2 * 8][2 * t + i % 2], shape.saturate);
        });
    }
}

void multiply(Tiles& tiles, Mma* const* products, const MmaShape& shape) {
    const uint32_t words = shape.k * element_bits(shape.a) / 32;      // of depth: 4 or 8
    if (shape.m < TILE_ROWS) gather<1, 1>(tiles, products);
    else if (words == 4) gather<2, 1>(tiles, products);
    else gather<2, 2>(tiles, products);
    if (is_bits(shape.a)) {
        multiply_bits(tiles.c, tiles.a, tiles.b, words, shape.a == MmaType::b1_xor);
    } else {
        begin_sums(tiles.c, products, shape.sum);
        widen(tiles.a, shape.a, words);
        widen(tiles.b, shape.b, words);
        multiply_add(tiles.c, tiles.a, tiles.b, shape.k);
    }
    finish_sums(tiles.c, products, shape);
}

void mma_words(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    Mma* products[WARP];
    for (uint32_t lane = 0; lane < WARP; ++lane) products[lane] = static_cast<Mma*>(arguments[lane]);
    const MmaShape shape = *products[0]->shape;
    Tiles tiles;
    if (shape.m < TILE_ROWS) std::memset(&tiles.a.words, 0, sizeof tiles.a.words);     // no lower half
    for (uint32_t i = 0; i < shape.count; ++i) {
        multiply(tiles, products, shape);
        for (Mma*& product : products) ++product;
    }
}

// f64: the same layout with one element per register.
void mma_doubles(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    const uint32_t rows = of<MmaDouble>(arguments, 0).m, halves = rows / 8;
    const uint32_t depth = of<MmaDouble>(arguments, 0).k;
    double a[16][16], b[16][8];                                       // [depth][row], [depth][column]
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        const MmaDouble& m = of<MmaDouble>(arguments, lane);
        const uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t r = 0; r < depth / 4 * halves; ++r) a[r / halves * 4 + t][g + r % halves * 8] = m.a[r];
        for (uint32_t r = 0; r < depth / 4; ++r) b[r * 4 + t][g] = m.b[r];
    }
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        MmaDouble& m = of<MmaDouble>(arguments, lane);
        for (uint32_t i = 0; i < 2 * halves; ++i) {
            const uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = m.c[i];
            for (uint32_t k = 0; k < depth; ++k) sum = std::fma(a[k][row], b[k][column], sum);
            m.c[i] = sum;
        }
    }
}

// ---- m8n8k4 of f16: four products at once -----------------------------------------------------------------
// Quad pair q is the lanes 4q..4q+3 and 16+4q..16+4q+3.  Where a lane holds a whole row (or column) of 4, it
// is number lane % 4 + 4 (lane >= 16); otherwise it holds 4 of one k, k = lane % 4, the upper lanes the upper
// 4.

constexpr uint32_t half_of(uint32_t lane) { return lane / 16 * 4; }

// MmaType i of the four that a lane holds of A (or of B, which is A's mirror image) goes to [k][row].
void place_quad(float (*matrix)[8], uint32_t lane, bool whole_line, const uint32_t* registers) {
    for (uint32_t i = 0; i < 4; ++i) {
        const float value = from_f16_pair(registers[i / 2], i % 2);
        const uint32_t line = half_of(lane) + (whole_line ? lane % 4 : i), k = whole_line ? i : lane % 4;
        matrix[k][line] = value;
    }
}

// Where element i of C or D stands: f16 holds a row of 8, f32 is spread in pairs.
uint32_t quad_row(MmaType kind, uint32_t lane, uint32_t i) {
    return half_of(lane) + (kind == MmaType::f16 ? lane % 4 : (lane & 1) + (i & 2));
}
uint32_t quad_column(MmaType kind, uint32_t lane, uint32_t i) {
    return kind == MmaType::f16 ? i : (i & 4) + (lane & 2) + (i & 1);
}

float quad_sum(const MmaQuads& m, uint32_t i) {
    if (m.c == MmaType::f32) return bits<float>(m.c_[i]);
    return from_f16_pair(m.c_[i / 2], i % 2);
}

void mma_quad(void* const* arguments, uint32_t quad) {
    float a[4][8], b[4][8], sums[8][8];
    for (uint32_t j = 0; j < 8; ++j) {
        const uint32_t lane = quad * 4 + j % 4 + j / 4 * 16;
        const MmaQuads& m = of<MmaQuads>(arguments, lane);
        place_quad(a, lane, m.a_row, m.a_);
        place_quad(b, lane, !m.b_row, m.b_);
        for (uint32_t i = 0; i < 8; ++i)
            sums[quad_row(m.c, lane, i)][quad_column(m.c, lane, i)] = quad_sum(m, i);
    }
    for (uint32_t k = 0; k < 4; ++k)
        for (uint32_t row = 0; row < 8; ++row)
            for (uint32_t n = 0; n < 8; ++n) sums[row][n] += a[k][row] * b[k][n];
    for (uint32_t j = 0; j < 8; ++j) {
        const uint32_t lane = quad * 4 + j % 4 + j / 4 * 16;
        MmaQuads& m = of<MmaQuads>(arguments, lane);
        float d[8];
        for (uint32_t i = 0; i < 8; ++i) d[i] = sums[quad_row(m.d, lane, i)][quad_column(m.d, lane, i)];
        if (m.d == MmaType::f32) std::memcpy(m.d_, d, sizeof d);
        else for (uint32_t i = 0; i < 4; ++i) m.d_[i] = to_f16_pair(d + 2 * i);
    }
}

void mma_quads(uint32_t, Thread* const*, void* const* arguments, uint32_t) {
    for (uint32_t quad = 0; quad < 4; ++quad) mma_quad(arguments, quad);
}

}  // namespace

void ldmatrix(Thread& t, uint32_t count, bool transposed, MatrixRows& rows, uint32_t site) {
    static constexpr Collective operations[3][2] = {{load_matrices<1, false>, load_matrices<1, true>},
                                                    {load_matrices<2, false>, load_matrices<2, true>},
                                                    {load_matrices<4, false>, load_matrices<4, true>}};
    collective(t, ALL, operations[count / 2][transposed], &rows, site);
}

void stmatrix(Thread& t, uint32_t count, bool transposed, MatrixRows& rows, uint32_t site) {
    static constexpr Collective operations[3][2] = {{store_matrices<1, false>, store_matrices<1, true>},
                                                    {store_matrices<2, false>, store_matrices<2, true>},
                                                    {store_matrices<4, false>, store_matrices<4, true>}};
    collective(t, ALL, operations[count / 2][transposed], &rows, site);
}

uint32_t movmatrix(Thread& t, uint32_t value, uint32_t site) {
    collective(t, ALL, transpose_matrix, &value, site);
    return value;
}

void mma(Thread& t, Mma& arguments, uint32_t site) { collective(t, ALL, mma_words, &arguments, site); }
void mma(Thread& t, MmaDouble& arguments, uint32_t site) {
    collective(t, ALL, mma_doubles, &arguments, site);
}
void mma(Thread& t, MmaQuads& arguments, uint32_t site) { collective(t, ALL, mma_quads, &arguments, site); }

}  // namespace emu
