// Number types: storage in float, half or bfloat16, arithmetic in float.  to_float is exact; from_float
// rounds to nearest, ties to even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "nn/types.h"

namespace nn {

using half = __half;
using bfloat16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// Two at once: one instruction from sm_80 on.  The first is the low half.
template <class T> __device__ __forceinline__ uint32_t pair_from_float(float a, float b);
template <> __device__ __forceinline__ uint32_t pair_from_float<half>(float a, float b) {
    __half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<uint32_t*>(&pair);
}
template <> __device__ __forceinline__ uint32_t pair_from_float<bfloat16>(float a, float b) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<uint32_t*>(&pair);
}

// 2^x and e^x in one or two instructions.  Relative error 2^-22 (ex2.approx) plus that of x log2 e rounded,
// 2^-24 |x|: for x <= 0, as in a softmax, an absolute error below 2^-22.  Results under 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

// 1 / x within a unit in the last place, for |x| in 2^-126 ... 2^126.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <class T> constexpr int32_t dtype_code();
template <> constexpr int32_t dtype_code<float>() { return NN_FLOAT32; }
template <> constexpr int32_t dtype_code<half>() { return NN_FLOAT16; }
template <> constexpr int32_t dtype_code<bfloat16>() { return NN_BFLOAT16; }

}  // namespace nn

// Run a statement with T as the storage type of a floating-point dtype; for anything else, an argument error.
//     NN_FOR_FLOATING(dtype, T, return launch<T>(...));
#define NN_FOR_FLOATING(dtype, T, ...)                                                         \
    switch (dtype) {                                                                           \
        case NN_FLOAT32: { using T = float; __VA_ARGS__; } break;                              \
        case NN_FLOAT16: { using T = ::nn::half; __VA_ARGS__; } break;                         \
        case NN_BFLOAT16: { using T = ::nn::bfloat16; __VA_ARGS__; } break;                    \
        default: return ::nn::fail(NN_ERROR_ARGUMENT, "dtype: %s (%d); expected float32, "     \
                                   "float16 or bfloat16", ::nn::dtype_name(dtype), (int)dtype); \
    }
