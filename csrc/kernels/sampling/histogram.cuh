// Amounts by bin, in shared memory.
#pragma once

#include "device/reduce.cuh"

#include <stdint.h>

namespace nn {

constexpr int BINS = 1024, BIN_BITS = 10;

// Counters of 64 bits in two words: hardware adds to words at once, to double words by trying again and
// again.
struct Histogram {
    uint32_t low[BINS], high[BINS];
    uint64_t before, inside;         // what find() found
    uint32_t bin;

    __device__ __forceinline__ void clear() {
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) low[i] = high[i] = 0;
        __syncthreads();
    }
    __device__ __forceinline__ void add_one(uint32_t bin, uint64_t amount) {
        const uint32_t part = uint32_t(amount), old = atomicAdd(low + bin, part);
        const uint32_t carried = uint32_t(amount >> 32) + (old + part < old);
        if (carried) atomicAdd(high + bin, carried);
    }
    // By whole warps: where all lanes want one bin, one of them adds for all.
    __device__ __forceinline__ void add(uint32_t bin, uint64_t amount, bool valid) {
        const unsigned voters = __ballot_sync(ALL_LANES, valid);
        if (!voters) return;
        const int leader = __ffs(voters) - 1;
        const uint32_t first = __shfl_sync(ALL_LANES, bin, leader);
        if (__all_sync(ALL_LANES, !valid || bin == first)) {
            if (!valid) amount = 0;
#pragma unroll
            for (int offset = 16; offset > 0; offset /= 2)
                amount += __shfl_xor_sync(ALL_LANES, amount, offset);
            if (int(threadIdx.x % 32) == leader) add_one(first, amount);
        } else if (valid) {
            add_one(bin, amount);
        }
    }
    // The first bin up to which there are at least `need`.
    __device__ __forceinline__ void find(uint64_t need) {
        __syncthreads();
        if (threadIdx.x < 32) {
            uint64_t sum = 0;
            for (int base = 0; base < BINS; base += 32) {
                const uint64_t own = uint64_t(high[base + threadIdx.x]) << 32 | low[base + threadIdx.x];
                uint64_t running = own;
#pragma unroll
                for (int offset = 1; offset < 32; offset *= 2) {
                    const uint64_t left = __shfl_up_sync(ALL_LANES, running, offset);
                    if (int(threadIdx.x) >= offset) running += left;
                }
                const unsigned reached = __ballot_sync(ALL_LANES, sum + running >= need);
                if (reached) {
                    if (int(threadIdx.x) == __ffs(reached) - 1)
                        bin = base + threadIdx.x, before = sum + running - own, inside = own;
                    break;
                }
                sum += __shfl_sync(ALL_LANES, running, 31);
            }
        }
        __syncthreads();
    }
};

}  // namespace nn
