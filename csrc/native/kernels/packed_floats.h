// Products of many rows with a packed float32 weight by AMX.  Both are split in three bfloat16 parts
// (gemm/tiles.h): the rows once, for all threads; a group of panels by the thread that multiplies it, once
// for all rows.  A panel [k][16] is read as what it is, rows of k: nothing is transposed.
#pragma once
#include "kernels/packed_rows.h"

#if defined(__AMX_BF16__)
#include "core/blas.h"
#include "kernels/gemm/tiles.h"

namespace nn::NN_LEVEL {

constexpr int64_t step_words = 3 * 16 * 32;  // of 32 rows, or outputs, and 32 elements of k, in parts
constexpr int64_t k_of_tiles = 768;     // of a sum at a time: what is split stays in the second cache
constexpr int64_t pairs_of_floats = 3;  // pairs of panels that the rows pass by together

struct FloatRows {
    Inputs x;
    int64_t rows, steps;  // of 32 elements
    Scratch<uint32_t> data;
    Scratch<Range> range;  // of 32 rows each

    FloatRows(const Inputs& inputs, int64_t count, int64_t k)
        : x(inputs),
          rows(count),
          steps((k + 31) / 32),
          data(nn::NN_LEVEL::panels(count, mr) * steps * step_words),
          range(nn::NN_LEVEL::panels(count, mr)) {
        const Operand<float> from{x.floats, x.stride, 1};
        parallel_for(nn::NN_LEVEL::panels(rows, mr), (double)(k * mr) * 16, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p)
                range[p] = pack_panel<true>(panel(p), from, p * mr, rows, k);
        });
    }
    uint32_t* panel(int64_t p) const { return data + p * steps * step_words; }
};

// One step of a panel, [32][16]
static inline void split_step(uint32_t* to, const float* from, Bits& seen) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; ++i) {
        const Vec low = load(from + i * panel_rows), high = load(from + (16 + i) * panel_rows);
        seen = magnitude(magnitude(seen, low), high);
        Bits three[3];
        split(three, low, high);
        for (int p = 0; p < 3; ++p) memcpy(to + p * 16 * 32 + i * 32, &three[p], sizeof(Bits));
    }
}

// [k/32][part][16 pairs][32 columns] of panels [first, first + count <= 2) of the weight, k from `start` on
static inline Range split_panels(uint32_t* to, const Packed& weight, int64_t first, int64_t count,
                                 int64_t start, int64_t k) {
    Range range;
    for (int64_t half = 0; half < pair; ++half) {
        const int64_t place = half < count ? first + half : first;
        const uint8_t* const panel = weight.data + place * weight.panel_bytes();
        const Operand<float> from{(const float*)(const void*)panel + start * panel_rows, 1, panel_rows};
        Bits seen[16] = {};
        uint32_t* out = to + half * 16;
        for (Block at = {0, half < count ? 16 : 0, 0, k}; at.left > 0; at.k += 32, at.left -= 32) {
            if (at.rows && at.left >= 32)
                split_step(out, from.data + at.k * panel_rows, seen[0]);
            else
                pack_block<false>(out, from, at, seen);
            out += step_words;
        }
        for (int i = 0; i < 16; ++i) range.add((uint32_t)seen[0][i]);
    }
    return range;
}

// Panels that are split next, asked for while tiles work: `lines` of 64 bytes of each.
struct Ahead {
    const uint8_t* from = nullptr;
    int64_t distance = 0, lines = 0, left = 0, line = 0, each = 0;
    Ahead() = default;
    Ahead(const uint8_t* first, int64_t panel_bytes, int64_t count, int64_t lines_of_one, int64_t times)
        : from(first),
          distance(panel_bytes),
          lines(lines_of_one),
          left(count * lines_of_one),
          each(panels(left, times > 0 ? times : 1)) {}
    void some() {
        for (int64_t i = 0; i < each && left > 0; ++i, --left) {
            __builtin_prefetch(from + line * 64, 0, 2);
            if (++line == lines) line = 0, from += distance;
        }
    }
};

// Rows of sums that are written while tiles work on the next ones.
template <class Write>
struct Behind {
    const Write* write;
    Ahead* ahead;
    const float* sums = nullptr;
    int64_t row = 0, last = 0, at = 0, each = 0;
    void begin(int64_t steps) { each = panels(last - row, steps > 0 ? steps : 1); }
    void some() {
        ahead->some();
        for (int64_t i = 0; i < each && row < last; ++i) one();
    }
    void end() {
        while (row < last) one();
    }
    void one() {
        (*write)(row++, at, sums);
        sums += pair_rows;
    }
};

