// Operands of attention's products, taken from q, k, v and do.
//     Source           k or v as left operands, by rows or by columns: float32 where it lies, others as
//     copies rows_to_lanes    rows side by side: [units of channels][rows] rows_as_units    rows along k:
//     [units of rows][channels]
#pragma once
#include "kernels/attention_products.h"

namespace nn::NN_LEVEL {

static inline int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

static inline Bits pair_of(Short low, Short high) {
    return __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
}
static inline Short load_bits(const bf16* p, int64_t n) {
    Short x = {};
    if (n >= width)
        memcpy(&x, p, sizeof x);
    else if (n > 0)
        memcpy(&x, p, (size_t)n * sizeof(bf16));
    return x;
}

// Units [u, u + width) of a row of `size` elements; 0 beyond.
template <class E, class T>
static inline Bits row_units(const T* row, int64_t u, int64_t size) {
    if constexpr (sizeof(E) == 4) {
        const int64_t left = size - u;
        return left >= width ? bits_of(load(row + u)) : left > 0 ? bits_of(load(row + u, left)) : Bits{};
    } else {
        const int64_t left = size - 2 * u;
        Bits x = {};
        if (left >= 2 * width)
            memcpy(&x, row + 2 * u, sizeof x);
        else if (left > 0)
            memcpy(&x, row + 2 * u, (size_t)left * sizeof(bf16));
        return x;
    }
}

// to[u][lane] = unit u of row `lane`, in `vecs` registers of lanes; rows from `count` on are 0
template <class E, class T>
static inline void rows_to_lanes(typename Shape<E>::Word* to, int64_t vecs, const T* from, int64_t stride,
                                 int64_t count, int64_t size) {
    const int64_t all = units<E>(size), ld = vecs * width;
    for (int64_t v = 0; v < vecs; ++v)
        for (int64_t u = 0; u < all; u += width) {
            Bits x[width];
            for (int i = 0; i < width; ++i) {
                const int64_t lane = v * width + i;
                x[i] = lane < count ? row_units<E>(from + lane * stride, u, size) : Bits{};
            }
            transpose(x);
            for (int i = 0; i < width && u + i < all; ++i)
                memcpy(to + (u + i) * ld + v * width, &x[i], sizeof x[i]);
        }
}

// to[u][channel]: rows `u` (float32), or 2u and 2u + 1 (pairs); rows from `count` on, and channels, are 0
template <class E, class T>
static inline void rows_as_units(typename Shape<E>::Word* to, int64_t ld, const T* from, int64_t stride,
                                 int64_t count, int64_t size) {
    const int64_t all = units<E>(count);
    for (int64_t u = 0; u < all; ++u)
        for (int64_t i = 0; i < ld; i += width) {
            const int64_t left = size - i < width ? size - i : width;
            Bits x;
            if constexpr (sizeof(E) == 4) {
                const T* const p = from + u * stride + i;
                x = bits_of(left == width ? load(p) : load(p, left));
            } else {
                const bf16* const p = from + 2 * u * stride + i;
                x = pair_of(2 * u < count ? load_bits(p, left) : Short{},
                            2 * u + 1 < count ? load_bits(p + stride, left) : Short{});
            }
            memcpy(to + u * ld + i, &x, sizeof x);
        }
}

template <class E, class T>
struct Source;

template <>
struct Source<float, float> {
    Heads<const float> x;
    Source(const Heads<const float>& given, bool, bool) : x(given) {}
    Left<float> rows(int64_t b, int64_t g, int64_t first) const { return {x.row(b, g, first), x.stride, 1}; }
    Left<float> columns(int64_t b, int64_t g, int64_t first) const {
        return {x.row(b, g, first), 1, x.stride};
    }
};

template <>
struct Source<float, bf16> {
    int64_t heads, length, ld;
    Scratch<float> copy;
    Source(const Heads<const bf16>& x, bool, bool)
        : heads(x.heads), length(x.length), ld(padded(x.width)), copy(x.batch * x.heads * x.length * ld) {
        const int64_t per_batch = heads * length;
        parallel_for(x.batch * per_batch, (double)ld * 6, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const bf16* const from = x.row(r / per_batch, r % per_batch / length, r % length);
                registers(x.width, [&](int64_t i, auto n) { put(copy + r * ld + i, n, get(from + i, n)); });
            }
        });
    }
    const float* row(int64_t b, int64_t g, int64_t first) const {
        return copy + ((b * heads + g) * length + first) * ld;
    }
    Left<float> rows(int64_t b, int64_t g, int64_t first) const { return {row(b, g, first), ld, 1}; }
    Left<float> columns(int64_t b, int64_t g, int64_t first) const { return {row(b, g, first), 1, ld}; }
};

// Copies padded to whole tiles with zeros.
template <>
struct Source<bf16, bf16> {
    static constexpr int64_t group = 32;  // rows at a time
    int64_t heads, length, size;          // padded
    Scratch<bf16> by_rows, by_columns;    // [B,G,length,size], [B,G,size,length]
    Source(const Heads<const bf16>& x, bool want_rows, bool want_columns)
        : heads(x.heads),
          length(round_up(x.length, group)),
          size(round_up(x.width, group)),
          by_rows(want_rows ? x.batch * heads * length * size : 0),
          by_columns(want_columns ? x.batch * heads * length * size : 0) {
        const int64_t groups = length / group;
        parallel_for(x.batch * heads * groups, (double)(group * size) * 8, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t b = i / groups / heads, h = i / groups % heads, first = i % groups * group;
                const int64_t count = x.length - first < group ? x.length - first : group;
                if (want_rows) copy_rows(i, x.row(b, h, first), x.stride, count, x.width);
                if (want_columns)
                    copy_columns(b * heads + h, x.row(b, h, first), x.stride, first, count, x.width);
            }
        });
    }
    void copy_rows(int64_t at, const bf16* from, int64_t stride, int64_t count, int64_t channels) const {
        bf16* to = by_rows + at * group * size;
        for (int64_t r = 0; r < group; ++r, to += size) {
            const int64_t here = r < count ? channels : 0;
            memcpy(to, from + (r < count ? r : 0) * stride, (size_t)here * sizeof(bf16));
            memset(to + here, 0, (size_t)(size - here) * sizeof(bf16));
        }
    }
    // width pairs of rows by width channels, turned over in registers
    void copy_columns(int64_t head, const bf16* from, int64_t stride, int64_t first, int64_t count,
                      int64_t channels) const {
        for (int64_t r = 0; r < group; r += 2 * width)
            for (int64_t c = 0; c < size; c += width) {
                Bits x[width];
                for (int i = 0; i < width; ++i) {
                    const int64_t low = r + 2 * i, left = channels - c;
                    x[i] =
                        pair_of(low < count ? load_bits(from + low * stride + c, left) : Short{},
                                low + 1 < count ? load_bits(from + (low + 1) * stride + c, left) : Short{});
                }
                transpose(x);
                for (int i = 0; i < width; ++i)
                    memcpy(by_columns + ((head * size + c + i) * length + first + r), &x[i], sizeof x[i]);
            }
    }
    Left<bf16> rows(int64_t b, int64_t g, int64_t first) const {
        return {by_rows + ((b * heads + g) * length + first) * size, size, 1};
    }
    Left<bf16> columns(int64_t b, int64_t g, int64_t first) const {
        return {by_columns + (b * heads + g) * size * length + first, length, 1};
    }
};

// Elements that products are formed of: pairs where the level has instructions for them.
#if defined(__AVX512BF16__)
template <class T>
using Element = T;
#else
template <class T>
using Element = float;
#endif

}  // namespace nn::NN_LEVEL
