// Products of a few rows with panels of a packed weight, in registers: what decoding is made of, and prefill
// where neither tiles nor pairs of bfloat16 serve (packed_tiles.h, packed_floats.h, packed_pairs.h).  Bound
// by reading the weight: one row reads panels in turn or one by one and, where that pays (see Reading), a
// little ahead into the first cache.  Measured, two threads, GB/s, on Sapphire Rapids: one panel at a time
// 15, two 19, four 22, eight 24; eight with lines asked for 512 bytes ahead 27, all the machine gives.
//
// Every sum is formed in the order of k, whatever the number of rows and panels at once: a row alone and
// among others has the same bits here (tiles, from a few rows on, have others).
#pragma once
#include "kernels/packed.h"
#include "kernels/quantized.h"

namespace nn::NN_LEVEL {

constexpr int pair = 2,
              pair_rows = pair * panel_rows;  // panels, and outputs, that are worked on together
// rows with a pair of panels, and pairs of panels with one row, at once
#if defined(__AVX512F__)
constexpr int most_rows = 8, most_pairs = 4;  // 16 sums in 32 registers
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int most_rows = 2, most_pairs = 2;
#else
constexpr int most_rows = 1, most_pairs = 1;
#endif
// Of quantized weights: squares are worth what it takes to form their operands with eight rows, and their
// float sums are touched once in 32 elements of k, so that they may lie in the first cache.
constexpr int most_quantized_rows = multiplies_squares ? 8 : most_rows;

// How one row reads a weight: pairs of panels of a group, whether these are read together or one after the
// other, and whether lines are asked for ahead.  Measured with 576 to 2048 inputs, two threads, GB/s, on
// Zen 5, whose memory gave 82 to 88 at some times and 50 at others:
//                                   f32     bf16    q8_0    q4_0
//     eight panels, asked for       71, 47  68, 44  66, 42  53, 37
//     eight, not asked for          74, 47  69, 47  65, 47  50
//     four, not asked for           77, 48  73, 47  65, 45  42, 38
//     one by one (q4_0: asked for)                  75, 48  61, 46
struct Reading {
    int pairs = most_pairs;
    bool together = true, asks = true;
    explicit Reading(Format format) {
        if (width < 16 || !follows_streams()) return;
        pairs = 2;
        together = !is_quantized(format);
        asks = format == Format::q4_0;
    }
};

template <bool asks>
static inline void ask_for(const uint8_t* place) {
    if (asks) __builtin_prefetch(place, 0, 3);
}

struct Panels {
    const uint8_t* data;  // the first of P
    int64_t bytes;        // of one
};

template <int R, int P>
using Sums = Vec[R][P * lanes];

// add(sum, row, line, register) for every register of P panels' lines and every row
template <class Register, int R, int P, bool asks, class Add>
static inline void line_by_line(Sums<R, P>& sums, const Panels& w, int64_t lines, const Add& add) {
    for (int64_t i = 0; i < lines; ++i) {
        const uint8_t* const at = w.data + i * 64;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            ask_for<asks>(at + p * w.bytes + 512);
#pragma GCC unroll 4
            for (int l = 0; l < lanes; ++l) {
                Register some;
                memcpy(&some, at + p * w.bytes + l * sizeof some, sizeof some);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) add(sums[r][p * lanes + l], r, i, some);
            }
        }
    }
}

template <int R, int P, bool asks>
static inline void products_f32(Sums<R, P>& sums, const Inputs& x, const Panels& w, int64_t k) {
    line_by_line<Vec, R, P, asks>(sums, w, k, [&](Vec& sum_here, int r, int64_t i, const Vec& v) {
        sum_here += x.floats[r * x.stride + i] * v;
    });
}

template <int R, int P, bool asks>
static inline void products_bf16(Sums<R, P>& sums, const Inputs& x, const Panels& w, int64_t k) {
    line_by_line<Bits, R, P, asks>(sums, w, (k + 1) / 2, [&](Vec& sum_here, int r, int64_t u, const Bits& v) {
        const float* const two = x.floats + r * x.stride + 2 * u;
        sum_here += two[0] * float_of(v << 16);
        sum_here += two[1] * float_of(v & 0xffff0000u);
    });
}

