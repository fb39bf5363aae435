// Packs of global memory moved by one instruction, whatever surrounds it.  The compiler splits plain accesses
// of a pack where its elements are made or used one by one; these name the instruction.  They also say that
// the memory is global where a pointer was itself read from memory.
#pragma once

#include "pack.cuh"

namespace nn {

template <int BYTES> struct WholeWord;
template <> struct WholeWord<2> { using type = unsigned short; };
template <> struct WholeWord<4> { using type = unsigned int; };
template <> struct WholeWord<8> { using type = uint2; };
template <> struct WholeWord<16> { using type = uint4; };

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_whole(const T* from) {
    using W = typename WholeWord<sizeof(T) * N>::type;
    Pack<T, N> pack;
    *reinterpret_cast<W*>(&pack) = __ldca(reinterpret_cast<const W*>(from));
    return pack;
}

template <int N, class T> __device__ __forceinline__ void store_whole(T* to, const Pack<T, N>& pack) {
    using W = typename WholeWord<sizeof(T) * N>::type;
    __stwb(reinterpret_cast<W*>(to), *reinterpret_cast<const W*>(&pack));
}

}  // namespace nn