// Some rows times some pairs of panels
template <class Write>
struct FloatTask {
    const Packed& weight;
    const FloatRows& a;
    const Write& write;
    int64_t first_row, last_row, first_pair, last_pair;

    int64_t panels_of(int64_t at) const { return at * pair + 1 < weight.panels() ? pair : 1; }

    // One block of k; what is not fit for tiles is formed by multiply-adds in the last one
    void block(Vec* sums, uint32_t* split, Range* seen, int64_t start, int64_t k, bool is_last,
               Behind<Write>& behind) const {
        const int64_t pairs = last_pair - first_pair, words = (k + 31) / 32 * step_words;
        for (int64_t p = 0; p < pairs; ++p)
            seen[p].add(split_panels(split + p * words, weight, (first_pair + p) * pair,
                                     panels_of(first_pair + p), start, k));
        for (int64_t r = first_row; r < last_row; r += mr)
            for (int64_t p = 0; p < pairs; ++p) {
                const int64_t place = (r - first_row) / mr * pairs + p;
                auto& here = *reinterpret_cast<Vec(*)[mr][nv]>(sums + place * mr * nv);
                const int64_t last = r + mr < last_row ? r + mr : last_row;
                if (is_last && !fits(a.range[r / mr], seen[p], weight.inputs)) {
                    behind.end();
                    many_rows_f32((float*)&here, a.x.from(r), last - r, weight, (first_pair + p) * pair,
                                  (int)panels_of(first_pair + p));
                } else {
                    micro_kernel<float>(here, a.panel(r / mr) + start / 32 * step_words, split + p * words,
                                        words / step_words * pair_step, start > 0, behind);
                }
                if (is_last) behind = {&write, behind.ahead, (const float*)&here, r, last, first_pair + p};
            }
    }
};

// How a weight is cut: groups of pairs of panels, blocks of k.
struct FloatCut {
    const Packed& weight;
    int64_t k, block, pairs, groups;

    explicit FloatCut(const Packed& all)
        : weight(all),
          k(all.inputs),
          block(panels(panels(k, panels(k, k_of_tiles)), 32) * 32),
          pairs(panels(all.panels(), pair)),
          groups(panels(pairs, pairs_of_floats)) {}
    int64_t first(int64_t group) const { return group * pairs_of_floats; }
    int64_t last(int64_t group) const {
        return first(group) + pairs_of_floats < pairs ? first(group) + pairs_of_floats : pairs;
    }
    int64_t length(int64_t start) const { return k - start < block ? k - start : block; }
    // what a group reads from k = `start` on, in so many times
    Ahead ahead(int64_t group, int64_t start, int64_t times) const {
        const int64_t bytes = weight.panel_bytes(), from = first(group) * pair;
        const int64_t end = last(group) * pair < weight.panels() ? last(group) * pair : weight.panels();
        return {weight.data + from * bytes + start * 64, bytes, end - from, length(start), times};
    }
};

template <class Write>
static inline void floats_by_tiles(const Packed& weight, const Inputs& x, int64_t rows_here,
                                   int64_t together, const Write& write) {
    const FloatRows a(x, rows_here, weight.inputs);
    const FloatCut cut(weight);
    const int64_t most = rows_here < together ? panels(rows_here, mr) * mr : together;
    const double work = (double)(cut.k * pairs_of_floats * pair_rows * most) / 12;
    parallel_for(cut.groups * panels(rows_here, together), work, [&](int64_t begin, int64_t end) {
        const Tiles tiles_of_this_thread;
        const Scratch<uint32_t> split(pairs_of_floats * cut.block / 32 * step_words);
        const Scratch<Vec> sums(pairs_of_floats * most * nv);
        Ahead ahead;
        Behind<Write> behind = {&write, &ahead};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % cut.groups, row = unit / cut.groups * together;
            const int64_t last_row = row + together < rows_here ? row + together : rows_here;
            const FloatTask<Write> task = {weight, a,        write,
                                           row,    last_row, cut.first(group),
                                           cut.last(group)};
            const int64_t times = panels(last_row - row, mr) * (cut.last(group) - cut.first(group));
            Range seen[pairs_of_floats];
            for (int64_t start = 0; start < cut.k; start += cut.block) {
                const bool is_last = start + cut.block >= cut.k;
                const int64_t next = (is_last ? unit + 1 : unit) % cut.groups;
                ahead = {};
                if (!is_last || unit + 1 < end)
                    ahead = cut.ahead(next, is_last ? 0 : start + cut.block, times * panels(cut.block, 32));
                task.block(sums.data, split.data, seen, start, cut.length(start), is_last, behind);
            }
        }
        behind.end();
    });
}

}  // namespace nn::NN_LEVEL
#endif
