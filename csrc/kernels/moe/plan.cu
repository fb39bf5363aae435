// The plan of a mixture-of-experts layer: pairs sorted by expert, stable, by counting.
//
// count every block counts its chunk's experts in shared memory (integer atomics: no order in a count) scan
// one block per expert: where each chunk's pairs of that expert begin place every block walks its chunk
// again, in order, and ranks: a pair's row = rows of smaller experts
//            + its expert's pairs in earlier chunks, tiles and warps + in earlier lanes (match_any)
// Up to ALONE pairs one block does all three.
//
// sort of keys -> histogram with atomic positions (not stable) -> ranked scan (used)
#include "device/arguments.h"
#include "device/launch.h"
#include "device/reduce.cuh"
#include "nn/moe.h"

namespace nn {

constexpr int PLAN_THREADS = 256, PLAN_WARPS = PLAN_THREADS / 32;
constexpr int PLAN_ITEMS = 8;                                    // pairs per thread and tile
constexpr int PLAN_TILE = PLAN_THREADS * PLAN_ITEMS;
constexpr int PLAN_ALONE = 2 * PLAN_TILE;                        // pairs for which one launch is enough
constexpr int PLAN_BLOCKS = 1024;                                // at most; scan takes 4 per thread
constexpr int PLAN_EXPERTS = 1024;
constexpr int64_t PLAN_PAIRS = 2147483648;

// Pairs of one block, a whole number of tiles.
struct PlanSizes {
    int64_t chunk;
    int blocks;
};

inline PlanSizes plan_sizes(int64_t pairs) {
    if (pairs <= PLAN_ALONE) return {PLAN_ALONE, 1};
    int64_t tiles = ceil_div(pairs, PLAN_TILE), chunk = ceil_div(tiles, PLAN_BLOCKS) * PLAN_TILE;
    return {chunk, static_cast<int>(ceil_div(pairs, chunk))};
}

// The expert of a pair; num_experts for everything that is no expert.
__device__ __forceinline__ int plan_expert(const void* experts, bool wide, int64_t pair, int num_experts) {
    int64_t e = wide ? static_cast<const int64_t*>(experts)[pair]
                     : static_cast<const int32_t*>(experts)[pair];
    return e < 0 || e > num_experts ? num_experts : static_cast<int>(e);
}

// counts[bins] of the pairs begin ... end
__device__ __forceinline__ void plan_count(uint32_t* counts, const void* experts, bool wide, int64_t begin,
                                           int64_t end, int num_experts) {
    for (int bin = threadIdx.x; bin <= num_experts; bin += PLAN_THREADS) counts[bin] = 0;
    __syncthreads();
    for (int64_t pair = begin + threadIdx.x; pair < end; pair += PLAN_THREADS)
        atomicAdd(&counts[plan_expert(experts, wide, pair, num_experts)], 1u);
    __syncthreads();
}

// This thread's exclusive prefix of one value per thread; *total gets the sum.
__device__ __forceinline__ uint32_t plan_scan_block(uint32_t value, uint32_t* scratch, uint32_t* total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        uint32_t left = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += left;
    }
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    uint32_t before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < PLAN_WARPS; ++w) {
        uint32_t part = scratch[w];
        before += w < warp ? part : 0;
        all += part;
    }
    __syncthreads();
    *total = all;
    return before + sum - value;
}

// Exclusive prefix of values[bins] in place.
__device__ __forceinline__ void plan_scan_bins(uint32_t* values, int bins, uint32_t* scratch) {
    uint32_t base = 0;
    for (int first = 0; first < bins; first += PLAN_THREADS) {
        const int bin = first + threadIdx.x;
        uint32_t total, before = plan_scan_block(bin < bins ? values[bin] : 0, scratch, &total);
        if (bin < bins) values[bin] = base + before;
        base += total;
    }
    __syncthreads();
}

// One tile of pairs, each warp a run of 32 * PLAN_ITEMS neighbours: rows after base[bins], which moves on.
__device__ __forceinline__ void plan_place_tile(int64_t* order, int64_t* inverse, const void* experts,
                                                bool wide, int64_t begin, int64_t end, int num_experts,
                                                uint32_t* base, uint32_t* by_warp) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bins = num_experts + 1;
    uint32_t* mine = by_warp + warp * bins;
    for (int bin = lane; bin < bins; bin += 32) mine[bin] = 0;
    __syncwarp();
    const int64_t first = begin + warp * (32 * PLAN_ITEMS) + lane;
    int expert[PLAN_ITEMS];
    uint32_t rank[PLAN_ITEMS];
