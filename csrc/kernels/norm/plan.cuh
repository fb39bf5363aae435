// How rows are shared among threads, for both directions.  Decided by width, type and alignment alone.
#pragma once

#include "device/arguments.h"
#include "device/launch.h"
#include "device/pack.cuh"
#include "device/reduce.cuh"

namespace nn {

constexpr int NORM_THREADS = 256;        // of a block; 512 where a row takes them all
constexpr int MAX_WIDTH = 512;

struct NormPlan {
    bool vector, few, reread;            // packs of 16 bytes; two per thread; the row does not fit registers
    int width, threads, groups;          // threads per row, per block; rows per block
};

// 8 lanes up to 64 columns, 16 up to 128, then a warp, and 64 ... 512 threads where a warp has not the
// registers (the table of QuACK, with `packs` of 16 bytes per thread, or 8 single elements).
inline NormPlan norm_plan(int64_t cols, int64_t bytes, bool all_aligned, int packs, int max_width) {
    NormPlan plan{};
    plan.vector = all_aligned && cols * bytes % 16 == 0;
    const int64_t pack = plan.vector ? 16 / bytes : 1, most = plan.vector ? packs : 8;
    plan.width = cols <= 64 ? 8 : cols <= 128 ? 16 : 32;
    plan.few = plan.vector && cols <= 2 * pack * plan.width;
    while (plan.width < max_width && cols > most * pack * plan.width) plan.width *= 2;
    plan.reread = cols > most * pack * plan.width;
    plan.threads = plan.width > NORM_THREADS ? plan.width : NORM_THREADS;
    plan.groups = plan.threads / plan.width;
    if (plan.reread) plan.groups = 1, plan.width = plan.threads;
    return plan;
}

// Every thread gets the sum over its row's `width` neighbouring threads.  All threads of the block call it.
__device__ __forceinline__ float row_sum(float x, int width, float* scratch) {
    x = lanes_reduce<Sum>(x, width < 32 ? width : 32);
    if (width <= 32) return x;
    const int warp = threadIdx.x / 32, warps = width / 32, first = warp / warps * warps;
    if (threadIdx.x % 32 == 0) scratch[warp] = x;
    __syncthreads();
    x = scratch[first];
    for (int i = 1; i < warps; ++i) x += scratch[first + i];
    __syncthreads();
    return x;
}

// A vector of `cols` elements to shared memory.  All threads of the block call it; a barrier must follow.
template <int N, class T> __device__ __forceinline__ void keep_vector(T* kept, const T* from, int cols) {
    for (int c = threadIdx.x * N; c < cols; c += blockDim.x * N)
        store_shared(kept + c, load_pack<N>(from + c));
}

}  // namespace nn
