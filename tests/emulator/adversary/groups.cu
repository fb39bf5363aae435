// Cooperative groups, collectives, barriers and pipelines of libcu++.
// All kernels take (out, zero, in); *_bad are broken.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda/barrier>
#include <cuda/pipeline>

namespace cg = cooperative_groups;

// ---- groups of a warp
__global__ void warp_aggregated_ok(int* out, int* zero, const int* in) {
    if (in[threadIdx.x] % 3) return;
    auto active = cg::coalesced_threads();
    int base = 0;
    if (active.thread_rank() == 0) base = atomicAdd(zero, (int)active.size());
    base = active.shfl(base, 0);
    atomicAdd(&out[base + active.thread_rank()], 1);
}
__global__ void tiles_ok(int* out, int*, const int* in) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    const int sum = cg::reduce(tile, in[threadIdx.x], cg::plus<int>());
    const int before = cg::exclusive_scan(tile, in[threadIdx.x]);
    __shared__ int share[64];
    share[threadIdx.x] = before;
    tile.sync();
    out[threadIdx.x] = sum + share[threadIdx.x ^ 7];
}
__global__ void tiles_bad(int* out, int*, const int* in) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    __shared__ int share[64];
    share[threadIdx.x] = in[threadIdx.x];                                         // [tile write]
    tile.sync();
    out[threadIdx.x] = share[threadIdx.x ^ 8];                                    // [tile read]
}
__global__ void labels_ok(int* out, int*, const int* in) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    auto group = cg::labeled_partition(warp, in[threadIdx.x] % 3);
    out[threadIdx.x] =
        group.size() * 100 + group.thread_rank() + cg::reduce(group, 1, cg::plus<int>()) * 10000;
}
__global__ void divergent_tiles_ok(int* out, int*, const int* in) {
    auto tile = cg::tiled_partition<4>(cg::this_thread_block());
    int sum = 0;
    for (int i = 0; i < tile.meta_group_rank(); ++i) sum += tile.shfl(in[threadIdx.x] + i, 1);
    out[threadIdx.x] = sum;
}
__global__ void large_tile_ok(int* out, int*, const int* in) {
    __shared__ cg::block_tile_memory<128> memory;
    auto block = cg::this_thread_block(memory);
    auto tile = cg::tiled_partition<64>(block);
    out[threadIdx.x] = cg::reduce(tile, in[threadIdx.x], cg::plus<int>());
}

// ---- collectives
__global__ void votes_ok(int* out, int*, const int* in) {
    const int count = __syncthreads_count(in[threadIdx.x] & 1);
    const int all = __syncthreads_and(in[threadIdx.x] < 48), any = __syncthreads_or(threadIdx.x == 47);
    const unsigned lanes = __activemask();
    int same;
    const unsigned match = __match_all_sync(lanes, threadIdx.x / 32, &same);
    const unsigned parity = __match_any_sync(lanes, threadIdx.x & 1);
    out[threadIdx.x] =
        count + 100 * all + 1000 * any + (match == lanes) * 10000 + same * 100000 + __popc(parity) * 1000000;
}
__global__ void redux_ok(int* out, int*, const int* in) {
    const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
    out[threadIdx.x] = threadIdx.x < 16 ? __reduce_add_sync(mask, in[threadIdx.x])
                                        : __reduce_max_sync(mask, in[threadIdx.x]);
}
__global__ void wide_shuffles_ok(int* out, int*, const int* in) {
    const double d = __shfl_xor_sync(~0u, in[threadIdx.x] + 0.5, 1);
    const long long l = __shfl_down_sync(~0u, (long long)in[threadIdx.x] << 33, 2, 16);
    const unsigned long long up = __shfl_up_sync(~0u, (unsigned long long)in[threadIdx.x] << 40, 1, 8);
    out[threadIdx.x] = int(d * 2) + 1000 * int(l >> 33) + 1000000 * int(up >> 40);
}
__global__ void shuffle_in_branch_bad(int* out, int*, const int* in) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 0);    // [shuffle in branch]
    __syncthreads();                                                              // [barrier behind it]
}
// A mask may name lanes that have exited.
__global__ void shuffle_past_exited_ok(int* out, int*, const int* in) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 0);
}
__global__ void own_lane_missing_bad(int* out, int*, const int* in) {
    out[threadIdx.x] = __shfl_sync(0xfffffffeu, in[threadIdx.x], 1);                  // [own lane missing]
}
__global__ void loop_leaves_whole_block_ok(int* out, int*, const int* in) {
    __shared__ int seen;
    for (int i = 0;; ++i) {
        if (threadIdx.x == 0) seen = in[i];
        __syncthreads();
        if (seen == 5) break;
        __syncthreads();
    }
    out[threadIdx.x] = seen;
}
__global__ void uniform_early_exit_ok(int* out, int*, const int* in) {
    if (blockIdx.x % 2) return;
    __shared__ int tile[64];
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void barrier_in_loop_bad(int* out, int*, const int* in) {
    for (int i = 0; i <= threadIdx.x / 32; ++i) {
        out[threadIdx.x] += in[i];
        __syncthreads();                                                          // [barrier in loop]
    }
    __syncthreads();                                                              // [barrier after loop]
}

// ---- cuda::barrier
using Barrier = cuda::barrier<cuda::thread_scope_block>;
template <int count, int phases> __device__ void turns(int* out, const int* in) {
    __shared__ Barrier full, empty;
    __shared__ int value[32];
    if (threadIdx.x == 0) { init(&full, count); init(&empty, count); }
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int i = 0; i < 4; ++i) {
            if (i) empty.wait_parity((i - 1 + phases) & 1);                       // [turns producer waits]
            value[threadIdx.x] = in[i * 32 + threadIdx.x];                        // [turns write]
            (void)full.arrive();
        }
    } else {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
            full.wait_parity(i & 1);                                              // [turns consumer waits]
            sum += value[63 - threadIdx.x];                                       // [turns read]
            (void)empty.arrive();
        }
        out[threadIdx.x - 32] = sum;
    }
}
__global__ void turns_ok(int* out, int*, const int* in) { turns<32, 0>(out, in); }
__global__ void turns_parity_bad(int* out, int*, const int* in) { turns<32, 1>(out, in); }
__global__ void turns_count_bad(int* out, int*, const int* in) { turns<33, 0>(out, in); }
__global__ void drop_ok(int* out, int*, const int* in) {
    __shared__ Barrier barrier;
    __shared__ int tile[64];
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    tile[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x >= 48) { barrier.arrive_and_drop(); return; }
    barrier.arrive_and_wait();
    const int got = tile[63 - threadIdx.x];
    barrier.arrive_and_wait();
    tile[threadIdx.x] = got;
    barrier.arrive_and_wait();
    out[threadIdx.x] = tile[47 - threadIdx.x];
}
__global__ void uninitialised_barrier_bad(int* out, int*, const int*) {
    __shared__ Barrier barrier;
    barrier.arrive_and_wait();                                                    // [uninitialised barrier]
    out[threadIdx.x] = 1;
}