#pragma unroll
    for (int i = 0; i < PLAN_ITEMS; ++i)
        expert[i] = first + 32 * i < end ? plan_expert(experts, wide, first + 32 * i, num_experts) : -1;
#pragma unroll
    for (int i = 0; i < PLAN_ITEMS; ++i) {
        const unsigned peers = __match_any_sync(ALL_LANES, expert[i]), before = peers & ((1u << lane) - 1);
        const uint32_t seen = expert[i] >= 0 ? mine[expert[i]] : 0;
        rank[i] = seen + __popc(before);
        __syncwarp();
        if (expert[i] >= 0 && before == 0) mine[expert[i]] = seen + __popc(peers);
        __syncwarp();
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < bins; bin += PLAN_THREADS) {
        uint32_t row = base[bin];
        for (int w = 0; w < PLAN_WARPS; ++w) {
            const uint32_t count = by_warp[w * bins + bin];
            by_warp[w * bins + bin] = row;
            row += count;
        }
        base[bin] = row;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PLAN_ITEMS; ++i) {
        if (expert[i] < 0) continue;
        const int64_t pair = first + 32 * i, row = mine[expert[i]] + rank[i];
        inverse[pair] = row;
        order[row] = pair;
    }
    __syncthreads();
}

__device__ __forceinline__ void plan_write_offsets(int64_t* offsets, const uint32_t* base, int num_experts) {
    for (int e = threadIdx.x; e <= num_experts; e += PLAN_THREADS) offsets[e] = base[e];
    __syncthreads();
}

// Shared memory of the kernels below: base[bins], by_warp[PLAN_WARPS][bins].
inline int plan_shared_bytes(int64_t num_experts) {
    return static_cast<int>((num_experts + 1) * (1 + PLAN_WARPS) * sizeof(uint32_t));
}

__global__ void __launch_bounds__(PLAN_THREADS) moe_plan_alone(
    int64_t* order, int64_t* inverse, int64_t* offsets, const void* experts, bool wide, int pairs,
    int num_experts) {
    extern __shared__ uint32_t base[];
    __shared__ uint32_t scratch[PLAN_WARPS];
    const int bins = num_experts + 1;
    plan_count(base, experts, wide, 0, pairs, num_experts);
    plan_scan_bins(base, bins, scratch);
    plan_write_offsets(offsets, base, num_experts);
    for (int64_t begin = 0; begin < pairs; begin += PLAN_TILE)
        plan_place_tile(order, inverse, experts, wide, begin, pairs, num_experts, base, base + bins);
}

// counts[bins][blocks]
__global__ void __launch_bounds__(PLAN_THREADS) moe_plan_count(uint32_t* counts, const void* experts,
                                                               bool wide, int64_t pairs, int64_t chunk,
                                                               int num_experts) {
    extern __shared__ uint32_t base[];
    const int64_t begin = blockIdx.x * chunk, end = min(begin + chunk, pairs);
    plan_count(base, experts, wide, begin, end, num_experts);
    for (int bin = threadIdx.x; bin <= num_experts; bin += PLAN_THREADS)
        counts[static_cast<int64_t>(bin) * gridDim.x + blockIdx.x] = base[bin];
}

