// Copies from global to shared memory that pass no registers: cp.async (sm_80).  Before sm_80 the same calls
// are plain loads and stores, right but not asynchronous (a kernel that wants overlap there loads early
// itself).
//
//     copy_async<16>(to, from, valid);  ...  copy_async_commit();  ...  copy_async_wait<PENDING>();
//
// A thread's commits close its copies into groups; wait<N> returns when all but its youngest N have landed,
// for this thread: others see the bytes after a barrier.
#pragma once

#include <stdint.h>

#include "pack.cuh"

namespace nn {

// `to` and `from` are aligned to BYTES.  Only the first `valid` bytes are read, the rest of `to` becomes
// zero; with valid = 0 `from` is not read, but should still be an address of global memory.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    Pack<uint32_t, BYTES / 4> words{};
    if (valid == BYTES) {
        words = load_pack<BYTES / 4>(static_cast<const uint32_t*>(from));
    } else {
#pragma unroll
        for (int i = 0; i < BYTES; i++)
            if (i < valid) words[i / 4] |= uint32_t(static_cast<const uint8_t*>(from)[i]) << 8 * (i % 4);
    }
    store_shared(static_cast<uint32_t*>(to), words);
#else
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16)               // .cg: not kept in L1
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(address), "l"(from), "r"(valid) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(address), "l"(from), "n"(BYTES), "r"(valid) : "memory");
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
#endif
}

}  // namespace nn
