// What every kernel of the dense product is given, and which tile a block works on.
#pragma once

#include "device/launch.h"
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

// Blocks walk down some tiles before they step to the right: those that run together share rows of A and
// columns of B in L2.  Where the number of a tile fits Index, that is what it is divided in.
template <class Index = int64_t, int RASTER = 8>
__device__ __forceinline__ Place place_of(const Problem& p, Index number) {
    const Index tiles_m = static_cast<Index>(p.tiles_m), tiles_n = static_cast<Index>(p.tiles_n);
    const Index tiles = tiles_m * tiles_n, part = number / tiles, tile = number % tiles;
    const Index band = tile / (RASTER * tiles_n) * RASTER, in_band = tile % (RASTER * tiles_n);
    const Index rows = tiles_m - band < RASTER ? tiles_m - band : RASTER;
    const Index splits = static_cast<Index>(p.splits), split = part % splits;
    const int64_t begin = split * p.k_per_split;
    const int64_t end = begin + p.k_per_split < p.k ? begin + p.k_per_split : p.k;
    return {band + in_band % rows, in_band / rows, part / splits, begin, end};
}

__device__ __forceinline__ Place place_of_block(const Problem& p) { return place_of(p, int64_t(blockIdx.x)); }

// The end for a place; partial sums, number `part` of [batch, splits], go to the workspace as they are.
__device__ __forceinline__ Epilogue end_of(const Problem& p, const Place& place, int64_t part) {
    Epilogue e = p.end;
    if (p.splits > 1)
        return {p.partials + part * e.m * e.n, nullptr, nullptr, nullptr, e.m, e.n, e.n, 1.0f, 0.0f,
                NN_FLOAT32, NN_FLOAT32, NN_ACTIVATION_NONE, e.n % 4 == 0};
    e.begin();
    const int64_t bytes = e.c_dtype == NN_FLOAT32 ? 4 : 2;
    e.c = static_cast<char*>(e.c) + place.problem * p.stride_c * bytes;
    return e;
}

__device__ __forceinline__ Epilogue end_of_block(const Problem& p, const Place& place) {
    return end_of(p, place, p.splits > 1 ? blockIdx.x / (p.tiles_m * p.tiles_n) : 0);
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
int launch_wgmma_f16(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream);
int launch_wgmma_bf16(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream);
int launch_wgmma_tf32(const Problem& problem, GemmTile tile, const Device& device, cudaStream_t stream);
int launch_ordered_sum(const Problem& problem, cudaStream_t stream);

inline unsigned blocks_of(const Problem& p) {          // checked to fit by the dispatcher
    return static_cast<unsigned>(p.tiles_m * p.tiles_n * p.batch * p.splits);
}

}  // namespace nn
