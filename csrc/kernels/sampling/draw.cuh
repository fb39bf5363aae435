// The token at which a running total of integer weights passes a target: segments first, then tokens.
#pragma once

#include "row.cuh"

#include "device/reduce.cuh"

namespace nn {

// Sums of weight(i, value, valid) over begin ... end - 1, cut into one segment per warp; *length: of a
// segment.
template <class V, class F>
__device__ __forceinline__ void segment_sums(uint64_t* sums, uint32_t& length, const V* values,
                                             uint32_t begin, uint32_t end, F weight) {
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    length = ((end - begin + warps - 1) / warps + 31) / 32 * 32;
    const uint32_t from = min(begin + warp * length, end), to = min(from + length, end);
    uint64_t sum = 0;
    each(values, from, to, lane, 32,
         [&](uint32_t i, V value, bool valid) { sum += weight(i, value, valid); });
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    __syncthreads();
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
}

// The segment in which the running total passes `target`; target becomes relative to it.
__device__ __forceinline__ uint32_t passing_segment(const uint64_t* sums, uint64_t& target) {
    uint32_t segment = 0;
    const uint32_t warps = blockDim.x / 32;
    for (; segment + 1 < warps && target >= sums[segment]; ++segment) target -= sums[segment];
    return segment;
}

// The first i of begin ... end - 1 at which the running total exceeds target; by one warp, for all its lanes.
template <class F>
__device__ __forceinline__ uint32_t passing(uint32_t begin, uint32_t end, uint64_t target, F weight) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = begin; base < end; base += 32) {
        uint64_t running = base + lane < end ? weight(base + lane) : 0;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const uint64_t left = __shfl_up_sync(ALL_LANES, running, offset);
            if (int(lane) >= offset) running += left;
        }
        const unsigned passed = __ballot_sync(ALL_LANES, running > target);
        if (passed) return base + __ffs(passed) - 1;
        target -= __shfl_sync(ALL_LANES, running, 31);
    }
    return end - 1;                                              // not reached: the target is below the total
}

// floor(word total / 2^32)
__device__ __forceinline__ uint64_t share(uint32_t word, uint64_t total) {
    return word * (total >> 32) + (word * (total & 0xffffffffu) >> 32);
}

}  // namespace nn
