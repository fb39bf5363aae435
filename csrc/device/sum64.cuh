// Sums in float64 over a block, always in the same order.
#pragma once

#include "reduce.cuh"

namespace nn {

// Every thread gets the sum over the block, of whole warps.  `scratch` is one double per warp; the call ends
// with all threads free to use it again.
__device__ __forceinline__ double block_sum64(double x, double* scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    if (warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : 0.0;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    __syncthreads();
    return x;
}

}  // namespace nn
