// Pipelines through shared memory in the ways of CUDA C++: cuda::pipeline, cuda::barrier and
// cooperative_groups with memcpy_async.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>

namespace cg = cooperative_groups;
constexpr int TILE = 128;      // floats per stage, one per thread

// out[block] = sum of the block's `tiles` tiles; two stages in flight.
__global__ void pipeline_sum(float* out, const float* in, int tiles) {
    __shared__ alignas(16) float buffer[2][TILE];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    auto pipeline = cuda::make_pipeline(block, &state);
    const float* mine = in + size_t(blockIdx.x) * tiles * TILE;
    float sum = 0;
    for (int tile = 0, fetch = 0; tile < tiles; ++tile) {
        for (; fetch < tiles && fetch < tile + 2; ++fetch) {
            pipeline.producer_acquire();
            cuda::memcpy_async(block, buffer[fetch % 2], mine + fetch * TILE,
                               cuda::aligned_size_t<16>(TILE * sizeof(float)), pipeline);
            pipeline.producer_commit();
        }
        pipeline.consumer_wait();
        sum += buffer[tile % 2][(threadIdx.x + 1) % TILE];
        pipeline.consumer_release();
    }
    atomicAdd(out + blockIdx.x, sum);
}

// The same, each thread for itself: no block synchronisation needed.
__global__ void thread_pipeline_sum(float* out, const float* in, int tiles) {
    __shared__ alignas(16) float buffer[2][TILE];
    auto pipeline = cuda::make_pipeline();
    const float* mine = in + size_t(blockIdx.x) * tiles * TILE + threadIdx.x;
    float sum = 0;
    for (int tile = 0, fetch = 0; tile < tiles; ++tile) {
        for (; fetch < tiles && fetch < tile + 2; ++fetch) {
            pipeline.producer_acquire();
            cuda::memcpy_async(&buffer[fetch % 2][threadIdx.x], mine + fetch * TILE, sizeof(float), pipeline);
            pipeline.producer_commit();
        }
        pipeline.consumer_wait();
        sum += buffer[tile % 2][threadIdx.x];
        pipeline.consumer_release();
    }
    atomicAdd(out + blockIdx.x, sum);
}

__global__ void barrier_sum(float* out, const float* in, int tiles) {
    __shared__ alignas(16) float buffer[TILE];
    __shared__ cuda::barrier<cuda::thread_scope_block> ready;
    auto block = cg::this_thread_block();
    if (threadIdx.x == 0) init(&ready, blockDim.x);
    block.sync();
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        const float* source = in + (size_t(blockIdx.x) * tiles + tile) * TILE;
        cuda::memcpy_async(block, buffer, source, cuda::aligned_size_t<16>(sizeof buffer), ready);
        ready.arrive_and_wait();
        sum += buffer[(threadIdx.x + 1) % TILE];
        ready.arrive_and_wait();
    }
    atomicAdd(out + blockIdx.x, sum);
}

__global__ void groups_sum(float* out, const float* in, int tiles) {
    __shared__ alignas(16) float buffer[2][TILE];
    auto block = cg::this_thread_block();
    float sum = 0;
    const float* mine = in + size_t(blockIdx.x) * tiles * TILE;
    cg::memcpy_async(block, buffer[0], mine, sizeof buffer[0]);
    for (int tile = 0; tile < tiles; ++tile) {
        if (tile + 1 < tiles) {
            cg::memcpy_async(block, buffer[(tile + 1) % 2], mine + (tile + 1) * TILE, sizeof buffer[0]);
            cg::wait_prior<1>(block);
        } else {
            cg::wait(block);
        }
        sum += buffer[tile % 2][(threadIdx.x + 1) % TILE];
        block.sync();
    }
    atomicAdd(out + blockIdx.x, sum);
}

// Warps 0..1 produce, warps 2..3 consume, in roles given at run time.
__global__ void roles_sum(float* out, const float* in, int tiles) {
    __shared__ alignas(16) float buffer[2][TILE];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    const bool produces = threadIdx.x < TILE / 2;
    auto pipeline = cuda::make_pipeline(
        block, &state, produces ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
    const float* mine = in + size_t(blockIdx.x) * tiles * TILE;
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        if (produces) {
            pipeline.producer_acquire();
            cuda::memcpy_async(&buffer[tile % 2][threadIdx.x * 2], mine + tile * TILE + threadIdx.x * 2,
                               cuda::aligned_size_t<8>(8), pipeline);
            pipeline.producer_commit();
        } else {
            pipeline.consumer_wait();
            for (int half = 0; half < 2; ++half) sum += buffer[tile % 2][(threadIdx.x * 2 + half + 3) % TILE];
            pipeline.consumer_release();
        }
    }
    if (!produces) atomicAdd(out + blockIdx.x, sum);
}
