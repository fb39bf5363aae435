// Sums over a block's rows, one per column: the partial sums of a weight gradient.
#pragma once

#include "device/pack.cuh"
#include "device/reduce.cuh"

namespace nn {

constexpr int QUAD = 4;                  // floats in 16 bytes

// N float32 sums, in packs of 16 bytes where a thread has so many neighbours.
template <int N> __device__ __forceinline__ void load_sums(float (&sums)[N], const float* from) {
    constexpr int M = N < QUAD ? N : QUAD;
#pragma unroll
    for (int j = 0; j < N; j += M) {
        const auto pack = load_pack<M>(from + j);
#pragma unroll
        for (int i = 0; i < M; ++i) sums[j + i] = pack[i];
    }
}

template <int N> __device__ __forceinline__ void store_sums(float* to, const float (&sums)[N]) {
    constexpr int M = N < QUAD ? N : QUAD;
#pragma unroll
    for (int j = 0; j < N; j += M) {
        Pack<float, M> pack;
#pragma unroll
        for (int i = 0; i < M; ++i) pack[i] = sums[j + i];
        store_global<M>(to + j, pack);
    }
}

// part[N] += sums; `first`: part is not read, and holds nothing yet
template <int N>
__device__ __forceinline__ void add_to_part(float* part, const float (&sums)[N], bool first) {
    float total[N] = {};
    if (!first) load_sums(total, part);
#pragma unroll
    for (int j = 0; j < N; ++j) total[j] += sums[j];
    store_sums(part, total);
}

// Where the k-th four floats of a slab lie.  A lane has two fours side by side where it has eight floats:
// neighbours then trade places in every other 128 bytes, and eight lanes touch all 32 banks whether they take
// their own fours (0, 2, 4 ...) or all of them in turn.
template <int N> __device__ __forceinline__ int placed(int k) { return N > QUAD ? k ^ (k >> 3 & 1) : k; }

// A lane's N sums to its place in a slab of shared memory, and what lies there added to them.
template <int N> __device__ __forceinline__ void spread(float* slab, const float (&sums)[N], int lane) {
    constexpr int M = N < QUAD ? N : QUAD;
#pragma unroll
    for (int j = 0; j < N; j += M) {
        Pack<float, M> pack;
#pragma unroll
        for (int i = 0; i < M; ++i) pack[i] = sums[j + i];
        store_shared<M>(slab + placed<N>((lane * N + j) / M) * M, pack);
    }
}

template <int N> __device__ __forceinline__ void gather(float (&sums)[N], const float* slab, int lane) {
    constexpr int M = N < QUAD ? N : QUAD;
#pragma unroll
    for (int j = 0; j < N; j += M) {
        const auto pack = load_pack<M>(slab + placed<N>((lane * N + j) / M) * M);
#pragma unroll
        for (int i = 0; i < M; ++i) sums[j + i] += pack[i];
    }
}

// Bytes of shared memory for store_partial
inline int64_t partial_bytes(int64_t threads, int64_t neighbours) {
    return threads * neighbours * int64_t{sizeof(float)};
}

// The block's sums over its groups of `width` threads, in a fixed order; P packs of N columns per thread.
// `memory`: blockDim.x N floats, which other threads may still read.
template <int N, int P>
__device__ __forceinline__ void store_partial(float* part, float (&sums)[P][N], int cols, int width,
                                              float* memory) {
    for (int offset = width; offset < 32; offset *= 2) {
#pragma unroll
        for (int p = 0; p < P; ++p)
#pragma unroll
            for (int j = 0; j < N; ++j) sums[p][j] += __shfl_xor_sync(ALL_LANES, sums[p][j], offset);
    }
    const int together = width < 32 ? 32 : width, groups = blockDim.x / together, me = threadIdx.x / together;
    const int lane = threadIdx.x % width, slab = width * N;
    const bool counts = threadIdx.x % together < width;
#pragma unroll
    for (int p = 0; p < P; ++p) {
        const int first = p * slab;
        if (first >= cols) break;
        const bool mine = counts && first + lane * N < cols;
        __syncthreads();
        for (int half = groups / 2; half > 0; half /= 2) {           // the upper half to the lower
            if (mine && me >= half && me < 2 * half) spread(memory + me * slab, sums[p], lane);
            __syncthreads();
            if (mine && me < half) gather(sums[p], memory + (me + half) * slab, lane);
        }
        if constexpr (N <= QUAD) {
            if (mine && me == 0) store_sums(part + first + lane * N, sums[p]);
        } else {                                                     // neighbours to neighbours
            if (mine && me == 0) spread(memory, sums[p], lane);
            __syncthreads();
            for (int c = threadIdx.x * QUAD; c < slab && first + c < cols; c += blockDim.x * QUAD)
                store_global(part + first + c, load_pack<QUAD>(memory + placed<N>(c / QUAD) * QUAD));
        }
    }
}

}  // namespace nn
