// Pack<T, N>: N neighbouring elements, 2 to 16 bytes, moved by one instruction.
//
//     load_pack<N>(from)         from any memory, in the open: the compiler may move it and choose the cache
//     load_global<N>(from)       as it is written, from global memory
//     store_global(to, pack)     to global memory
//     store_shared(to, pack)     to shared memory
//
// The last three name their instruction.  nvcc takes the copy of a pack apart where it knows the elements and
// joins the pieces again only where it still sees the alignment.  Often it does not: up to eight requests for
// one, sectors touched twice, bank conflicts.  They also say which memory is meant where a pointer was itself
// read from memory.  A single element is a plain store.
#pragma once

#include "number.cuh"

namespace nn {

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
    __device__ __forceinline__ T& operator[](int i) { return at[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return at[i]; }
};

template <class T> constexpr int PACK = 16 / sizeof(T);          // elements in 16 bytes

// The machine's word of so many bytes.
template <int BYTES> struct Word;
template <> struct Word<1> { using type = uint8_t; };
template <> struct Word<2> { using type = uint16_t; };
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

template <class T, int N> using WordOf = typename Word<sizeof(T) * N>::type;

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
    Pack<T, N> pack;
    *reinterpret_cast<WordOf<T, N>*>(&pack) = *reinterpret_cast<const WordOf<T, N>*>(from);
    return pack;
}

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_global(const T* from) {
    Pack<T, N> pack;
    *reinterpret_cast<WordOf<T, N>*>(&pack) = __ldca(reinterpret_cast<const WordOf<T, N>*>(from));
    return pack;
}

template <int N, class T> __device__ __forceinline__ void store_global(T* to, const Pack<T, N>& pack) {
    if constexpr (N == 1) *to = pack[0];                         // in the open: loops of them are unrolled
    else __stwb(reinterpret_cast<WordOf<T, N>*>(to), *reinterpret_cast<const WordOf<T, N>*>(&pack));
}

template <int N, class T> __device__ __forceinline__ void store_shared(T* to, const Pack<T, N>& pack) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const auto word = *reinterpret_cast<const WordOf<T, N>*>(&pack);
    static_assert(N == 1 || sizeof(word) >= 4, "a pack in shared memory has 4, 8 or 16 bytes");
    if constexpr (N == 1)
        *to = pack[0];
    else if constexpr (sizeof(word) == 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                     :: "r"(address), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w) : "memory");
    else if constexpr (sizeof(word) == 8)
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(address), "r"(word.x), "r"(word.y) : "memory");
    else
        asm volatile("st.shared.b32 [%0], %1;" :: "r"(address), "r"(word) : "memory");
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

// The first `left` of N elements, zeros beyond; `at_once`: all are there, and aligned as a pack.
template <int N, class T, class Count>
__device__ __forceinline__ void load_floats(float (&to)[N], const T* from, Count left, bool at_once) {
    if (at_once) {
        load_floats(to, from);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = i < left ? to_float(from[i]) : 0.0f;
    }
}

// To global memory
template <int N, class T> __device__ __forceinline__ void store_floats(T* to, const float (&from)[N]) {
    store_global<N>(to, packed<T, N>(from));
}

}  // namespace nn