// The same of rows as pairs
template <int R, int P, bool asks>
static inline void products_of_pairs(Sums<R, P>& sums, const Inputs& x, const Panels& w, int64_t k) {
    line_by_line<Bits, R, P, asks>(sums, w, (k + 1) / 2, [&](Vec& sum_here, int r, int64_t u, const Bits& v) {
        sum_here = dot2(sum_here, Bits{} + x.pairs[r * x.stride + u], v);
    });
}

// Block b of one row with P panels, line by line of each in turn; quants, scales: of the first panel, the
// others' w.bytes apart.  Lines that lie `ahead` are asked for.
template <Format format, int P, bool asks>
static inline void one_block(Sums<1, P>& sums, const Inputs& x, int64_t b, const Panels& w,
                             const uint8_t* quants, const uint8_t* scales, int64_t ahead) {
    Whole dots[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) dots[p] = start_of<format>(x.sums[b]);
#pragma GCC unroll 8
    for (int64_t i = 0; i < Blocks<format>::quants_bytes; i += 64)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const uint8_t* const at = quants + p * w.bytes + i;
            ask_for<asks>(at + ahead);
            Bits line;
            memcpy(&line, at, sizeof line);
            dots[p] = dot_register<format>(dots[p], line, x.quants + b * block + i / 16);
        }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
        if (b % 2 == 0) ask_for<asks>(scales + p * w.bytes + ahead);
        sums[0][p] += as_floats(dots[p]) * (load_half(scales + p * w.bytes) * x.scales[b]);
    }
}

// The same of R rows, or where a line is several registers, panel after panel
template <Format format, int R, int P, bool asks>
static inline void block_by_block(Sums<R, P>& sums, const Inputs& x, int64_t b, const Panels& w,
                                  const uint8_t* quants, const uint8_t* scales, int64_t ahead) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
        const uint8_t *const from = quants + p * w.bytes, *const factors = scales + p * w.bytes;
        if (asks) {
            for (int64_t i = 0; i < Blocks<format>::quants_bytes; i += 64)
                ask_for<asks>(from + i + ahead);
            if (b % 2 == 0) ask_for<asks>(factors + ahead);
        }
#pragma GCC unroll 4
        for (int l = 0; l < lanes; ++l) {
            Whole dots[R];
            block_dots<format, R>(dots, x, b, from + l * sizeof(Vec));
            const Vec scale = load_half(factors + l * width * 2);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sums[r][p * lanes + l] += as_floats(dots[r]) * (scale * x.scales[r * x.blocks + b]);
        }
    }
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
// The same of R rows, two by two; sums are squares until `as_rows`: those of two rows with a register's first
// two outputs stand in the first of these rows, those with its last two in the second.
template <Format format, int R, int P>
static inline void block_in_squares(Sums<R, P>& sums, const Inputs& x, int64_t b, const Panels& w,
                                    const uint8_t* quants, const uint8_t* scales) {
    Int of_rows[R / 2][block / 8];
    Vec factors[R / 2];
#pragma GCC unroll 4
    for (int i = 0; i < R / 2; ++i) {
        const int64_t at = 2 * i * x.blocks + b;
        two_rows(of_rows[i], x.quants + at * block, x.blocks * block);
        const float one = x.scales[at], other = x.scales[at + x.blocks];
        factors[i] = Vec{one, one, other, other};
    }
#pragma GCC unroll 1
    for (int j = 0; j < P * lanes; ++j) {
        const int64_t panel = j / lanes * w.bytes, l = j % lanes;
        Int of_outputs[block / 8][2];
        two_outputs<format>(of_outputs, quants + panel + l * (int64_t)sizeof(Vec));
        const Vec scale = load_half(scales + panel + l * width * 2);
        const Vec scale_of[2] = {first_halves(scale, scale), second_halves(scale, scale)};
#pragma GCC unroll 4
        for (int i = 0; i < R / 2; ++i)
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k)
                sums[2 * i + k][j] +=
                    as_floats(square(of_rows[i], of_outputs, k)) * (scale_of[k] * factors[i]);
    }
}

