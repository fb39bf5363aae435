// The end of a matrix product: C = activation(alpha sums + beta C + bias), rounded once, in 16-byte stores.
#pragma once

#include "device/activation.cuh"
#include "device/pack.cuh"
#include "mainloop.cuh"
#include "nn/gemm.h"

namespace nn {

__device__ __forceinline__ float load_number(const void* from, int64_t at, int32_t dtype) {
    if (dtype == NN_FLOAT32) return static_cast<const float*>(from)[at];
    if (dtype == NN_FLOAT16) return to_float(static_cast<const half*>(from)[at]);
    return to_float(static_cast<const bfloat16*>(from)[at]);
}

// Four neighbours, zeros beyond `count`; `at_once`: all are there, and aligned as a pack.
__device__ __forceinline__ void load_numbers(float (&x)[4], const void* from, int64_t at, int32_t dtype,
                                             int count, bool at_once) {
    if (dtype == NN_FLOAT32)
        load_floats(x, static_cast<const float*>(from) + at, count, at_once);
    else if (dtype == NN_FLOAT16)
        load_floats(x, static_cast<const half*>(from) + at, count, at_once);
    else
        load_floats(x, static_cast<const bfloat16*>(from) + at, count, at_once);
}

__device__ __forceinline__ void store_number(void* to, int64_t at, int32_t dtype, float x) {
    if (dtype == NN_FLOAT32)
        static_cast<float*>(to)[at] = x;
    else if (dtype == NN_FLOAT16)
        static_cast<half*>(to)[at] = from_float<half>(x);
    else
        static_cast<bfloat16*>(to)[at] = from_float<bfloat16>(x);
}

__device__ __forceinline__ float activate(float x, int32_t activation) {
    switch (activation) {
        case NN_ACTIVATION_SILU: return silu(x);
        case NN_ACTIVATION_GELU: return gelu(x);
        case NN_ACTIVATION_GELU_TANH: return gelu_tanh(x);
        case NN_ACTIVATION_RELU: return x > 0.0f || x != x ? x : 0.0f;
    }
    return x;
}

// Of one problem: what is done with its sums.
struct Epilogue {
    void* c;
    const void* bias;
    const float *alpha_device, *beta_device;
    int64_t m, n, ldc;
    float alpha, beta;
    int32_t c_dtype, bias_dtype, activation;
    int32_t wide;                                      // rows of C start at multiples of 16 bytes
    int32_t wide_bias;                                 // the bias starts at a multiple of 4 elements

    // Device scalars are read once, by every thread.
    __device__ __forceinline__ void begin() {
        if (alpha_device) alpha *= *alpha_device;
        if (beta_device) beta *= *beta_device;
    }

    __device__ __forceinline__ bool plain() const {
        return alpha == 1.0f && beta == 0.0f && !bias && activation == NN_ACTIVATION_NONE;
    }

    __device__ __forceinline__ float finish(float sum, int64_t row, int64_t column) const {
        float x = alpha * sum;
        if (beta != 0.0f) x += beta * load_number(c, row * ldc + column, c_dtype);
        if (bias) x += load_number(bias, column, bias_dtype);
        return activate(x, activation);
    }

