// Decode attention on tensor cores (sm_80 on): eight and more rows of a group's heads and queries.
#include <algorithm>

#include "decode.h"
#include "flash.cuh"

namespace nn {

template <class T, int D>
__global__ void __launch_bounds__(32 * FLASH_WARPS) attention_decode_mma(nn_decode d, nn_cache c,
                                                                         DecodeGrid grid,
                                                                         FlashScale scale) {
#if __CUDA_ARCH__ >= 800
    constexpr bool HERE = true;
#else
    constexpr bool HERE = false;             // before, the float kernel serves
#endif
    if constexpr (HERE) {
        using Tile = Flash<T, D, 1, false, true, NoMask>;
        extern __shared__ __align__(128) char shared[];
        const DecodeBlock at(d, c, grid);
        if (at.first >= at.last && grid.splits > 1) return;
        FlashBlock<T> block;
        const int shift = c.block_table ? 31 - __clz(static_cast<int>(c.page)) : 0;
        const int32_t* table = c.block_table ? c.block_table + at.b * c.max_pages : nullptr;
        const int64_t k0 = (table ? 0 : at.b * c.k_strides[0]) + at.group * c.k_strides[1];
        const int64_t v0 = (table ? 0 : at.b * c.v_strides[0]) + at.group * c.v_strides[1];
        block.k = {static_cast<const T*>(c.k) + k0, c.k_strides[2], static_cast<int>(c.width) / PACK<T>,
                   table, shift, c.k_strides[0]};
        block.v = {static_cast<const T*>(c.v) + v0, c.v_strides[2], static_cast<int>(c.value_width) / PACK<T>,
                   table, shift, c.v_strides[0]};
        block.reach = at.reach, block.scale = scale;
        block.row = at.row, block.rows = at.rows, block.pack = grid.pack;
        block.first = at.first, block.last = at.last;
        T* shared_q = reinterpret_cast<T*>(shared);
        const T* q = static_cast<const T*>(d.q) + at.b * d.q_strides[0] + at.head * d.q_strides[1];
        load_queries<T, D, 16>(shared_q, q, d.q_strides, static_cast<int>(c.width), at.row, at.rows,
                               grid.pack);
        Tile t;
        t.run(block, {}, shared_q);

        const int lane = threadIdx.x % 32, width = static_cast<int>(c.value_width);
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int r = at.row + Tile::warp_row() + 8 * side + lane / 4;
            if (r >= at.rows) continue;
            const int query = r / grid.pack;
            const int64_t head = at.head + r % grid.pack, row = decode_row(d, at.b, head, query);
            const float inverse = t.inverse(0, side), sum = t.sum[0][side];
            const float weight = sum == 0.0f ? -INFINITE : t.largest[0][side] + log2f(sum);
            T* o = static_cast<T*>(d.o) +
                   (at.b * d.o_strides[0] + head * d.o_strides[1] + query * d.o_strides[2]);
            float* partial = grid.partial + (row * grid.splits + at.split) * grid.pitch;
            if (lane % 4 == 0) {
                if (grid.splits > 1) grid.weight[row * grid.splits + at.split] = weight;
                else if (d.lse) d.lse[row] = weight * LN_2;
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const int column = 8 * n + lane % 4 * 2;
                if (column >= width) break;
                const float x = t.o[0][n][2 * side] * inverse, y = t.o[0][n][2 * side + 1] * inverse;
                if (grid.splits > 1) store_global(partial + column, Pack<float, 2>{x, y});
                else *reinterpret_cast<uint32_t*>(o + column) = pack_halves<T>(x, y);
            }
        }
    }
}

int decode_mma_rows(int64_t rows) {
    return static_cast<int>(16 * std::min<int64_t>(FLASH_WARPS, ceil_div(rows, 16)));
}

template <class T, int D>
static int launch(const nn_decode& d, const nn_cache& c, const DecodeGrid& grid, int64_t blocks,
                  cudaStream_t stream) {
    const int warps = grid.chunk_rows / 16, bytes = Flash<T, D, 1, false, true, NoMask>::bytes(warps);
    auto kernel = attention_decode_mma<T, D>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
    kernel<<<static_cast<unsigned>(blocks), 32 * warps, bytes, stream>>>(
        d, c, grid, flash_scale(d.scale, d.softcap));
    return launched("attention_decode_mma");
}

int launch_decode_mma(const nn_decode& d, const nn_cache& c, const DecodeGrid& grid, int64_t blocks,
                      cudaStream_t stream) {
    const bool narrow = std::max(c.width, c.value_width) <= 128;
    if (c.dtype == NN_FLOAT16)
        return narrow ? launch<half, 128>(d, c, grid, blocks, stream)
                      : launch<half, 256>(d, c, grid, blocks, stream);
    return narrow ? launch<bfloat16, 128>(d, c, grid, blocks, stream)
                  : launch<bfloat16, 256>(d, c, grid, blocks, stream);
}

}  // namespace nn
