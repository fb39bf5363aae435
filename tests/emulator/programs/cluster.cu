// Thread block clusters: distributed shared memory by cooperative groups, and a ring of stores that mbarriers
// count.
#include <cooperative_groups.h>
#include <cuda/ptx>

namespace cg = cooperative_groups;
namespace ptx = cuda::ptx;
constexpr int BINS_PER_BLOCK = 32;

// The bins of one histogram are spread over the blocks of a cluster; every thread adds to whichever block has
// its bin.
__global__ void __cluster_dims__(4, 1, 1) histogram(unsigned* counts, const int* values, int n) {
    __shared__ unsigned bins[BINS_PER_BLOCK];
    auto cluster = cg::this_cluster();
    for (int i = threadIdx.x; i < BINS_PER_BLOCK; i += blockDim.x) bins[i] = 0;
    cluster.sync();                                        // all bins are zero before anybody adds
    for (unsigned i = cluster.thread_rank() + blockIdx.x / 4 * cluster.num_threads(); i < n;
         i += gridDim.x * blockDim.x) {
        unsigned* const there = cluster.map_shared_rank(bins, values[i] / BINS_PER_BLOCK);
        atomicAdd(there + values[i] % BINS_PER_BLOCK, 1u);
    }
    cluster.sync();  // all additions are done before anybody reads or leaves
    for (int i = threadIdx.x; i < BINS_PER_BLOCK; i += blockDim.x)
        atomicAdd(counts + cluster.block_rank() * BINS_PER_BLOCK + i, bins[i]);
}

// Every block sends its numbers to the next one; its own arrive when the mbarrier has counted their bytes.
__global__ void __cluster_dims__(4, 1, 1) ring(int* out) {
    __shared__ int inbox[64];
    __shared__ alignas(8) uint64_t arrived;
    auto cluster = cg::this_cluster();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&arrived, 1);
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
        ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &arrived,
                                       sizeof inbox);
    }
    cluster.sync();
    const unsigned next = (cluster.block_rank() + 1) % 4;
    ptx::st_async(cluster.map_shared_rank(inbox + threadIdx.x, next),
                  int(cluster.block_rank() * 100 + threadIdx.x), cluster.map_shared_rank(&arrived, next));
    while (!ptx::mbarrier_try_wait_parity(&arrived, 0)) {}
    out[blockIdx.x * 64 + threadIdx.x] = inbox[threadIdx.x];
    cluster.sync();
}