// One block per bin: counts[bin][blocks] becomes its exclusive prefix, totals[bin] its sum.
__global__ void __launch_bounds__(PLAN_THREADS) moe_plan_scan(uint32_t* counts, uint32_t* totals,
                                                              int blocks) {
    __shared__ uint32_t scratch[PLAN_WARPS];
    counts += static_cast<int64_t>(blockIdx.x) * blocks;
    uint32_t base = 0;
    for (int first = 0; first < blocks; first += PLAN_THREADS) {
        const int b = first + threadIdx.x;
        uint32_t total, before = plan_scan_block(b < blocks ? counts[b] : 0, scratch, &total);
        if (b < blocks) counts[b] = base + before;
        base += total;
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = base;
}

__global__ void __launch_bounds__(PLAN_THREADS) moe_plan_place(
    int64_t* order, int64_t* inverse, int64_t* offsets, const uint32_t* counts, const uint32_t* totals,
    const void* experts, bool wide, int64_t pairs, int64_t chunk, int num_experts) {
    extern __shared__ uint32_t base[];
    __shared__ uint32_t scratch[PLAN_WARPS];
    const int bins = num_experts + 1;
    for (int bin = threadIdx.x; bin < bins; bin += PLAN_THREADS) base[bin] = totals[bin];
    __syncthreads();
    plan_scan_bins(base, bins, scratch);
    if (blockIdx.x == 0) plan_write_offsets(offsets, base, num_experts);
    for (int bin = threadIdx.x; bin < bins; bin += PLAN_THREADS)
        base[bin] += counts[static_cast<int64_t>(bin) * gridDim.x + blockIdx.x];
    __syncthreads();
    const int64_t first = blockIdx.x * chunk, end = min(first + chunk, pairs);
    for (int64_t begin = first; begin < end; begin += PLAN_TILE)
        plan_place_tile(order, inverse, experts, wide, begin, end, num_experts, base, base + bins);
}

}  // namespace nn

NN_API int64_t nn_moe_plan_workspace_size(int64_t pairs, int64_t num_experts) {
    if (pairs <= nn::PLAN_ALONE || num_experts < 0) return 0;
    int64_t blocks = nn::ceil_div(pairs, nn::PLAN_TILE);         // at least those launched, and monotone
    blocks = blocks < nn::PLAN_BLOCKS ? blocks : nn::PLAN_BLOCKS;
    return (num_experts + 1) * (blocks + 1) * static_cast<int64_t>(sizeof(uint32_t));
}

NN_API int nn_moe_plan(int64_t* order, int64_t* inverse, int64_t* offsets, const void* experts, int64_t pairs,
                       int64_t num_experts, int32_t index_dtype, void* workspace, int64_t workspace_bytes,
                       nn_stream stream) {
    using namespace nn;
    NN_REQUIRE(pairs >= 0 && pairs <= PLAN_PAIRS, "pairs: %lld is not in 0 ... 2^31", (long long)pairs);
    NN_REQUIRE(num_experts >= 1 && num_experts <= PLAN_EXPERTS, "num_experts: %lld is not in 1 ... %d",
               (long long)num_experts, PLAN_EXPERTS);
    NN_TRY(check_index("index_dtype", index_dtype));
    NN_TRY(check_array(offsets, "offsets", NN_INT64));
    if (pairs > 0) {
        NN_TRY(check_array(order, "order", NN_INT64));
        NN_TRY(check_array(inverse, "inverse", NN_INT64));
        NN_TRY(check_array(experts, "experts", index_dtype));
    }
    NN_TRY(check_workspace(workspace, workspace_bytes, nn_moe_plan_workspace_size(pairs, num_experts)));

    const bool wide = index_dtype == NN_INT64;
    const int experts_here = static_cast<int>(num_experts), shared = plan_shared_bytes(num_experts);
    const PlanSizes sizes = plan_sizes(pairs);
    if (sizes.blocks == 1) {
        moe_plan_alone<<<1, PLAN_THREADS, shared, native(stream)>>>(order, inverse, offsets, experts, wide,
                                                                    static_cast<int>(pairs), experts_here);
        return launched("moe_plan_alone");
    }
    uint32_t* counts = static_cast<uint32_t*>(workspace);
    uint32_t* totals = counts + (num_experts + 1) * sizes.blocks;
    const int bins_bytes = static_cast<int>((num_experts + 1) * sizeof(uint32_t));
    moe_plan_count<<<sizes.blocks, PLAN_THREADS, bins_bytes, native(stream)>>>(counts, experts, wide, pairs,
                                                                                sizes.chunk, experts_here);
    NN_TRY(launched("moe_plan_count"));
    moe_plan_scan<<<experts_here + 1, PLAN_THREADS, 0, native(stream)>>>(counts, totals, sizes.blocks);
    NN_TRY(launched("moe_plan_scan"));
    moe_plan_place<<<sizes.blocks, PLAN_THREADS, shared, native(stream)>>>(
        order, inverse, offsets, counts, totals, experts, wide, pairs, sizes.chunk, experts_here);
    return launched("moe_plan_place");
}
