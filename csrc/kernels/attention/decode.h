// Decode attention: what its kernels share, and the one behind another translation unit.
#pragma once

#include "check.h"
#include "problem.cuh"

namespace nn {

// The grid is split, then rows, then group, then batch.  A group's query heads lie side by side: row r is
// head r % pack of query r / pack.  With one split the kernels write o and lse; else each its own
// sum and weight.
struct DecodeGrid {
    int splits, chunks, chunk_rows, pack;        // chunks of rows; heads of a group
    int pitch;                                   // numbers in a row of `partial`
    float *partial, *weight;  // [B,H,T,splits,pitch], [B,H,T,splits]: o, and log2 of its sum
};

struct DecodeBlock {
    int64_t b, group, head;                      // head: the group's first
    int split, row, rows;                        // this block's rows: row ... rows - 1
    int first, last;                             // keys of the split that some row sees
    Reach reach;

    __device__ __forceinline__ DecodeBlock(const nn_decode& d, const nn_cache& c, const DecodeGrid& grid) {
        int64_t index = blockIdx.x;
        split = index % grid.splits, index /= grid.splits;
        row = index % grid.chunks * grid.chunk_rows, index /= grid.chunks;
        group = index % c.groups, b = index / c.groups, head = group * grid.pack;
        const int queries = static_cast<int>(d.queries);
        rows = min(queries * grid.pack, row + grid.chunk_rows);
        reach = decode_reach(d, c, b);
        first = max(reach.lo(row / grid.pack), split * NN_DECODE_SPLIT);
        last = min(reach.hi((rows - 1) / grid.pack), (split + 1) * NN_DECODE_SPLIT);
    }

    static __device__ __forceinline__ Reach decode_reach(const nn_decode& d, const nn_cache& c, int64_t b) {
        const int capacity = static_cast<int>(c.capacity);
        const int length = d.lengths ? min(max(d.lengths[b], 0), capacity) : capacity;
        return {length, length - static_cast<int>(d.queries), static_cast<int>(d.window), d.causal != 0};
    }
};

// Row number of (head, query) in [B,H,T]
__device__ __forceinline__ int64_t decode_row(const nn_decode& d, int64_t b, int64_t head, int query) {
    return (b * d.heads + head) * d.queries + query;
}

int launch_decode_mma(const nn_decode& d, const nn_cache& c, const DecodeGrid& grid, int64_t blocks,
                      cudaStream_t stream);
int decode_mma_rows(int64_t rows);               // rows of a block

}  // namespace nn
