// Pack<T, N>: N neighbouring elements moved as one; of 16 bytes, a single instruction of the memory system.
#pragma once

#include "number.cuh"

namespace nn {

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
    __device__ __forceinline__ T& operator[](int i) { return at[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return at[i]; }
};

template <class T> constexpr int PACK = 16 / sizeof(T);          // elements in 16 bytes

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace nn
