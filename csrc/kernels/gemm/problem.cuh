// What every kernel of the dense product is given, and which tile a block works on.
#pragma once

#include "epilogue.cuh"

namespace nn {

struct Problem {
    const void *a, *b;
    int64_t k, lda, ldb, stride_a, stride_b, stride_c;
    int64_t tiles_m, tiles_n, batch, k_per_split;
    float* partials;                                   // [batch, splits, m, n], if k is split
    int32_t splits, trans_a, trans_b;
    int32_t wide_a, wide_b;                            // rows start at multiples of 16 bytes (FFMA: of 4)
    Epilogue end;
};

// A block's share: a tile of one problem and a range of k.
struct Place {
    int64_t tile_m, tile_n, problem, k_begin, k_end;
};

// Blocks walk down 8 tiles before they step to the right: the 8 x 8 tiles that run together share rows of A
// and columns of B in L2.
constexpr int64_t RASTER = 8;

__device__ __forceinline__ Place place_of_block(const Problem& p) {
    const int64_t tiles = p.tiles_m * p.tiles_n, part = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const int64_t band = tile / (RASTER * p.tiles_n) * RASTER, in_band = tile % (RASTER * p.tiles_n);
    const int64_t rows = p.tiles_m - band < RASTER ? p.tiles_m - band : RASTER;
    const int64_t split = part % p.splits, begin = split * p.k_per_split;
    const int64_t end = begin + p.k_per_split < p.k ? begin + p.k_per_split : p.k;
    return {band + in_band % rows, in_band / rows, part / p.splits, begin, end};
}

// The end for a block: partial sums go to the workspace as they are.
__device__ __forceinline__ Epilogue end_of_block(const Problem& p, const Place& place) {
    Epilogue e = p.end;
    if (p.splits > 1) {
        const int64_t part = blockIdx.x / (p.tiles_m * p.tiles_n);
        return {p.partials + part * e.m * e.n, nullptr, nullptr, nullptr, e.m, e.n, e.n, 1.0f, 0.0f,
                NN_FLOAT32, NN_FLOAT32, NN_ACTIVATION_NONE, e.n % 4 == 0};
    }
    e.begin();
    const int64_t bytes = e.c_dtype == NN_FLOAT32 ? 4 : 2;
    e.c = static_cast<char*>(e.c) + place.problem * p.stride_c * bytes;
    return e;
}

// ALONG_K: k runs along a row.
template <class T> __device__ __forceinline__ DenseRows<T> rows_of_a(const Problem& p, const Place& place) {
    return {static_cast<const T*>(p.a) + place.problem * p.stride_a, p.lda, p.end.m};
}

template <class T> __device__ __forceinline__ DenseRows<T> rows_of_b(const Problem& p, const Place& place) {
    return {static_cast<const T*>(p.b) + place.problem * p.stride_b, p.ldb, p.end.n};
}

// ---- launchers, one translation unit each -----------------------------------------------------------------

struct GemmTile {
    int m, n;
};

int launch_tiled(const Problem& problem, int32_t dtype, cudaStream_t stream);
int launch_ffma(const Problem& problem, int32_t dtype, GemmTile tile, cudaStream_t stream);
int launch_skinny(const Problem& problem, int32_t dtype, cudaStream_t stream);
int launch_mma_f16(const Problem& problem, GemmTile tile, int capability, cudaStream_t stream);
int launch_mma_bf16(const Problem& problem, GemmTile tile, int capability, cudaStream_t stream);
int launch_mma_tf32(const Problem& problem, GemmTile tile, int capability, cudaStream_t stream);
int launch_ordered_sum(const Problem& problem, cudaStream_t stream);

inline unsigned blocks_of(const Problem& p) {          // checked to fit by the dispatcher
    return static_cast<unsigned>(p.tiles_m * p.tiles_n * p.batch * p.splits);
}

}  // namespace nn
