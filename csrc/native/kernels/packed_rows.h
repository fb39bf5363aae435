// Products of a few rows with panels of a packed weight, in registers: what
// decoding is made of, and prefill where there is no AMX.  Bound by reading the
// weight: lines of the panels that come next are asked for while these are
// worked on.
//
// Every sum is formed in the order of k, whatever the number of rows and panels
// at once: a row alone and among others has the same bits.
#pragma once
#include "kernels/packed.h"
#include "kernels/quantized.h"

namespace nn::NN_LEVEL {

constexpr int pair = 2,
              pair_rows = pair * panel_rows;  // panels, and outputs, that are worked on together
#if defined(__AVX512F__)
constexpr int most_rows = 8;  // 16 sums in 32 registers
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int most_rows = 2;
#else
constexpr int most_rows = 1;
#endif

// The same place of the panels after these, into the second cache.
static inline void ask_for(const uint8_t* place, int64_t distance) {
    __builtin_prefetch(place + distance, 0, 2);
}

struct Panels {
    const uint8_t* data;  // the first of P
    int64_t bytes;        // of one
    int64_t ahead;        // how far on lies what is worked on next
};

template <int R, int P>
using Sums = Vec[R][P * lanes];

template <int R, int P>
static inline void products_f32(Sums<R, P>& sums, const Inputs& x, const Panels& w, int64_t k) {
    for (int64_t i = 0; i < k; ++i) {
        const uint8_t* const at = w.data + i * 64;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            if (R == 1) ask_for(at + p * w.bytes, w.ahead);
#pragma GCC unroll 4
            for (int l = 0; l < lanes; ++l) {
                const Vec v = load((const float*)(at + p * w.bytes) + l * width);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sums[r][p * lanes + l] += x.floats[r * x.stride + i] * v;
            }
        }
    }
}

template <int R, int P>
static inline void products_bf16(Sums<R, P>& sums, const Inputs& x, const Panels& w, int64_t k) {
    for (int64_t i = 0; i < k; i += 2) {
        const uint8_t* const at = w.data + i * 32;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            if (R == 1) ask_for(at + p * w.bytes, w.ahead);
#pragma GCC unroll 4
            for (int l = 0; l < lanes; ++l) {
                Bits both;
                memcpy(&both, at + p * w.bytes + l * sizeof both, sizeof both);
                const Vec even = float_of(both << 16), odd = float_of(both & 0xffff0000u);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    Vec& sum_here = sums[r][p * lanes + l];
                    sum_here += x.floats[r * x.stride + i] * even;
                    sum_here += x.floats[r * x.stride + i + 1] * odd;
                }
            }
        }
    }
}

template <Format format, int R, int P>
static inline void products_quantized(Sums<R, P>& sums, const Inputs& x, const Panels& w) {
    constexpr int64_t bytes_here = format == Format::q8_0 ? 512 : 256;
    for (int64_t b = 0; b < x.blocks; ++b) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const uint8_t* const quants = w.data + p * w.bytes + b * bytes_here;
            const uint8_t* const scales = w.data + p * w.bytes + x.blocks * bytes_here + b * 32;
            if (R == 1) {
                for (int64_t i = 0; i < bytes_here; i += 64) ask_for(quants + i, w.ahead);
                if (b % 2 == 0) ask_for(scales, w.ahead);
            }
#pragma GCC unroll 4
            for (int l = 0; l < lanes; ++l) {
                Whole dots[R];
                block_dots<format, R>(dots, x, b, quants + l * sizeof(Vec));
                const Vec scale = load_half(scales + l * width * 2);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    sums[r][p * lanes + l] += as_floats(dots[r]) * (scale * x.scales[r * x.blocks + b]);
            }
        }
    }
}

// to[R][ld]: R rows of x, from `x` on, times P panels
template <int R, int P>
static inline void products(float* to, int64_t ld, const Inputs& x, const Packed& weight, const Panels& w) {
    Sums<R, P> sums = {};
    switch (weight.format) {
        case Format::f32:
            products_f32<R, P>(sums, x, w, weight.inputs);
            break;
        case Format::bf16:
            products_bf16<R, P>(sums, x, w, weight.inputs);
            break;
        case Format::q8_0:
            products_quantized<Format::q8_0, R, P>(sums, x, w);
            break;
        default:
            products_quantized<Format::q4_0, R, P>(sums, x, w);
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

// to[rows][pair_rows]: any rows <= most_rows with panels [first, first + count)
// of the weight
static inline void row_products(float* to, const Inputs& x, int64_t rows_here, const Packed& weight,
                                int64_t first, int count) {
    const int64_t bytes_of_one = weight.panel_bytes();
    const Panels w = {weight.data + first * bytes_of_one, bytes_of_one, count * bytes_of_one};
    int64_t r = 0;
    while (r < rows_here) {
        const int64_t left = rows_here - r;
        float* const at = to + r * pair_rows;
        const Inputs here = x.from(r);
        if (most_rows >= 8 && left >= 8) {
            products_of<most_rows >= 8 ? 8 : 1>(at, pair_rows, here, weight, w, count), r += 8;
        } else if (most_rows >= 4 && left >= 4) {
            products_of<most_rows >= 4 ? 4 : 1>(at, pair_rows, here, weight, w, count), r += 4;
        } else if (most_rows >= 2 && left >= 2) {
            products_of<most_rows >= 2 ? 2 : 1>(at, pair_rows, here, weight, w, count), r += 2;
        } else {
            products_of<1>(at, pair_rows, here, weight, w, count), r += 1;
        }
    }
}

}  // namespace nn::NN_LEVEL