// ---- cuda::pipeline, memcpy_async
template <bool waits> __device__ void staged(int* out, const int* in) {
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    __shared__ alignas(16) int tiles[2][64];
    auto block = cg::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state);
    for (int i = 0; i < 2; ++i) {
        pipe.producer_acquire();
        cuda::memcpy_async(block, tiles[i], in + i * 64, cuda::aligned_size_t<16>(256),    // [staged copy]
                           pipe);
        pipe.producer_commit();
    }
    int sum = 0;
    for (int i = 0; i < 6; ++i) {
        if (waits) pipe.consumer_wait();
        sum += tiles[i % 2][63 - threadIdx.x];                                    // [staged read]
        if (!waits) pipe.consumer_wait();
        pipe.consumer_release();
        pipe.producer_acquire();
        if (i < 4)
            cuda::memcpy_async(block, tiles[i % 2], in + (i + 2) * 64, cuda::aligned_size_t<16>(256), pipe);
        pipe.producer_commit();
    }
    out[threadIdx.x] = sum;
}
__global__ void staged_ok(int* out, int*, const int* in) { staged<true>(out, in); }
__global__ void staged_bad(int* out, int*, const int* in) { staged<false>(out, in); }
__global__ void thread_pipeline_ok(int* out, int*, const int* in) {
    __shared__ int mine[2][64];
    auto pipe = cuda::make_pipeline();
    int sum = 0;
    for (int i = 0; i < 5; ++i) {
        if (i < 4) {
            pipe.producer_acquire();
            cuda::memcpy_async(&mine[i % 2][threadIdx.x], in + i * 64 + threadIdx.x, sizeof(int), pipe);
            pipe.producer_commit();
        }
        if (i) {
            if (i < 4) cuda::pipeline_consumer_wait_prior<1>(pipe);
            else cuda::pipeline_consumer_wait_prior<0>(pipe);
            sum += mine[(i - 1) % 2][threadIdx.x];
            pipe.consumer_release();
        }
    }
    out[threadIdx.x] = sum;
}
template <bool waits> __device__ void group_copy(int* out, const int* in) {
    __shared__ alignas(16) int tile[100];
    auto block = cg::this_thread_block();
    cg::memcpy_async(block, tile, in + 1, sizeof tile);                           // [group copy]
    if (waits) cg::wait(block); else block.sync();
    out[threadIdx.x] = tile[99 - threadIdx.x];                                    // [group read]
    if (!waits) cg::wait(block);
}
__global__ void group_copy_ok(int* out, int*, const int* in) { group_copy<true>(out, in); }
__global__ void group_copy_bad(int* out, int*, const int* in) { group_copy<false>(out, in); }
__global__ void barrier_copy_ok(int* out, int*, const int* in) {
    __shared__ Barrier barrier;
    __shared__ alignas(16) int tile[256];
    auto block = cg::this_thread_block();
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    cuda::memcpy_async(block, tile, in, cuda::aligned_size_t<16>(sizeof tile), barrier);
    barrier.arrive_and_wait();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}

// ---- the whole grid
__global__ void grid_sync_ok(int* out, int* zero, const int* in) {
    auto grid = cg::this_grid();
    zero[grid.thread_rank()] = in[grid.thread_rank()];
    grid.sync();
    const int got = zero[grid.size() - 1 - grid.thread_rank()];
    grid.sync();
    zero[grid.thread_rank()] = got;
    grid.sync();
    out[grid.thread_rank()] = zero[(grid.thread_rank() + 64) % grid.size()];
}
__global__ void grid_sync_bad(int* out, int* zero, const int* in) {
    auto grid = cg::this_grid();
    zero[grid.thread_rank()] = in[grid.thread_rank()];                            // [grid write]
    __syncthreads();
    out[grid.thread_rank()] = zero[grid.size() - 1 - grid.thread_rank()];         // [grid read]
}
