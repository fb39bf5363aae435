// Stores of 8 and 16 bytes to shared memory that stay one instruction (packs: pack.cuh).  The compiler takes
// a store of float4 apart when it knows the four values, and puts it together again only where it still sees
// the alignment: often it does not.
#pragma once

#include "pack.cuh"

namespace nn {

__device__ __forceinline__ void store_shared(float* to, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                 :: "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "f"(a), "f"(b) : "memory");
}

__device__ __forceinline__ void store_shared(float* to, float a, float b, float c, float d) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "f"(a), "f"(b), "f"(c), "f"(d)
                 : "memory");
}

}  // namespace nn
