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

// The machine's word of so many bytes: what makes the copy of a pack one instruction for every T.
template <int BYTES> struct Word;
template <> struct Word<1> { using type = uint8_t; };
template <> struct Word<2> { using type = uint16_t; };
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
    using W = typename Word<sizeof(T) * N>::type;
    Pack<T, N> pack;
    *reinterpret_cast<W*>(&pack) = *reinterpret_cast<const W*>(from);
    return pack;
}

template <int N, class T> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
    using W = typename Word<sizeof(T) * N>::type;
    *reinterpret_cast<W*>(to) = *reinterpret_cast<const W*>(&pack);
}

// The same to an address known to be global, or shared, memory: nvcc splits the copy of a struct into its
// words, and does not always join them again.
template <int N, class T> __device__ __forceinline__ void store_global(T* to, const Pack<T, N>& pack) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&pack);
    if constexpr (sizeof(T) * N == 16)
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                     "r"(words[0]),
                     "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
    else store_pack(to, pack);
}

template <int N, class T> __device__ __forceinline__ void store_shared(T* to, const Pack<T, N>& pack) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&pack);
    if constexpr (sizeof(T) * N == 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                         static_cast<uint32_t>(__cvta_generic_to_shared(to))), "r"(words[0]), "r"(words[1]),
                     "r"(words[2]), "r"(words[3]) : "memory");
    else store_pack(to, pack);
}

// The elements as floats, and back, rounded to nearest.
template <int N, class T> __device__ __forceinline__ void unpack(float (&to)[N], const Pack<T, N>& pack) {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = to_float(pack[i]);
}

template <class T, int N> __device__ __forceinline__ Pack<T, N> packed(const float (&from)[N]) {
    Pack<T, N> pack;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
        uint32_t* pairs = reinterpret_cast<uint32_t*>(&pack);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) pairs[i] = pair_from_float<T>(from[2 * i], from[2 * i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) pack[i] = from_float<T>(from[i]);
    }
    return pack;
}

template <int N, class T> __device__ __forceinline__ void load_floats(float (&to)[N], const T* from) {
    unpack<N>(to, load_pack<N>(from));
}

// To global memory
template <int N, class T> __device__ __forceinline__ void store_floats(T* to, const float (&from)[N]) {
    store_global<N>(to, packed<T, N>(from));
}

}  // namespace nn
