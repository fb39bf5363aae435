// Bulk copies and the async proxy (sm_90).
#include <cstdint>

__device__ uint32_t address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ void expect(uint64_t* bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(bar)), "r"(bytes) : "memory");
}
__device__ void load(void* to, const void* from, int bytes, uint64_t* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(address(to)), "l"(from), "r"(bytes), "r"(address(bar)) : "memory");                      // [bulk load]
}
__device__ void wait(uint64_t* bar, int parity) {
    int done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(address(bar)), "r"(parity) : "memory");
}

// ---- a tile loaded by one thread, read by all
template <bool waits> __device__ void loaded(int* y, const int* x) {
    __shared__ __align__(16) int tile[64];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&bar)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        expect(&bar, 256);
        load(tile, x, 256, &bar);
    }
    __syncthreads();
    if (waits) wait(&bar, 0);
    y[threadIdx.x] = tile[63 - threadIdx.x];                                                                    // [bulk read]
    if (!waits) wait(&bar, 0);
}
__global__ void bulk_ok(int* y, const int* x) { loaded<true>(y, x); }
__global__ void bulk_not_waited(int* y, const int* x) { loaded<false>(y, x); }

// ---- a tile filled twice: nobody may still read it
template <bool releases> __device__ void refilled(int* y, const int* x) {
    __shared__ __align__(16) int tile[64];
    __shared__ uint64_t full[2];
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(full + i)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 2; ++i) {
        if (threadIdx.x == 0) {
            expect(full + i, 256);
            load(tile, x + 64 * i, 256, full + i);
        }
        wait(full + i, 0);
        sum += tile[63 - threadIdx.x];                                                                          // [refill read]
        if (releases) __syncthreads();
    }
    y[threadIdx.x] = sum;
}
__global__ void refill_ok(int* y, const int* x) { refilled<true>(y, x); }
__global__ void refill_bad(int* y, const int* x) { refilled<false>(y, x); }

// ---- a tile written by all, stored by one thread: generic writes, then the async proxy reads
template <int how> __device__ void stored(int* y, const int* x) {
    __shared__ __align__(16) int tile[64];
    tile[threadIdx.x] = x[threadIdx.x];                                                                         // [tile write]
    if (how == 0) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        if (how == 1) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;" ::"l"(y), "r"(address(tile)) : "memory");   // [bulk store]
        asm volatile("cp.async.bulk.commit_group;");
        if (how != 3) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
    if (how == 3) { __syncthreads(); tile[threadIdx.x] = 0; }                                                   // [tile rewrite]
    if (how == 3 && threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
__global__ void store_ok(int* y, const int* x) { stored<0>(y, x); }
__global__ void store_late_fence_ok(int* y, const int* x) { stored<1>(y, x); }
__global__ void store_no_fence(int* y, const int* x) { stored<2>(y, x); }
__global__ void store_rewritten(int* y, const int* x) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    stored<3>(y, x);
}
