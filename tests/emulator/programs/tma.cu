// Tensor memory access in CUDA C++: tiles loaded and stored with a swizzle, and a multicast over a cluster.
#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda/barrier>
#include <cuda/ptx>
#include <cuda_bf16.h>

namespace ptx = cuda::ptx;
namespace cde = cuda::device::experimental;
using Barrier = cuda::barrier<cuda::thread_scope_block>;
constexpr int ROWS = 32, COLUMNS = 64;       // a tile: 64 bf16 = 128 bytes per row

// out = in + its column in the tile: loaded with a 128-byte swizzle, changed by code that knows it, stored
// back swizzled.
__global__ void add_column(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out) {
    __shared__ alignas(1024) __nv_bfloat16 tile[ROWS][COLUMNS];
    __shared__ Barrier ready;
    if (threadIdx.x == 0) {
        init(&ready, blockDim.x);
        cde::fence_proxy_async_shared_cta();
    }
    __syncthreads();
    const int x = blockIdx.x * COLUMNS, y = blockIdx.y * ROWS;
    Barrier::arrival_token token;
    if (threadIdx.x == 0) {
        cde::cp_async_bulk_tensor_2d_global_to_shared(tile, &in, x, y, ready);
        token = cuda::device::barrier_arrive_tx(ready, 1, sizeof tile);
    } else {
        token = ready.arrive();
    }
    ready.wait(std::move(token));
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += blockDim.x) {
        const int row = i / COLUMNS, column = i % COLUMNS;
        const int place = ((column / 8) ^ (row % 8)) * 8 + column % 8;  // the swizzle: 16-byte chunk XOR row
        tile[row][place] = __hadd(tile[row][place], __float2bfloat16(float(column)));
    }
    cde::fence_proxy_async_shared_cta();
    __syncthreads();
    if (threadIdx.x == 0) {
        cde::cp_async_bulk_tensor_2d_shared_to_global(&out, x, y, tile);
        cde::cp_async_bulk_commit_group();
        cde::cp_async_bulk_wait_group_read<0>();
    }
}

// Block 0 of each cluster loads 1 KiB for all its blocks at once; every block adds its rank and stores in
// bulk.
__global__ void __cluster_dims__(4, 1, 1) multicast(int* out, const int* in) {
    __shared__ alignas(128) int tile[256];
    __shared__ alignas(8) uint64_t ready;
    auto cluster = cooperative_groups::this_cluster();
    const unsigned rank = cluster.block_rank();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&ready, 1);
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
        ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &ready,
                                       sizeof tile);
    }
    cluster.sync();
    if (rank == 0 && threadIdx.x == 0)
        ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, tile, in + blockIdx.x / 4 * 256,
                           sizeof tile, &ready, uint16_t(0xf));
    while (!ptx::mbarrier_try_wait_parity(&ready, 0)) {}
    for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] += rank;
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, out + blockIdx.x * 256, tile, sizeof tile);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());
    }
    cluster.sync();
}
