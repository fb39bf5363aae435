// A product with a packed weight, in any number of rows, on all threads: what
// is to be done with the sums is the caller's.
#pragma once
#include "kernels/packed_floats.h"
#include "kernels/packed_pairs.h"
#include "kernels/packed_rows.h"
#include "kernels/packed_tiles.h"

namespace nn::NN_LEVEL {

// body(begin, end) over units that move `bytes` each: small enough that no
// thread waits long for the last.
template <class F>
static inline void spread(int64_t units, double bytes, const F& body) {
    if (units <= 1 || units * bytes < bytes_alone / 2) {
        if (units > 0) body((int64_t)0, units);
        return;
    }
    const int64_t shares = units / (4 * threads()), by_size = (int64_t)(bytes_per_chunk / bytes);
    const int64_t chunk = shares < by_size ? shares : by_size;
    parallel_chunks(units, chunk < 1 ? 1 : chunk, body);
}

constexpr int64_t rows_together = 512;  // that stay in the second cache while panels pass by

// write(row, pair of panels, sums of its 32 outputs) for every row of x and
// every pair
template <class T, class Write>
static inline void by_rows(const Packed& weight, const Rows<const T>& x, const Write& write) {
    const Activations<T> activations(x, weight.format);
    const int64_t panels = weight.panels(), pairs = (panels + 1) / 2;
    if (x.rows == 1) {
        const Groups groups(pairs, weight.format);
        spread(groups.count, (double)weight.bytes() / (double)groups.count, [&](int64_t begin, int64_t end) {
            for (int64_t group = begin; group < end; ++group)
                one_row(activations.inputs, weight, groups, group,
                        [&](int64_t at, const float* sums) { write((int64_t)0, at, sums); });
        });
        return;
    }
    const int64_t parts = (x.rows + rows_together - 1) / rows_together;
    const double bytes_here = (double)(pair * weight.panel_bytes());
    const double work = x.rows > most_rows ? bytes_here * (double)x.rows / 4 : bytes_here;
    const bool in_blocks = weight.format == Format::f32 && x.rows > most_rows;
    spread(pairs * parts, work, [&](int64_t begin, int64_t end) {
        const Scratch<float> kept(in_blocks ? rows_together * pair_rows : 1);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t at = unit % pairs, first = unit / pairs * rows_together;
            const int64_t last = first + rows_together < x.rows ? first + rows_together : x.rows;
            const int count = panels - at * pair < pair ? 1 : pair;
            if (in_blocks) {
                many_rows_f32(kept.data, activations.inputs.from(first), last - first, weight, at * pair,
                              count);
                for (int64_t r = first; r < last; ++r) write(r, at, kept + (r - first) * pair_rows);
                continue;
            }
            for (int64_t r = first; r < last; r += most_quantized_rows) {
                alignas(64) float sums[most_quantized_rows * pair_rows];
                const int64_t here = last - r < most_quantized_rows ? last - r : most_quantized_rows;
                row_products(sums, activations.inputs.from(r), here, weight, at * pair, count);
                for (int64_t i = 0; i < here; ++i) write(r + i, at, sums + i * pair_rows);
            }
        }
    });
}

constexpr int64_t few_rows = 4;  // up to which by_rows is as fast as what is made for many

#if defined(__AMX_BF16__)
constexpr int64_t least_rows_of_floats = 24;  // below it a good part of the tiles would be padding

template <class T, class Write>
static inline void by_tiles(const Packed& weight, const Rows<const T>& x, const Write& write) {
    const TileRows rows_here(x, weight.format == Format::bf16 ? 3 : 1);
    const int64_t panels = weight.panels(), pairs = (panels + 1) / 2, bytes_here = weight.panel_bytes();
    const int64_t parts = (x.rows + rows_together - 1) / rows_together, written = rows_here.steps * 1024;
    spread(pairs * parts, (double)(pair * bytes_here) * (double)x.rows / 16, [&](int64_t begin, int64_t end) {
        const Tiles tiles_of_this_thread;
        const Scratch<uint8_t> out(is_quantized(weight.format) ? pair * written : 1);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t at = unit % pairs, first = unit / pairs * rows_together;
            const int64_t last = first + rows_together < x.rows ? first + rows_together : x.rows;
            const bool alone = panels - at * pair < pair;
            const uint8_t* one = weight.data + at * pair * bytes_here;
            const uint8_t* two = alone ? one : one + bytes_here;
            if (is_quantized(weight.format)) {
                write_out(out.data, weight, one);
                if (!alone) write_out(out + written, weight, two);
                one = out.data, two = alone ? one : out + written;
            }
            for (int64_t r = first; r < last; r += tile_pair) {
                alignas(64) float sums[tile_pair * pair_rows];
                tile_products(sums, rows_here, r, one, two);
                for (int64_t i = 0; i < tile_pair && r + i < last; ++i)
                    write(r + i, at, sums + i * pair_rows);
            }
        }
    });
}
#else

// write as in by_rows: rows of bfloat16, some inputs, and a bfloat16 weight
template <class Write>
static inline void by_pairs(const Packed& weight, const Rows<const bf16>& x, const Write& write) {
    const PairRows rows_here(x);
    const int64_t all = weight.panels(), pairs = panels(all, pair), bytes_of_one = weight.panel_bytes();
    const int64_t most = panels(panels(x.rows, panels(x.rows, rows_together)), mr) * mr;
    const double bytes_each = (double)(pair * bytes_of_one * most) / 8;
    spread(pairs * panels(x.rows, most), bytes_each, [&](int64_t begin, int64_t end) {
        const Scratch<float> sums(most * pair_rows);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t at = unit % pairs, first = unit / pairs * most;
            const int64_t last = first + most < x.rows ? first + most : x.rows;
            const int64_t left = all - at * pair, next = unit + 1 < end && left > pair ? left - pair : 0;
            const Coming coming = {weight.data + (all - next) * bytes_of_one,
                                   (next < pair ? next : pair) * bytes_of_one / 64};
            many_rows_bf16(sums.data, rows_here, first, last - first, weight, at * pair,
                           left < pair ? 1 : pair, coming);
            for (int64_t r = first; r < last; ++r) write(r, at, sums + (r - first) * pair_rows);
        }
    });
}
#endif

template <class T, class Write>
static inline void packed_product(const Packed& weight, const Rows<const T>& x, const Write& write) {
#if defined(__AMX_BF16__)
    if (x.rows > few_rows && weight.format != Format::f32) return by_tiles(weight, x, write);
    if (weight.format == Format::f32 && x.rows >= least_rows_of_floats && x.cols > 0 && floats_on_tiles()) {
        const Activations<T> activations(x, weight.format);
        return floats_by_tiles(weight, activations.inputs, x.rows, rows_together, write);
    }
#else
    if constexpr (sizeof(T) == sizeof(bf16))
        if (x.rows > few_rows && x.cols > 0 && weight.format == Format::bf16)
            return by_pairs(weight, x, write);
#endif
    by_rows(weight, x, write);
}

}  // namespace nn::NN_LEVEL
