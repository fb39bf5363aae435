// What the attention kernels share: the lengths of a sequence, and which keys a query sees.
#pragma once

#include "device/number.cuh"
#include "nn/attention.h"

namespace nn {

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr float INFINITE = __builtin_huge_valf();
constexpr int64_t MAX_LENGTH = 1 << 30;          // of queries, keys, window

// Query i of a sequence sees the keys lo(i) <= j < hi(i), none if that is empty; both grow with i.
struct Reach {
    int keys, first;                             // first: the position of query 0
    int window;                                  // 0: none
    bool causal;

    __device__ __forceinline__ int lo(int i) const { return window ? max(0, first + i - window + 1) : 0; }
    __device__ __forceinline__ int hi(int i) const {
        int end = causal ? first + i + 1 : window ? first + i + window : keys;
        return min(end, keys);
    }
};

// One row of the batch: its lengths, and where its positions begin in packed arrays.
struct Sequence {
    int queries, keys;
    int64_t first_query, first_key;
};

__device__ __forceinline__ Sequence sequence(const nn_attention& a, int64_t b) {
    Sequence s{static_cast<int>(a.queries), static_cast<int>(a.keys), 0, 0};
    if (a.cu_queries) {
        s.first_query = a.cu_queries[b], s.queries = a.cu_queries[b + 1] - a.cu_queries[b];
        s.first_key = a.cu_keys[b], s.keys = a.cu_keys[b + 1] - a.cu_keys[b];
    }
    if (a.key_lengths) s.keys = min(max(a.key_lengths[b], 0), s.keys);
    return s;
}

__device__ __forceinline__ Reach reach(const nn_attention& a, const Sequence& s) {
    return {s.keys, s.keys - s.queries, static_cast<int>(a.window), a.causal != 0};
}

// Where head `head` of a batch row begins, in packed arrays too; strides of batch, head, position.
__device__ __forceinline__ int64_t start(const nn_attention& a, const int64_t (&strides)[3], int64_t b,
                                         int64_t head, int64_t first) {
    return (a.cu_queries ? first * strides[2] : b * strides[0]) + head * strides[1];
}

__device__ __forceinline__ int64_t lse_start(const nn_attention& a, int64_t b, int64_t head, int64_t first) {
    return (a.cu_queries ? first : b * a.lse_strides[0]) + head * a.lse_strides[1];
}

// tanh to about 1e-7 of 1, in a few instructions
__device__ __forceinline__ float tanh_fast(float x) {
    float e = exp2_fast(x * (2.0f * LOG2_E));
    return 1.0f - 2.0f * reciprocal_fast(e + 1.0f);
}

}  // namespace nn
