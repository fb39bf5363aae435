// All experts' linear maps in one launch: what the two paths share.
//
// Rows of x and dy are grouped by expert; offsets[E+1] on the device says where. Blocks are as many as there
// could be tiles: each finds its own in offsets, those without one leave. The grid does not depend on the
// offsets, so a captured launch serves any routing.
#pragma once

#include "device/launch.h"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "nn/moe.h"

namespace nn {

enum class Product {
    FORWARD,                         // y[r] = x[r] weight[e]^T           [rows,I] [O,I] -> [rows,O]
    SWIGLU,                          // y[r] = SiLU(gate) up of that      [rows,I] [2F,I] -> [rows,F]
    INPUT,                           // dx[r] = dy[r] weight[e]           [rows,O] [O,I] -> [rows,I]
    WEIGHT                           // dweight[e] = sum dy[r]^T x[r]     [rows,O] [rows,I] -> [O,I] float
};

struct Grouped {
    void* out;
    const void *a, *b;               // FORWARD, SWIGLU: x, weight; INPUT: dy, weight; WEIGHT: dy, x
    const int64_t *offsets, *order;  // order: row r of x is x[order[r] / choices]; or null
    int64_t rows, inputs, outputs;
    uint32_t choices;
    int num_experts;
    bool vector;                     // widths and pointers allow accesses of several elements
    int tiles_n;                     // tiles across a row of the result
    void* hidden;                    // SWIGLU: gate and up [rows,2F] before the activation, or null
};

// The row of x in memory that is row r of the grouped x.
__device__ __forceinline__ int64_t source_row(const Grouped& call, int64_t r) {
    return call.order ? static_cast<uint32_t>(call.order[r]) / call.choices : r;
}

struct GroupTile {
    int expert;                      // num_experts: rows of dropped pairs
    int64_t first, end;              // its rows: a tile's worth or, at the end of the group, fewer
};

// Tile number `tile` of the groups cut into pieces of ROWS rows, group by group, the dropped rows last; false
// if there are fewer. Every warp looks for itself, 32 groups at a time. Offsets are held to 0 ... rows.
template <int ROWS> __device__ __forceinline__ bool find_tile(GroupTile* found, const Grouped& call,
                                                              int64_t tile) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base <= call.num_experts; base += 32) {
        const int group = base + lane;
        int64_t first = call.rows, end = call.rows;
        if (group <= call.num_experts) first = min(max(call.offsets[group], int64_t(0)), call.rows);
        if (group < call.num_experts) end = min(max(call.offsets[group + 1], first), call.rows);
        const int tiles = static_cast<int>((end - first + ROWS - 1) / ROWS);
        int sum = tiles;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            int left = __shfl_up_sync(ALL_LANES, sum, step);
            if (lane >= step) sum += left;
        }
        const unsigned beyond = __ballot_sync(ALL_LANES, sum > tile);
        if (beyond) {
            const int owner = __ffs(static_cast<int>(beyond)) - 1;
            first += (tile - (sum - tiles)) * ROWS;
            found->expert = base + owner;
            found->first = __shfl_sync(ALL_LANES, first, owner);
            found->end = min(found->first + ROWS, __shfl_sync(ALL_LANES, end, owner));
            return true;
        }
        tile -= __shfl_sync(ALL_LANES, sum, 31);
    }
    return false;
}

// At most: every group, the dropped rows among them, may end in a tile that is not full.
template <int ROWS> int64_t most_tiles(int64_t rows, int64_t num_experts) {
    return rows / ROWS + (rows < num_experts + 1 ? rows : num_experts + 1);
}

// grouped_ffma.cu, grouped_mma.cu
int grouped_ffma(const Grouped& call, Product product, int32_t dtype, cudaStream_t stream);
int grouped_mma(const Grouped& call, Product product, int32_t dtype, cudaStream_t stream);

// Both paths' grid: tiles of the result, those of one tile of rows side by side, so that they share x in the
// cache.
inline int grouped_grid(int64_t tiles_m, int64_t tiles_n, unsigned* blocks) {
    NN_SUPPORT(tiles_m * tiles_n <= MAX_GRID_X,
               "rows, num_experts and widths: %lld tiles, more than 2^31 - 1",
               (long long)(tiles_m * tiles_n));
    *blocks = static_cast<unsigned>(tiles_m * tiles_n);
    return NN_OK;
}

}  // namespace nn
