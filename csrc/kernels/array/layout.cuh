// nn_array_layout in a kernel: from the number of an element to its place in each operand.
#pragma once

#include "device/arguments.h"
#include "device/launch.h"
#include "nn/array.h"

namespace nn::array {

constexpr int AXES = NN_ARRAY_AXES;
constexpr int THREADS = 256;

// The number of this thread, and of all of them: kernels loop where there are more elements than threads.
__device__ __forceinline__ int64_t first_thread() { return int64_t(blockIdx.x) * THREADS + threadIdx.x; }
__device__ __forceinline__ int64_t all_threads() { return int64_t(gridDim.x) * THREADS; }

// As a kernel parameter; axes run from the outermost to the innermost.
template <int OPERANDS> struct Places {
    int32_t ndim, narrow;                            // narrow: every index fits into 32 bits
    int64_t shape[AXES], strides[OPERANDS][AXES];
};

// Where element i lies in each operand.  One axis needs no division.
template <int OPERANDS>
__device__ __forceinline__ void places(int64_t (&at)[OPERANDS], const Places<OPERANDS>& p, int64_t i) {
#pragma unroll
    for (int k = 0; k < OPERANDS; ++k) at[k] = 0;
    for (int axis = p.ndim - 1; axis > 0; --axis) {
        const int64_t n = p.shape[axis];
        const int64_t rest = p.narrow ? static_cast<uint32_t>(i) / static_cast<uint32_t>(n) : i / n;
        const int64_t coordinate = i - rest * n;
#pragma unroll
        for (int k = 0; k < OPERANDS; ++k) at[k] += coordinate * p.strides[k][axis];
        i = rest;
    }
#pragma unroll
    for (int k = 0; k < OPERANDS; ++k) at[k] += i * p.strides[k][0];
}

// The host's side: checked and merged; count is the number of elements.
int merged(nn_array_layout* merged, const nn_array_layout* layout, int operands, int64_t* count);
bool known(int32_t dtype);
int check_known(const char* name, int32_t dtype);
bool floating(int32_t dtype);                        // float32, float16 or bfloat16

template <int OPERANDS> Places<OPERANDS> as_parameter(const nn_array_layout& layout, int64_t count) {
    Places<OPERANDS> p{};
    p.ndim = static_cast<int32_t>(layout.ndim), p.narrow = count <= 0xffffffffLL;
    for (int axis = 0; axis < p.ndim; ++axis) {
        p.shape[axis] = layout.shape[axis];
        for (int k = 0; k < OPERANDS; ++k) p.strides[k][axis] = layout.strides[k][axis];
    }
    return p;
}

// Enough blocks for that many threads, or as many as make sense.
unsigned blocks_for(int64_t threads);
unsigned limited(int64_t blocks);

}  // namespace nn::array
