// Stores of several words by one instruction. In unrolled loops with conditions the compiler cuts a copy of 8
// or 16 bytes into words and does not join them again: four times the requests, sectors touched twice, bank
// conflicts.
#pragma once

#include "device/pack.cuh"

namespace nn {

// In global memory.
template <int N, class T> __device__ __forceinline__ void store_whole(T* to, const Pack<T, N>& pack) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&pack);
    const size_t address = __cvta_generic_to_global(to);
    if constexpr (sizeof(pack) == 16)
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                     :: "l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
    else if constexpr (sizeof(pack) == 8)
        asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                     :: "l"(address), "r"(words[0]), "r"(words[1]) : "memory");
    else
        store_pack<N>(to, pack);
}

// In shared memory.
__device__ __forceinline__ void store_shared(float* to, float4 four) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(address), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w) : "memory");
}

}  // namespace nn