    // Element by element: for tiles at an edge, rows that are not aligned, and kernels that are not in a
    // hurry.
    __device__ __forceinline__ void store(float sum, int64_t row, int64_t column) const {
        store_number(c, row * ldc + column, c_dtype, finish(sum, row, column));
    }
};

// Everything but the rounding, in shared memory: four neighbours per thread and round.
template <class T>
__device__ __forceinline__ void finish_part(const Part& part, const Epilogue& e, int64_t row0,
                                            int64_t column0) {
    const int across = part.columns / 4;
#pragma unroll 1
    for (int i = part.thread; i < part.rows * across; i += part.threads) {
        const int r = i / across, q = i % across * 4;
        const int64_t row = row0 + r, column = column0 + q;
        const int count = row < e.m && column < e.n ? (e.n - column < 4 ? int(e.n - column) : 4) : 0;
        if (count == 0) continue;
        float x[4], before[4] = {}, bias[4] = {};
        load_floats(x, part.at + r * part.stride + q);
        const bool at_once = e.wide && count == 4;
        if (e.beta != 0.0f && e.c_dtype == NN_FLOAT32)
            load_floats(before, static_cast<const float*>(e.c) + row * e.ldc + column, count, at_once);
        else if (e.beta != 0.0f)
            load_floats(before, static_cast<const T*>(e.c) + row * e.ldc + column, count, at_once);
        if (e.bias) load_numbers(bias, e.bias, column, e.bias_dtype, count, e.wide_bias && count == 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[j] = e.alpha * x[j];
            if (e.beta != 0.0f) x[j] += e.beta * before[j];
            if (e.bias) x[j] += bias[j];
        }
        if (e.activation != NN_ACTIVATION_NONE)
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = activate(x[j], e.activation);
        store_shared(part.at + r * part.stride + q, packed<float>(x));
    }
}

// Rows of a part in shared memory -> global memory, 16 bytes per thread and round.  row0, column0: the part's
// place.
template <class T>
__device__ __forceinline__ void store_part_wide(const Part& part, T* c, int64_t ldc, int64_t m, int64_t n,
                                                int64_t row0, int64_t column0) {
    constexpr int N = PACK<T>;
    const int across = part.columns / N;
#pragma unroll 1
    for (int i = part.thread; i < part.rows * across; i += part.threads) {
        const int r = i / across, q = i % across * N;
        const int64_t row = row0 + r, column = column0 + q;
        if (row >= m || column >= n) continue;
        float x[N];
        // of 8 neighbours, lanes 4-7 of 8 take the second four first: a pass of 8 lanes meets all banks once
        const int first = N == 8 ? (part.thread >> 2 & 1) * 4 : 0;
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            const Pack<float, 4> four = load_pack<4>(part.at + r * part.stride + q + (first ^ j));
#pragma unroll
            for (int i = 0; i < 4; i++) x[j + i] = four[i];
        }
        Pack<T, N> packed;
#pragma unroll
        for (int j = 0; j < N; j++)
            packed[j] = from_float<T>(N == 8 ? (first ? x[j ^ 4] : x[j]) : x[j]);
        if (column + N <= n) {
            store_global(c + row * ldc + column, packed);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (column + j < n) c[row * ldc + column + j] = packed[j];
        }
    }
}

template <class T>
__device__ __forceinline__ void store_part_narrow(const Part& part, T* c, int64_t ldc, int64_t m, int64_t n,
                                                  int64_t row0, int64_t column0) {
#pragma unroll 1
    for (int i = part.thread; i < part.rows * part.columns; i += part.threads) {
        const int r = i / part.columns, q = i % part.columns;
        if (row0 + r < m && column0 + q < n)
            c[(row0 + r) * ldc + column0 + q] = from_float<T>(part.at[r * part.stride + q]);
    }
}

// A part of rows below m and columns below n to c; `wide`: rows of c start at multiples of 16 bytes.
template <class T>
__device__ __forceinline__ void store_part(const Part& part, T* c, int64_t ldc, int64_t m, int64_t n,
                                           int64_t row0, int64_t column0, bool wide) {
    if (wide)
        store_part_wide(part, c, ldc, m, n, row0, column0);
    else
        store_part_narrow(part, c, ldc, m, n, row0, column0);
}

// The whole end for one part of the tile that begins at m0, n0; C is of type T or float.  `together` waits
// for the part's threads.
template <class T, class Together>
__device__ __forceinline__ void write_part(const Part& part, const Epilogue& e, int64_t m0, int64_t n0,
                                           const Together& together) {
    const int64_t row0 = m0 + part.row, column0 = n0 + part.column;
    if (row0 >= e.m || column0 >= e.n) return;         // the same for all of the part's threads
    if (!e.plain()) {
        finish_part<T>(part, e, row0, column0);
        together();
    }
    if (e.c_dtype == NN_FLOAT32)
        store_part(part, static_cast<float*>(e.c), e.ldc, e.m, e.n, row0, column0, e.wide);
    else if constexpr (sizeof(T) == 2)
        store_part(part, static_cast<T*>(e.c), e.ldc, e.m, e.n, row0, column0, e.wide);
}

}  // namespace nn
