// Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011).  The layout of keys and counters is that
// of nn/random.py: counter = (element / 4, three stream words), word element % 4 of the block.
#pragma once

#include <stdint.h>

namespace nn {

struct Words {
    uint32_t at[4];
};

__device__ __forceinline__ Words philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t h0 = __umulhi(c0, 0xD2511F53u), l0 = c0 * 0xD2511F53u;
        const uint32_t h1 = __umulhi(c2, 0xCD9E8D57u), l1 = c2 * 0xCD9E8D57u;
        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// [0, 1): the top 24 bits, exact in float
__device__ __forceinline__ float uniform(uint32_t word) { return float(word >> 8) * 5.9604644775390625e-8f; }

}  // namespace nn
