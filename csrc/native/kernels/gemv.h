// A matrix of few rows times a weight as it lies: y[r,o] = x[r,:] . weight[o,:].  Bound by reading the
// weight: every row of it is read once, for all rows of x, and nothing is packed.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

constexpr int64_t gemv_rows = 4;  // of x, up to which this beats packing the weight
constexpr int gemv_outputs = 4;   // at once: as many streams, and as many chains of sums

// float32: `outputs` rows of the weight against one of x
template <int outputs>
static inline void dots(float* y, const float* x, const float* weight, int64_t stride, int64_t k) {
    Vec sums[outputs][2] = {};
    int64_t i = 0;
    for (; i + 2 * width <= k; i += 2 * width)
        for (int half = 0; half < 2; ++half) {
            const Vec v = load(x + i + half * width);
            for (int o = 0; o < outputs; ++o)
                sums[o][half] += v * load(weight + o * stride + i + half * width);
        }
    for (; i < k; i += width) {
        const int64_t n = k - i < width ? k - i : width;
        const Vec v = load(x + i, n);
        for (int o = 0; o < outputs; ++o) sums[o][0] += v * load(weight + o * stride + i, n);
    }
    for (int o = 0; o < outputs; ++o) y[o] = sum(sums[o][0] + sums[o][1]);
}

// bfloat16: registers of pairs
static inline Bits load_pairs(const bf16* p) {
    Bits x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline Bits load_pairs(const bf16* p, int64_t n) {
    bf16 all[2 * width] = {};
    memcpy(all, p, (size_t)n * sizeof(bf16));
    return load_pairs(all);
}

template <int outputs>
static inline void dots(float* y, const bf16* x, const bf16* weight, int64_t stride, int64_t k) {
    Vec sums[outputs] = {};
    int64_t i = 0;
    for (; i + 2 * width <= k; i += 2 * width) {
        const Bits v = load_pairs(x + i);
        for (int o = 0; o < outputs; ++o) sums[o] = dot2(sums[o], v, load_pairs(weight + o * stride + i));
    }
    if (i < k) {
        const Bits v = load_pairs(x + i, k - i);
        for (int o = 0; o < outputs; ++o)
            sums[o] = dot2(sums[o], v, load_pairs(weight + o * stride + i, k - i));
    }
    for (int o = 0; o < outputs; ++o) y[o] = sum(sums[o]);
}

static inline float as_float(float x) { return x; }
static inline float as_float(bf16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

template <class T>
static inline void gemv(const Rows<T>& y, const Rows<const T>& x, const Rows<const T>& weight,
                        const T* bias) {
    const int64_t k = weight.cols, groups = (weight.rows + gemv_outputs - 1) / gemv_outputs;
    parallel_for(groups, (double)(gemv_outputs * k) * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            const int64_t first = g * gemv_outputs, here = weight.rows - first;
            for (int64_t r = 0; r < x.rows; ++r) {
                float sums[gemv_outputs];
                if (here >= gemv_outputs)
                    dots<gemv_outputs>(sums, x[r], weight[first], weight.stride, k);
                else
                    for (int64_t o = 0; o < here; ++o)
                        dots<1>(sums + o, x[r], weight[first + o], weight.stride, k);
                for (int64_t o = 0; o < here && o < gemv_outputs; ++o) {
                    const float shift = bias ? as_float(bias[first + o]) : 0.0f;
                    put(y[r] + first + o, (int64_t)1, set(sums[o] + shift));
                }
            }
        }
    });
}

}  // namespace nn::NN_LEVEL
