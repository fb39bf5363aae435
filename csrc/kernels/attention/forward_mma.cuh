// Attention forward on tensor cores: the kernel for float16 and bfloat16, and its launch.
//
// one warp per 16 rows -> two 16-row pieces per warp, so that one read of K and V feeds twice the products
// (used up to width 128) -> cp.async one tile ahead (used) -> Q in registers up to width 64 (used)
#pragma once

#include <algorithm>

#include "flash.cuh"
#include "forward.h"

namespace nn {

struct ForwardMask {
    static constexpr bool POSSIBLE = true;
    const nn_attention& a;
    int sets_tiles, tiles, pack;                 // of the grid

    __device__ __forceinline__ bool given() const { return a.mask; }
    __device__ __forceinline__ int64_t key_stride() const { return a.mask_strides[3]; }
    __device__ __forceinline__ const uint8_t* of(int head, int query, int key) const {
        const int64_t b = blockIdx.x / sets_tiles, first = blockIdx.x / tiles * pack - b * a.heads;
        return a.mask + b * a.mask_strides[0] + (first + head) * a.mask_strides[1] +
               query * a.mask_strides[2] + key * a.mask_strides[3];
    }
};

template <int D, bool STAGED> constexpr int forward_pieces = STAGED || D > 128 || D <= 32 ? 1 : 2;     // MT

// STAGED: for sm_75, empty elsewhere; the other one is for sm_80 on.
template <class T, int D, bool STAGED>
__global__ void __launch_bounds__(32 * FLASH_WARPS, 1) attention_forward_mma(nn_attention a, int pack, int tiles,
                                                                          FlashScale scale) {
#if __CUDA_ARCH__ >= 800
    constexpr bool HERE = !STAGED;
#elif __CUDA_ARCH__ >= 750
    constexpr bool HERE = STAGED;
#else
    constexpr bool HERE = false;
#endif
    if constexpr (HERE) {
        constexpr int MT = forward_pieces<D, STAGED>;
        using Tile = Flash<T, D, MT, STAGED, false, ForwardMask>;
        extern __shared__ __align__(128) char shared[];
        const int64_t index = blockIdx.x / tiles;                // of heads that share tiles, then batch
        const int64_t sets = a.heads / pack, b = index / sets, head = index % sets * pack;
        const Sequence seq = sequence(a, b);
        const int rows = seq.queries * pack, block_rows = blockDim.x / 32 * 16 * MT;
        const int tile = a.causal ? tiles - 1 - blockIdx.x % tiles : blockIdx.x % tiles;  // the longest first
        const int row = tile * block_rows;
        if (row >= rows) return;
        const int64_t group = head / (a.heads / a.groups);
        const T* q = static_cast<const T*>(a.q) + start(a, a.q_strides, b, head, seq.first_query);
        const int last_row = min(row + block_rows, rows) - 1;
        FlashBlock<T> block;
        block.k = {static_cast<const T*>(a.k) + start(a, a.k_strides, b, group, seq.first_key),
                   a.k_strides[2], static_cast<int>(a.width) / PACK<T>};
        block.v = {static_cast<const T*>(a.v) + start(a, a.v_strides, b, group, seq.first_key),
                   a.v_strides[2], static_cast<int>(a.value_width) / PACK<T>};
        block.reach = reach(a, seq);
        block.row = row, block.rows = rows, block.pack = pack;
        block.first = block.reach.lo(row / pack), block.last = block.reach.hi(last_row / pack);
        block.scale = scale;
        T* shared_q = reinterpret_cast<T*>(shared);
        load_queries<T, D, 16 * MT>(shared_q, q, a.q_strides, static_cast<int>(a.width), row, rows, pack);
        Tile t;
        t.run(block, {a, static_cast<int>(sets * tiles), tiles, pack}, shared_q);

        const int lane = threadIdx.x % 32, mine = Tile::warp_row();
        __syncwarp();
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int r = mine + 16 * m + 8 * side + lane / 4;
                const float inverse = t.inverse(m, side), sum = t.sum[m][side];
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    reinterpret_cast<uint32_t*>(Tile::at(shared_q, r, n))[lane % 4] =
                        pack_halves<T>(t.o[m][n][2 * side] * inverse, t.o[m][n][2 * side + 1] * inverse);
                if (lane % 4 == 0 && row + r < rows)
                    a.lse[lse_start(a, b, head + (row + r) % pack, seq.first_query) + (row + r) / pack] =
                        sum == 0.0f ? -INFINITE : (t.largest[m][side] + log2f(sum)) * LN_2;
            }
        __syncwarp();
        T* o = static_cast<T*>(a.o) + start(a, a.o_strides, b, head, seq.first_query);
        constexpr int CHUNKS = D / PACK<T>;
        for (int i = lane; i < 16 * MT * CHUNKS; i += 32) {
            const int r = mine + i / CHUNKS, chunk = i % CHUNKS;
            if (row + r >= rows || chunk >= block.v.chunks) continue;
            T* to = o + (row + r) / pack * a.o_strides[2] + (row + r) % pack * a.o_strides[1] +
                    chunk * PACK<T>;
            store_global(to, load_pack<PACK<T>>(Tile::at(shared_q, r, chunk)));
        }
    }
}

template <class T, int D, bool STAGED> int launch_forward_mma(const nn_attention& a, cudaStream_t stream) {
    constexpr int MT = forward_pieces<D, STAGED>;
    const int pack = heads_in_tile(a, 16 * MT * FLASH_WARPS);
    const int64_t rows = a.queries * pack;
    const int64_t pieces = ceil_div(rows, 16 * MT);
    const int warps = STAGED ? FLASH_WARPS : static_cast<int>(std::min<int64_t>(pieces, FLASH_WARPS));
    const int64_t tiles = ceil_div(rows, 16 * MT * warps), blocks = tiles * (a.heads / pack) * a.batch;
    NN_REQUIRE(blocks <= MAX_GRID_X, "queries, heads, batch: %lld blocks are more than 2^31 - 1",
               (long long)blocks);
    const int bytes = Flash<T, D, MT, STAGED, false, ForwardMask>::bytes(warps);
    auto kernel = attention_forward_mma<T, D, STAGED>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
    kernel<<<static_cast<unsigned>(blocks), 32 * warps, bytes, stream>>>(a, pack, static_cast<int>(tiles),
                                                                      flash_scale(a.scale, a.softcap));
    return launched("attention_forward_mma");
}

template <class T> int launch_forward_sm80(const nn_attention& a, cudaStream_t stream) {
    const int64_t width = std::max(a.width, a.value_width);
    if (width <= 32) return launch_forward_mma<T, 32, false>(a, stream);
    if (width <= 64) return launch_forward_mma<T, 64, false>(a, stream);
    if (width <= 96) return launch_forward_mma<T, 96, false>(a, stream);
    if (width <= 128) return launch_forward_mma<T, 128, false>(a, stream);
    return launch_forward_mma<T, 256, false>(a, stream);
}

}  // namespace nn