template <int R, int P>
static inline void as_rows(Sums<R, P>& sums) {
    for (int i = 0; i < R; i += 2)
        for (int j = 0; j < P * lanes; ++j) {
            const Vec first = sums[i][j], last = sums[i + 1][j];
            sums[i][j] = first_halves(first, last);
            sums[i + 1][j] = second_halves(first, last);
        }
}
#endif

// Asked for ahead, if at all: the next two blocks, at a panel's end the first of the panels behind these; by
// a panel alone what lies eight blocks on, but for an odd block at its end.
template <Format format, int R, int P, bool asks>
static inline void products_quantized(Sums<R, P>& sums, const Inputs& x, const Panels& w) {
    using Where = Blocks<format>;
    const auto add = [&](int64_t b, const uint8_t* quants, const uint8_t* scales, int64_t ahead) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
        if constexpr (R > 1) return block_in_squares<format, R, P>(sums, x, b, w, quants, scales);
#endif
        if constexpr (R == 1 && lanes == 1)
            one_block<format, P, asks>(sums, x, b, w, quants, scales, ahead);
        else
            block_by_block<format, R, P, asks>(sums, x, b, w, quants, scales, ahead);
    };
    const uint8_t* at = w.data;
    int64_t b = 0;
    for (; b + 2 <= x.blocks; b += 2, at += Where::two) {
        const bool more = b + 2 < x.blocks;
        const int64_t ahead = P == 1 ? 4 * Where::two : more ? Where::two : P * w.bytes - (at - w.data);
        const uint8_t* const scales = at + 2 * Where::quants_bytes;
        add(b, at, scales, ahead);
        add(b + 1, at + Where::quants_bytes, scales + Where::scales_bytes, ahead);
    }
    if (b < x.blocks) add(b, at, at + Where::quants_bytes, P * w.bytes - (at - w.data));
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (R > 1) as_rows<R, P>(sums);
#endif
}

// to[R][ld]: R rows of x, from `x` on, times P panels
template <int R, int P, bool asks = R == 1>  // of more than most_rows only quantized weights
static inline void products(float* to, int64_t ld, const Inputs& x, const Packed& weight, const Panels& w) {
    Sums<R, P> sums = {};
    switch (weight.format) {
        case Format::f32:
            if constexpr (R <= most_rows) products_f32<R, P, asks>(sums, x, w, weight.inputs);
            break;
        case Format::bf16:
            if constexpr (R <= most_rows) {
                if (multiplies_pairs && x.pairs)
                    products_of_pairs<R, P, asks>(sums, x, w, weight.inputs);
                else
                    products_bf16<R, P, asks>(sums, x, w, weight.inputs);
            }
            break;
        case Format::q8_0:
            products_quantized<Format::q8_0, R, P, asks>(sums, x, w);
            break;
        default:
            products_quantized<Format::q4_0, R, P, asks>(sums, x, w);
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < P * lanes; ++i) store(to + r * ld + i * width, sums[r][i]);
}

template <int R>
static inline void products_of(float* to, int64_t ld, const Inputs& x, const Packed& weight, const Panels& w,
                               int count) {
    if (count == pair)
        products<R, pair>(to, ld, x, weight, w);
    else
        products<R, 1>(to, ld, x, weight, w);
}

// to[rows][pair_rows]: any rows with panels [first, first + count) of the weight
static inline void row_products(float* to, const Inputs& x, int64_t rows_here, const Packed& weight,
                                int64_t first, int count) {
    constexpr int of_any = most_quantized_rows;
    const int most = is_quantized(weight.format) ? most_quantized_rows : most_rows;
    const int64_t bytes_of_one = weight.panel_bytes();
    const Panels w = {weight.data + first * bytes_of_one, bytes_of_one};
    int64_t r = 0;
    while (r < rows_here) {
        const int64_t left = rows_here - r;
        float* const at = to + r * pair_rows;
        const Inputs here = x.from(r);
        if (most >= 8 && left >= 8) {
            products_of<of_any >= 8 ? 8 : 1>(at, pair_rows, here, weight, w, count), r += 8;
        } else if (most >= 4 && left >= 4) {
            products_of<of_any >= 4 ? 4 : 1>(at, pair_rows, here, weight, w, count), r += 4;
        } else if (most >= 2 && left >= 2) {
            products_of<of_any >= 2 ? 2 : 1>(at, pair_rows, here, weight, w, count), r += 2;
        } else {
            products_of<1>(at, pair_rows, here, weight, w, count), r += 1;
        }
    }
}

