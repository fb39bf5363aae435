// Sums and maxima over a warp and over a block, always in the same order: the same bits at every run.
#pragma once

namespace nn {

constexpr unsigned ALL_LANES = 0xffffffffu;

struct Sum {
    static constexpr float identity = 0.0f;
    template <class V> __device__ __forceinline__ V operator()(V a, V b) const { return a + b; }
};

struct Max {                                                     // NaN wins, as in NumPy
    static constexpr float identity = -__builtin_huge_valf();
    __device__ __forceinline__ float operator()(float a, float b) const {
        return a > b || a != a ? a : b;
    }
};

// Every lane gets the result over groups of WIDTH neighbouring lanes.
template <class Op, int WIDTH = 32, class V> __device__ __forceinline__ V warp_reduce(V x, Op op = {}) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The same over `width` neighbouring lanes, a power of two known only at run time.
template <class Op> __device__ __forceinline__ float lanes_reduce(float x, int width, Op op = {}) {
    for (int offset = width / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// Every thread gets the result over the block, of whole warps.  `scratch` is one number per warp; the call
// ends with all threads free to use it again.
template <class Op, class V> __device__ __forceinline__ V block_reduce(V x, V* scratch, Op op = {}) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_reduce<Op>(x, op);
    if (warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_reduce<Op>(lane < warps ? scratch[lane] : V(Op::identity), op);
    __syncthreads();
    return x;
}

}  // namespace nn
