// Products of many rows of bfloat16 with a packed bfloat16 weight, in registers, two elements of k at a time
// (gemm/registers.h): what prefill is made of on every level but that of tiles.  A packed panel holds pairs
// along k as the micro-kernel wants them, so only the rows are packed, once for all threads.  Sums are formed
// in the order of k, as in packed_rows.h: with the same bits.
#pragma once
#include "kernels/packed_rows.h"

#if !defined(__AMX_BF16__)
#include "kernels/gemm/registers.h"

namespace nn::NN_LEVEL {

constexpr int64_t pairs_of_block = 160;  // along k: two panels and mr rows fit 32 KB

struct PairRows {
    int64_t rows, pairs;
    Scratch<uint32_t> data;

    explicit PairRows(const Rows<const bf16>& x)
        : rows(x.rows), pairs((x.cols + 1) / 2), data(panels(x.rows, mr) * mr * pairs) {
        const Operand<bf16> from{x.data, x.stride, 1};
        const double bytes_each = (double)(x.cols * mr) * 8;
        parallel_for(panels(rows, mr), bytes_each, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p)
                pack_panel<true>(data + p * mr * pairs, from, p * mr, rows, x.cols);
        });
    }
    const uint32_t* panel(int64_t row) const { return data + row * pairs; }  // row: a multiple of mr
};

// to[R][pair_rows] (+)= R rows times the outputs from `output` on of a pair of panels, `apart` words apart
template <int R>
static inline void some_rows(float* to, const uint32_t* a, const uint32_t* b, int64_t apart, int64_t pairs,
                             int output, bool add) {
    Vec own[R][nv];
    for (int i = 0; i < R; ++i)
        for (int v = 0; v < nv; ++v)
            own[i][v] = add ? load(to + i * pair_rows + output + v * width) : Vec{};
    const int64_t between = width == panel_rows ? apart : width;
    add_dots<R, panel_rows>(own, a, b + output / panel_rows * apart + output % panel_rows, between, pairs);
    for (int i = 0; i < R; ++i)
        for (int v = 0; v < nv; ++v) store(to + i * pair_rows + output + v * width, own[i][v]);
}

// What is asked for while other work is done: `lines` of 64 bytes from `from` on
struct Coming {
    const uint8_t* from = nullptr;
    int64_t lines = 0;

    void some(int64_t count) {
        for (; count > 0 && lines > 0; --count, --lines, from += 64) __builtin_prefetch(from, 0, 2);
    }
};

// to[rows][pair_rows]: rows [first, first + count) with panels [at, at + number <= 2) of the weight; room for
// rows up to a multiple of mr
static inline void many_rows_bf16(float* to, const PairRows& x, int64_t first, int64_t count,
                                  const Packed& weight, int64_t at, int number, Coming coming) {
    const int64_t bytes_of_one = weight.panel_bytes();
    const uint32_t* const b = (const uint32_t*)(const void*)(weight.data + at * bytes_of_one);
    const int64_t apart = number == pair ? bytes_of_one / 4 : 0;  // a last panel is its own neighbour
    const int64_t blocks = panels(x.pairs, pairs_of_block), longest = panels(x.pairs, blocks);
    const int64_t each = panels(coming.lines, panels(count, mr) * blocks);
    for (int64_t k = 0; k < x.pairs; k += longest) {
        const int64_t here = x.pairs - k < longest ? x.pairs - k : longest;
        const uint32_t* const from = b + k * panel_rows;
        for (int64_t r = 0; r < count; r += mr) {
            const uint32_t* const a = x.panel(first + r) + k * mr;
            float* const sums = to + r * pair_rows;
            coming.some(each);
            for (int output = 0; output < number * panel_rows; output += nr) {
                if (mr > 8 && count - r <= 4)
                    some_rows<4>(sums, a, from, apart, here, output, k > 0);
                else if (mr > 8 && count - r <= 8)
                    some_rows<mr < 8 ? mr : 8>(sums, a, from, apart, here, output, k > 0);
                else
                    some_rows<mr>(sums, a, from, apart, here, output, k > 0);
            }
        }
    }
}

}  // namespace nn::NN_LEVEL
#endif
