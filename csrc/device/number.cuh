// Number types: storage in float, half or bfloat16, arithmetic in float.  to_float is exact; from_float rounds
// to nearest, ties to even.
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
template <> __device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) { return __float2bfloat16_rn(x); }

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
