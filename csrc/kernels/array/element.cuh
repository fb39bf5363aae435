// Elements of a type known at run time, as the type that is computed with: float, double or int64_t.  The
// switch is the same for every thread, and beside a memory access it costs nothing.
#pragma once

#include "device/number.cuh"
#include "device/pack.cuh"

namespace nn::array {

struct Bool {
    uint8_t byte;
};

template <class C> __device__ __forceinline__ C widened(float x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(double x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(half x) { return static_cast<C>(to_float(x)); }
template <class C> __device__ __forceinline__ C widened(bfloat16 x) { return static_cast<C>(to_float(x)); }
template <class C> __device__ __forceinline__ C widened(int64_t x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(int32_t x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(uint32_t x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(uint8_t x) { return static_cast<C>(x); }
template <class C> __device__ __forceinline__ C widened(Bool x) { return static_cast<C>(x.byte != 0); }

template <class S> struct Stored {
    template <class C> static __device__ __forceinline__ S from(C x) { return static_cast<S>(x); }
};
template <> struct Stored<half> {
    template <class C> static __device__ __forceinline__ half from(C x) {
        return __float2half_rn(static_cast<float>(x));
    }
    static __device__ __forceinline__ half from(double x) { return __double2half(x); }
};
template <> struct Stored<bfloat16> {
    template <class C> static __device__ __forceinline__ bfloat16 from(C x) {
        return __float2bfloat16_rn(static_cast<float>(x));
    }
};
template <> struct Stored<uint8_t> {                 // through int64_t: wraps, as integers do
    template <class C> static __device__ __forceinline__ uint8_t from(C x) {
        return static_cast<uint8_t>(static_cast<int64_t>(x));
    }
};
template <> struct Stored<uint32_t> {
    template <class C> static __device__ __forceinline__ uint32_t from(C x) {
        return static_cast<uint32_t>(static_cast<int64_t>(x));
    }
};
template <> struct Stored<Bool> {
    template <class C> static __device__ __forceinline__ Bool from(C x) {
        return {static_cast<uint8_t>(x != C(0))};
    }
};

// Run a statement with S as the storage type of a dtype that the host has checked.
#define NN_FOR_STORED(dtype, S, ...)                                    \
    switch (dtype) {                                                    \
        case NN_FLOAT32: { using S = float; __VA_ARGS__; } break;       \
        case NN_FLOAT16: { using S = half; __VA_ARGS__; } break;        \
        case NN_BFLOAT16: { using S = bfloat16; __VA_ARGS__; } break;   \
        case NN_INT64: { using S = int64_t; __VA_ARGS__; } break;       \
        case NN_INT32: { using S = int32_t; __VA_ARGS__; } break;       \
        case NN_UINT8: { using S = uint8_t; __VA_ARGS__; } break;       \
        case NN_BOOL: { using S = ::nn::array::Bool; __VA_ARGS__; } break; \
        case NN_UINT32: { using S = uint32_t; __VA_ARGS__; } break;     \
        case NN_FLOAT64: { using S = double; __VA_ARGS__; } break;      \
    }

template <class C> __device__ __forceinline__ C load(const void* from, int dtype, int64_t i) {
    NN_FOR_STORED(dtype, S, return widened<C>(static_cast<const S*>(from)[i]));
    return C(0);
}

template <class C> __device__ __forceinline__ void store(void* to, int dtype, int64_t i, C x) {
    NN_FOR_STORED(dtype, S, static_cast<S*>(to)[i] = Stored<S>::from(x));
}

// N neighbours, aligned to their size or to 16 bytes; no access is wider than that.
template <class S, int N> constexpr int AT_ONCE = N < PACK<S> ? N : PACK<S>;

template <class S, int N, class C> __device__ __forceinline__ void load_stored(C (&x)[N], const S* from) {
    constexpr int n = AT_ONCE<S, N>;
#pragma unroll
    for (int j = 0; j < N; j += n) {
        Pack<S, n> pack = load_pack<n>(from + j);
#pragma unroll
        for (int k = 0; k < n; ++k) x[j + k] = widened<C>(pack[k]);
    }
}

template <class S, int N, class C> __device__ __forceinline__ void store_stored(S* to, const C (&x)[N]) {
    constexpr int n = AT_ONCE<S, N>;
#pragma unroll
    for (int j = 0; j < N; j += n) {
        Pack<S, n> pack;
#pragma unroll
        for (int k = 0; k < n; ++k) pack[k] = Stored<S>::from(x[j + k]);
        store_global(to + j, pack);
    }
}

template <int N, class C>
__device__ __forceinline__ void load_many(C (&x)[N], const void* from, int dtype, int64_t i) {
    NN_FOR_STORED(dtype, S, load_stored<S>(x, static_cast<const S*>(from) + i));
}

template <int N, class C>
__device__ __forceinline__ void store_many(void* to, int dtype, int64_t i, const C (&x)[N]) {
    NN_FOR_STORED(dtype, S, store_stored<S>(static_cast<S*>(to) + i, x));
}

}  // namespace nn::array
