// Matrix products on tensor cores by mma.sync: the kernel, and the choice among its forms.
//
// Forms: two tiles (128x128 and 64x64, four warps each) x three ways to store the operands.  A^T B^T is
// computed by FFMA: nobody asks for it often enough to pay for its code.
#pragma once

#include "device/launch.h"
#include "problem.cuh"

namespace nn {

// Registers bound the blocks per multiprocessor: 2 of the large tile (255 each), 4 of the small one (128
// each).
template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BM == 128 ? 2 : 4) gemm_mma(const Problem p) {
    using T = typename Tile::T;
    if constexpr (tensor_cores<T>) {
        extern __shared__ __align__(128) char stages[];
        const Place place = place_of_block(p);
        const int64_t m0 = place.tile_m * Tile::BM, n0 = place.tile_n * Tile::BN;
        Sums<Tile> sums;
        const DenseRows<T> a = rows_of_a<T>(p, place), b = rows_of_b<T>(p, place);
        multiply<Tile, A_ALONG_K, B_ALONG_K>(sums, stages, a, m0, b, n0, place.k_begin, place.k_end);
        const Epilogue end = end_of_block(p, place);
        for_each_part<Tile>(sums, stages, [&](const Part& part) {
            write_part<T>(part, end, m0, n0, [] { __syncwarp(); });
        });
    }
}

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
int launch_mma_form(const Problem& p, int capability, cudaStream_t stream) {
    const int bytes = Tile::shared_bytes(capability);
    auto kernel = gemm_mma<Tile, A_ALONG_K, B_ALONG_K>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
    kernel<<<blocks_of(p), Tile::THREADS, bytes, stream>>>(p);
    return launched("gemm_mma");
}

template <class Tile> int launch_mma_tile(const Problem& p, int capability, cudaStream_t stream) {
    if (!p.trans_a && p.trans_b) return launch_mma_form<Tile, true, true>(p, capability, stream);
    if (!p.trans_a) return launch_mma_form<Tile, true, false>(p, capability, stream);
    return launch_mma_form<Tile, false, false>(p, capability, stream);
}

template <class T> int launch_mma(const Problem& p, GemmTile tile, int capability, cudaStream_t stream) {
    if (tile.m == 128) return launch_mma_tile<TensorTile<T, 128, 128, 2, 2, 3>>(p, capability, stream);
    return launch_mma_tile<TensorTile<T, 64, 64, 2, 2, 4>>(p, capability, stream);
}

}  // namespace nn
