// What the kernels of the attention backward share: the call as they see it, sequences, visibility, work.
//
// There are two kernels with one body.  One owns keys and streams queries past them (dK, dV), the other owns
// queries and streams keys (dQ).  With A1, A2 the owned rows (K, V or Q, dO) and B1, B2 the streamed ones,
//     S = A1 B1ᵀ,  P = exp(scale S − lse),  dP = A2 B2ᵀ,  dS = P ⊙ (dP − Δ),  out1 += dS B1,  out2 += P B2
// give dK and dV, or, without out2, dQ.  No two blocks add to one number, so no order matters to the bits.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "device/launch.h"
#include "device/number.cuh"

namespace nn::backward {

constexpr int FAR = 1 << 30;                             // farther than any key from any query
constexpr float LOG2_OF_E = 1.44269504f;
constexpr int64_t MAX_LENGTH = 1 << 29;                  // sums of positions and FAR stay below 2^31

struct View {                                            // [batch, head, row, column], columns side by side
    void* data;
    int64_t batch, head, row;                            // strides in elements
};

struct Backward {
    View q, k, v, o, d_o, dq, dk, dv;
    const float* lse;                                    // [batch, head, row]
    int64_t lse_batch, lse_head;
    float2* rows;                                        // (lse or +inf, Δ) of every query: workspace
    float* partial;                                      // dK, dV by split: workspace, where splits > 1
    const uint8_t* mask;                                 // or null: 0 hides
    int64_t mask_batch, mask_head, mask_row, mask_column;
    const int32_t *cu_queries, *cu_keys, *key_lengths;   // as in nn_attention
    int batch, heads, groups, queries, keys, width, value_width;
    int behind, ahead;                                   // visible: −behind ≤ key − position ≤ ahead
    float scale, softcap;
    int dtype, splits;
};

// One sequence of the batch: how many rows it has, how many of its keys count, and where packed rows start.
struct Sequence {
    int queries, keys, key_rows, query_start, key_start;

    __device__ Sequence(const Backward& call, int b)
        : queries(call.queries), keys(call.keys), key_rows(call.keys), query_start(0), key_start(0) {
        if (call.cu_queries) {
            query_start = call.cu_queries[b], key_start = call.cu_keys[b];
            queries = min(queries, call.cu_queries[b + 1] - call.cu_queries[b]);
            keys = key_rows = min(keys, call.cu_keys[b + 1] - call.cu_keys[b]);
        }
        if (call.key_lengths) keys = max(0, min(keys, call.key_lengths[b]));
    }
};

// A row of a head.
template <class T> __device__ __forceinline__ T* head_of(const View& view, int b, int h, int row) {
    return static_cast<T*>(view.data) + (b * view.batch + h * view.head + row * view.row);
}

// Which keys the queries of one head see.  What the call has is read from it again at each use: constant
// memory costs nothing, a register does.
struct Sight {
    const Backward& call;
    int queries, keys, shift;                            // query i stands at position i + shift
    const uint8_t* mask;

    __device__ Sight(const Backward& call, const Sequence& sequence, int b, int h)
        : call(call), queries(sequence.queries), keys(sequence.keys), shift(keys - queries),
          mask(call.mask ? call.mask + b * call.mask_batch + h * call.mask_head : nullptr) {}

    __device__ bool visible(int i, int j) const {
        int distance = j - (i + shift);
        return i < queries && j < keys && distance >= -call.behind && distance <= call.ahead
               && (!mask || mask[i * call.mask_row + j * call.mask_column]);
    }
    // Of queries i0 ... i1-1 and keys j0 ... j1-1: whether each sees all of them, and whether none sees any.
    __device__ bool all(int i0, int i1, int j0, int j1) const {
        return !mask && i1 <= queries && j1 <= keys && j1 - 1 - (i0 + shift) <= call.ahead
               && j0 - (i1 - 1 + shift) >= -call.behind;
    }
    __device__ bool none(int i0, int i1, int j0, int j1) const {
        return j0 - (i1 - 1 + shift) > call.ahead || j1 - 1 - (i0 + shift) < -call.behind;
    }
};

// The streamed tiles [first, first + count) that owned rows r0 ... r1-1 can see; `size` rows to a tile.
struct Tiles {
    int first, count;

