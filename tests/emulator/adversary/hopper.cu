// sm_90: clusters, distributed shared memory, bulk copies, proxies.
// All kernels take (out, zero, in); *_bad are broken.
#include <cooperative_groups.h>
#include <cuda/barrier>
#include <cuda/ptx>

namespace cg = cooperative_groups;
namespace ptx = cuda::ptx;
using Barrier = cuda::barrier<cuda::thread_scope_block>;

// ---- distributed shared memory
template <bool before, bool after> __device__ void neighbours(int* out, const int* in) {
    __shared__ int tile[64];
    auto cluster = cg::this_cluster();
    const unsigned rank = cluster.block_rank();
    tile[threadIdx.x] = in[rank * 64 + threadIdx.x];                              // [neighbour write]
    if (before) cluster.sync(); else __syncthreads();
    const int* other = cluster.map_shared_rank(tile, (rank + 1) % cluster.num_blocks());
    out[blockIdx.x * 64 + threadIdx.x] = other[63 - threadIdx.x];                 // [neighbour read]
    if (after) cluster.sync();
}
__global__ void __cluster_dims__(2) neighbours_ok(int* out, int*, const int* in) {
    neighbours<true, true>(out, in);
}
__global__ void __cluster_dims__(2) neighbours_bad(int* out, int*, const int* in) {
    neighbours<false, true>(out, in);
}
__global__ void __cluster_dims__(2) leaves_early_bad(int* out, int*, const int* in) {
    neighbours<true, false>(out, in);
}

// The rank 0 waits long before it reads: rank 1 has certainly left.
__global__ void __cluster_dims__(2) peer_gone_bad(int* out, int* zero, const int* in) {
    __shared__ int tile[64];
    auto cluster = cg::this_cluster();
    tile[threadIdx.x] = in[threadIdx.x];
    cluster.sync();
    if (cluster.block_rank() == 1) { if (threadIdx.x == 0) atomicExch(zero, 1); return; }
    while (atomicAdd(zero, 0) == 0) {}
    for (int i = 0; i < 100; ++i) __nanosleep(1000);
    out[threadIdx.x] = cluster.map_shared_rank(tile, 1)[threadIdx.x];             // [peer gone read]
}
template <bool atomics> __device__ void distributed_histogram(int* out, const int* in) {
    __shared__ int bins[16];
    auto cluster = cg::this_cluster();
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    cluster.sync();
    int* bin = cluster.map_shared_rank(bins, in[threadIdx.x] % 2) + in[threadIdx.x] / 2 % 16;
    if (atomics) atomicAdd(bin, 1); else *bin += 1;                               // [distributed bin]
    cluster.sync();
    if (threadIdx.x < 16) out[blockIdx.x * 16 + threadIdx.x] = bins[threadIdx.x];
}
__global__ void __cluster_dims__(2) distributed_histogram_ok(int* out, int*, const int* in) {
    distributed_histogram<true>(out, in);
}
__global__ void __cluster_dims__(2) distributed_histogram_bad(int* out, int*, const int* in) {
    distributed_histogram<false>(out, in);
}
__global__ void __cluster_dims__(2) split_barrier_ok(int* out, int*, const int* in) {
    __shared__ int tile[64];
    auto cluster = cg::this_cluster();
    tile[threadIdx.x] = in[threadIdx.x] + cluster.block_rank();
    auto token = cluster.barrier_arrive();
    const int meanwhile = in[threadIdx.x] * 2;
    cluster.barrier_wait(std::move(token));
    out[blockIdx.x * 64 + threadIdx.x] =
        cluster.map_shared_rank(tile, cluster.block_rank() ^ 1)[threadIdx.x] + meanwhile;
    cluster.sync();
}
// The peer's mbarrier, arrived at from afar.
template <bool scoped> __device__ void remote_arrival(int* out, const int* in) {
    __shared__ uint64_t ready;
    __shared__ int tile[32];
    auto cluster = cg::this_cluster();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&ready, 32);
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    }
    cluster.sync();
    if (cluster.block_rank() == 0) {
        cluster.map_shared_rank(tile, 1)[threadIdx.x] = in[threadIdx.x];          // [remote write]
        if (scoped)
            ptx::mbarrier_arrive(ptx::sem_release, ptx::scope_cluster, ptx::space_cluster,
                                 cluster.map_shared_rank(&ready, 1));
        else
            ptx::mbarrier_arrive(ptx::sem_relaxed, ptx::scope_cluster, ptx::space_cluster,
                                 cluster.map_shared_rank(&ready, 1));
    } else {
        while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, &ready, 0)) {}
        out[threadIdx.x] = tile[31 - threadIdx.x];                                // [remote read]
    }
    cluster.sync();
}
__global__ void __cluster_dims__(2) remote_arrival_ok(int* out, int*, const int* in) {
    remote_arrival<true>(out, in);
}

// ---- bulk copies
template <bool proxy_fence, bool waits_read> __device__ void bulk_out(int* out, const int* in) {
    __shared__ alignas(128) int tile[64];
    tile[threadIdx.x] = in[threadIdx.x] * 3;                                      // [bulk generic write]
    if (proxy_fence) ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, out, tile, sizeof tile);    // [bulk out]
        ptx::cp_async_bulk_commit_group();
        if (waits_read) ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>{});
    }
    __syncthreads();
    tile[threadIdx.x] = 0;                                                        // [bulk reuse]
    __syncthreads();
    if (threadIdx.x == 0) ptx::cp_async_bulk_wait_group(ptx::n32_t<0>{});
}
__global__ void bulk_out_ok(int* out, int*, const int* in) { bulk_out<true, true>(out, in); }
__global__ void bulk_out_fence_bad(int* out, int*, const int* in) { bulk_out<false, true>(out, in); }
__global__ void bulk_out_reuse_bad(int* out, int*, const int* in) { bulk_out<true, false>(out, in); }

template <int bytes, bool waits> __device__ void bulk_in(int* out, const int* in) {
    __shared__ alignas(128) int tile[64];
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) { init(&barrier, blockDim.x); ptx::fence_proxy_async(ptx::space_shared); }
    __syncthreads();
    Barrier::arrival_token token;
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, tile, in, 256,    // [bulk in]
                           cuda::device::barrier_native_handle(barrier));
        token = cuda::device::barrier_arrive_tx(barrier, 1, bytes);
    } else token = barrier.arrive();
    if (waits) barrier.wait(std::move(token));                                    // [bulk in waits]
    out[threadIdx.x] = tile[63 - threadIdx.x];                                    // [bulk in read]
    if (!waits) barrier.wait(std::move(token));
}
__global__ void bulk_in_ok(int* out, int*, const int* in) { bulk_in<256, true>(out, in); }
__global__ void bulk_in_early_bad(int* out, int*, const int* in) { bulk_in<256, false>(out, in); }
__global__ void bulk_in_bytes_bad(int* out, int*, const int* in) { bulk_in<260, true>(out, in); }
