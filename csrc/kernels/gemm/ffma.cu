// Matrix products in float32 arithmetic: exact for float32, and for half types where tensor cores cannot be
// used.
#include "device/launch.h"
#include "ffma.cuh"
#include "problem.cuh"

namespace nn {

template <class T, class Tile> __global__ void __launch_bounds__(256, 2) gemm_ffma(const Problem p) {
    __shared__ __align__(16) float shared[Tile::SHARED_FLOATS];
    const Place place = place_of_block(p);
    const int64_t m0 = place.tile_m * Tile::BM, n0 = place.tile_n * Tile::BN;
    const DenseQuads<T> a(rows_of_a<T>(p, place), p.wide_a), b(rows_of_b<T>(p, place), p.wide_b);
    float sums[Tile::TM][Tile::TN] = {};
    multiply_ffma<Tile>(sums, shared, a, !p.trans_a, m0, b, p.trans_b, n0, place.k_begin, place.k_end);
    const Epilogue end = end_of_block(p, place);
    for_each_ffma_part<Tile>(sums, shared, [&](const Part& part) {
        write_part<T>(part, end, m0, n0, [] { __syncthreads(); });
    });
}

int launch_ffma(const Problem& p, int32_t dtype, GemmTile tile, cudaStream_t stream) {
    using Big = FfmaTile<128, 128, 8, 8, 8>;
    using Small = FfmaTile<64, 64, 16, 4, 4>;
    const unsigned blocks = blocks_of(p);
    if (dtype == NN_FLOAT32 && tile.m == Big::BM)
        gemm_ffma<float, Big><<<blocks, 256, 0, stream>>>(p);
    else if (dtype == NN_FLOAT32)
        gemm_ffma<float, Small><<<blocks, 256, 0, stream>>>(p);
    else if (dtype == NN_FLOAT16)
        gemm_ffma<half, Small><<<blocks, 256, 0, stream>>>(p);
    else
        gemm_ffma<bfloat16, Small><<<blocks, 256, 0, stream>>>(p);
    return launched("gemm_ffma");
}

}  // namespace nn