    __device__ Tiles(const Sight& sight, bool keys_owned, int r0, int r1, int size) {
        int all = keys_owned ? sight.queries : sight.keys;
        r1 = min(r1, keys_owned ? sight.keys : sight.queries);
        int low = keys_owned ? r0 - sight.call.ahead - sight.shift : r0 + sight.shift - sight.call.behind;
        int high = keys_owned ? r1 + sight.call.behind - sight.shift : r1 + sight.shift + sight.call.ahead;
        low = max(0, low), high = min(all, high);
        first = low / size;
        count = r0 < r1 && low < high ? (high - 1) / size + 1 - first : 0;
    }
};

// Which piece of the result a block computes; its index in the grid runs over owned tiles first.
struct Piece {
    int b, head, split, part, row;                       // head: of the owned rows; row: its first

    // parts: of a result too wide for one block's registers.  `last_first`: causal queries' longest rows.
    __device__ Piece(int64_t index, int tiles, int rows, int parts, int splits, int heads, bool last_first) {
        int tile = index % tiles;
        index /= tiles;
        row = (last_first ? tiles - 1 - tile : tile) * rows;
        part = index % parts;
        index /= parts;
        split = index % splits;
        index /= splits;
        head = index % heads;
        b = index / heads;
    }
};

// The launches behind nn_attention_backward: dK and dV, or dQ.
int launch_float(const Backward& call, bool keys, const Device& device, nn_stream stream);
template <class T> int launch_mma(const Backward& call, bool keys, const Device& device, nn_stream stream);

// What decides registers and shared memory, by the width rounded up to D.
template <int D, bool KEYS> struct BackwardTile {
    static constexpr int MMA_ROWS = D <= 64 ? 2 : 1;                     // 16-row products of a warp
    static constexpr int WARP_ROWS = 16 * MMA_ROWS;
    static constexpr int MAX_WARPS = D == 96 || D == 128 ? 8 : 4;
    static constexpr int STREAMED = D <= 64 ? 64 : D <= 128 ? 32 : 16;   // rows of a stage
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    static constexpr int CHUNK = 16;
#else
    static constexpr int CHUNK = D == 96 || D == 128 ? 32 : 16;          // of those, handled together
#endif
    static constexpr int COLUMNS = KEYS && D > 128 ? 128 : D;            // of the results, by one block
    static constexpr int PARTS = D / COLUMNS;

    static constexpr int64_t shared_bytes(int warps, int stages) {
        int64_t rows = 2 * WARP_ROWS * warps + 2 * STREAMED * stages;    // owned, streamed
        return rows * D * 2 + (KEYS ? stages * STREAMED * int64_t(sizeof(float2)) : 0);
    }
};

// The most warps whose rows fit in shared memory, no more than there are rows for.
template <class Tile> int warps_for(int rows, int stages, const Device& device) {
    int warps = Tile::MAX_WARPS;
    while (warps > 1 && (Tile::shared_bytes(warps, stages) > device.shared_bytes
                         || Tile::WARP_ROWS * warps / 2 >= rows)) warps /= 2;
    return warps;
}

// f(std::integral_constant<int, D>()) with the smallest D of the kernels' that both widths fit in
template <class F> int with_bucket(const Backward& call, F f) {
    const int width = call.width > call.value_width ? call.width : call.value_width;
    if (width <= 32) return f(std::integral_constant<int, 32>());
    if (width <= 64) return f(std::integral_constant<int, 64>());
    if (width <= 96) return f(std::integral_constant<int, 96>());
    if (width <= 128) return f(std::integral_constant<int, 128>());
    return f(std::integral_constant<int, 256>());
}

}  // namespace nn::backward
