// Races between blocks, through global memory and through the shared memory of a cluster.
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

__global__ void own_rows(int* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1; }
__global__ void overlapping(int* y) { y[blockIdx.x * 16 + threadIdx.x] = 1; }                 // [overlap]
__global__ void reads_neighbour(int* y) {
    y[blockIdx.x * 32 + threadIdx.x] = 1;                                                     // [neighbour write]
    y[64 + blockIdx.x * 32 + threadIdx.x] = y[(1 - blockIdx.x) * 32 + threadIdx.x];           // [neighbour read]
}
__global__ void reads_only(int* y, const int* x) { y[blockIdx.x * 32 + threadIdx.x] = x[threadIdx.x]; }
__global__ void clears_input(int* x) {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += x[i];                                                  // [input read]
    if (sum >= 0 && blockIdx.x == 3 && threadIdx.x == 0) x[0] = 9;                            // [input write]
}
__global__ void atomics(int* y) { atomicAdd(y, 1); }
__global__ void atomic_and_plain(int* y) {
    if (blockIdx.x == 0) atomicAdd(y, 1);                                                     // [block atomic]
    else *y = 3;                                                                              // [block plain]
}
__global__ void volatile_flag(int* y) { *(volatile int*)y = 1; }

// The last block adds what all left: thread 0 publishes for its block.
template <int fence> __device__ void ticket(int* out, int* part, unsigned* tickets) {
    __shared__ bool last;
    part[blockIdx.x * 32 + threadIdx.x] = blockIdx.x;                                         // [part write]
    if (fence == 1) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (fence == 2) __threadfence();
        if (fence == 3) __threadfence_block();
        last = atomicAdd(tickets, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last) atomicAdd(out, part[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x]);          // [part read]
    if (last && threadIdx.x == 0) *tickets = 0;
}
__global__ void ticket_all_fence(int* out, int* part, unsigned* tickets) { ticket<1>(out, part, tickets); }
__global__ void ticket_one_fence(int* out, int* part, unsigned* tickets) { ticket<2>(out, part, tickets); }
__global__ void ticket_block_fence(int* out, int* part, unsigned* tickets) { ticket<3>(out, part, tickets); }
__global__ void ticket_no_fence(int* out, int* part, unsigned* tickets) { ticket<0>(out, part, tickets); }

// Each block adds to what the block before it left, in order of tickets.
template <bool device_scope> __device__ void chain(int* sum, int* flags, unsigned* tickets) {
    unsigned mine = atomicAdd(tickets, 1u);
    int before = 0;
    if (mine > 0) {
        int ready = 0;
        while (!ready) asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(ready) : "l"(flags + mine - 1) : "memory");
        before = sum[mine - 1];                                                               // [chain read]
    }
    sum[mine] = before + 1;                                                                   // [chain write]
    if (device_scope) asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(flags + mine), "r"(1) : "memory");
    else asm volatile("st.release.cta.global.b32 [%0], %1;" ::"l"(flags + mine), "r"(1) : "memory");
}
__global__ void chain_gpu(int* sum, int* flags, unsigned* tickets) { chain<true>(sum, flags, tickets); }
__global__ void chain_cta(int* sum, int* flags, unsigned* tickets) { chain<false>(sum, flags, tickets); }

// All blocks resident, with a barrier of the grid.
__global__ void grid_sync_ok(int* y) {
    y[blockIdx.x * 32 + threadIdx.x] = 1;
    cg::this_grid().sync();
    y[64 + blockIdx.x * 32 + threadIdx.x] = y[(1 - blockIdx.x) * 32 + threadIdx.x];
}

// Shared memory of the other block of a cluster.
template <int syncs> __device__ void exchange(int* y) {
    __shared__ int tile[32];
    auto cluster = cg::this_cluster();
    tile[threadIdx.x] = blockIdx.x;                                                           // [cluster write]
    if (syncs & 1) cluster.sync(); else __syncthreads();
    int* other = cluster.map_shared_rank(tile, 1 - cluster.block_rank());
    y[blockIdx.x * 32 + threadIdx.x] = other[threadIdx.x];                                    // [cluster read]
    if (syncs & 2) cluster.sync();
}
__global__ void __cluster_dims__(2) cluster_ok(int* y) { exchange<3>(y); }
__global__ void __cluster_dims__(2) cluster_bad(int* y) { exchange<2>(y); }
__global__ void __cluster_dims__(2) cluster_leaves(int* y) { exchange<1>(y); }
