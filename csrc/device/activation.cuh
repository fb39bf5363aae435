// Activations, in float: the same bits in a kernel of their own and at the end of the experts' products.
#pragma once

#include "number.cuh"

namespace nn {

constexpr float SQRT_HALF = 0.70710678f, SQRT_2_OVER_PI = 0.79788456f;

// s(x) = 1 / (1 + exp(-x)), from exp(-|x|): no overflow, and full relative precision in both tails.
__device__ __forceinline__ float sigmoid(float x) {
    float e = expf(-fabsf(x)), r = reciprocal_fast(1.0f + e);
    return x >= 0.0f ? r : e * r;
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * SQRT_HALF)); }

__device__ __forceinline__ float gelu_tanh_gate(float x) {       // (1 + tanh u) / 2 = s(2u)
    return sigmoid(2.0f * SQRT_2_OVER_PI * x * (1.0f + 0.044715f * x * x));
}

__device__ __forceinline__ float gelu_tanh(float x) { return x * gelu_tanh_gate(x); }

}  // namespace nn