// to[rows][pair_rows] += rows of x, k elements of each, times P panels of float32
template <int R, int P>
static inline void add_products_f32(float* to, const Inputs& x, const Panels& w, int64_t rows_here,
                                    int64_t k) {
    int64_t r = 0;
    for (; r + R <= rows_here; r += R) {
        Sums<R, P> sums;
        float* const at = to + r * pair_rows;
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < P * lanes; ++j) sums[i][j] = load(at + i * pair_rows + j * width);
        products_f32<R, P, false>(sums, x.from(r), w, k);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < P * lanes; ++j) store(at + i * pair_rows + j * width, sums[i][j]);
    }
    if constexpr (R > 1)
        if (r < rows_here)
            add_products_f32<R / 2, P>(to + r * pair_rows, x.from(r), w, rows_here - r, k);
}

// to[rows][pair_rows]: many rows with panels [first, first + count) of float32, in blocks of k whose part of
// the panels stays in the first cache while the rows pass by
static inline void many_rows_f32(float* to, const Inputs& x, int64_t rows_here, const Packed& weight,
                                 int64_t first, int count) {
    constexpr int64_t most = 192;
    memset(to, 0, (size_t)(rows_here * pair_rows) * sizeof(float));
    for (int64_t k = 0; k < weight.inputs; k += most) {
        const int64_t here = weight.inputs - k < most ? weight.inputs - k : most;
        const Panels w = {weight.data + first * weight.panel_bytes() + k * 64, weight.panel_bytes()};
        const Inputs part = {.floats = x.floats + k, .stride = x.stride};
        if (count == pair)
            add_products_f32<most_rows, pair>(to, part, w, rows_here, here);
        else
            add_products_f32<most_rows, 1>(to, part, w, rows_here, here);
    }
}

// to[panels][16]: one row with panels [first, first + count), P at once while there are so many
template <int P, bool asks>
static inline void panels_at_once(float* to, const Inputs& x, const Packed& weight, int64_t first,
                                  int64_t count) {
    const int64_t bytes_of_one = weight.panel_bytes();
    for (; count >= P; first += P, count -= P, to += P * panel_rows)
        products<1, P, asks>(to, 0, x, weight, {weight.data + first * bytes_of_one, bytes_of_one});
    if constexpr (P > 1)
        if (count > 0) panels_at_once<P == 2 ? 1 : P - 2, asks>(to, x, weight, first, count);
}

// Pairs of panels, cut in groups of like size, as many for each thread.
struct Groups {
    int64_t pairs, count;
    Reading reading;
    Groups(int64_t all, Format format) : pairs(all), reading(format) {
        count = (all + reading.pairs - 1) / reading.pairs;
        const int64_t together = threads(), even = (count + together - 1) / together * together;
        if (even <= pairs) count = even;
    }
    int64_t begin(int64_t group) const { return pairs * group / count; }
};

// write(pair, its 32 sums) of one row with a group's pairs
template <class Write>
static inline void one_row(const Inputs& x, const Packed& weight, const Groups& groups, int64_t group,
                           const Write& write) {
    alignas(64) float sums[most_pairs * pair_rows];
    const int64_t first = groups.begin(group), last = groups.begin(group + 1);
    const int64_t left = weight.panels() - first * pair, all = (last - first) * pair;
    const int64_t here = left < all ? left : all;
    constexpr int many = most_pairs * pair;
    if (groups.reading.together && groups.reading.asks)
        panels_at_once<many, true>(sums, x, weight, first * pair, here);
    else if (groups.reading.together)
        panels_at_once<many, false>(sums, x, weight, first * pair, here);
    else if (groups.reading.asks)
        panels_at_once<1, true>(sums, x, weight, first * pair, here);
    else
        panels_at_once<1, false>(sums, x, weight, first * pair, here);
    for (int64_t at = first; at < last; ++at) write(at, sums + (at - first) * pair_rows);
}

}  // namespace nn::NN_LEVEL
