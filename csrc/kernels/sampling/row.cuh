// The logits of one row, as the draw sees them.
#pragma once

#include "device/number.cuh"

namespace nn {

constexpr int IN_FLIGHT = 4;             // loads of a thread before the first is used
constexpr uint32_t SATURATED = 0xffffffffu;

// The logits of a row as the draw sees them.
template <class T> struct Row {
    const T* logits;
    const uint32_t* seen;            // one bit per id of the history; null: no penalty
    uint32_t size;
    float penalty, top, temperature;

    __device__ __forceinline__ float penalised(uint32_t i, T logit) const {
        const float x = to_float(logit);
        if (!seen || !(seen[i / 32] >> (i % 32) & 1)) return x;
        return x < 0.0f ? x * penalty : x / penalty;
    }
    __device__ __forceinline__ float scaled(uint32_t i, T logit) const {
        return (penalised(i, logit) - top) / temperature;
    }
};

// round(exp(z) 2^32) for z <= 0; below -22.9 that is 0.
__device__ __forceinline__ uint64_t weight_of(float z) {
    return z < -22.9f ? 0 : __double2ull_rn(exp(double(z)) * 4294967296.0);
}

// The chosen set's end: tokens in order of (key, id) up to and including this pair.  Keys rise as likelihood
// falls.
struct Cut {
    uint32_t key, id;
    __device__ __forceinline__ bool keeps(uint32_t k, uint32_t i) const {
        return k < key || (k == key && i <= id);
    }
};

// f(i, values[i], valid) for every i of begin ... end - 1, by `threads` threads, of which this is `thread`; a
// warp's lanes come together, the idle ones with valid = false.
template <class V, class F>
__device__ __forceinline__ void each(const V* values, uint32_t begin, uint32_t end, uint32_t thread,
                                     uint32_t threads, F f) {
    for (uint32_t base = begin; base < end; base += threads * IN_FLIGHT) {
        V some[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const uint32_t i = base + j * threads + thread;
            some[j] = values[i < end ? i : begin];
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const uint32_t i = base + j * threads + thread;
            f(i, some[j], i < end);
        }
    }
}

}  // namespace nn
