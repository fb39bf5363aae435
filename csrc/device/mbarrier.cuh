// Barriers in shared memory that count arrivals and bytes, mbarrier (sm_90): how asynchronous copies say that
// they are done, and how those who read a stage say that it may be filled again.  PTX ISA, "mbarrier".
//
//     barrier_init(full + i, 1), barrier_init(empty + i, READERS);  barrier_init_fence();  __syncthreads();
//     filling:  barrier_wait(empty + at.stage, at.phase ^ 1);       // passes at once the first time round
//               barrier_expect(full + at.stage, bytes);  copies that complete on it;  at.next();
//     reading:  barrier_wait(full + at.stage, at.phase);  ...  barrier_arrive(empty + at.stage);  at.next();
//
// A barrier is in phase 0, 1, 0 ...; a phase ends when all arrivals and all expected bytes have come, and to
// wait for a parity is to wait until the phase of that parity has ended.
#pragma once

#include "mma.cuh"

namespace nn {

using Barrier = uint64_t;                              // opaque

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :: "r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// By the thread that initialised, before others (and copies) meet the barriers.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(barrier)) : "memory");
}

// Arrive, and make the phase wait for so many bytes as well.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(Barrier* barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!done);
}

// Which stage of a ring is next, and the parity of this time round.
template <int STAGES> struct RingPlace {
    int stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

}  // namespace nn
