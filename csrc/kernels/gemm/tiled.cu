// The readable matrix product: what the others compute, in the fewest words.  Any type, shape and alignment.
//
// A block makes 32x32 of C, a thread four of its numbers.  It walks along k in steps of 32: all threads load
// a 32x32 piece of A and one of B into shared memory, meet, and multiply what is there.
#include "device/launch.h"
#include "problem.cuh"

namespace nn {

// Element (i, j) of op(X), zero outside.
template <class T>
__device__ float element(const T* x, int64_t stride, bool transposed, int64_t i, int64_t j, int64_t rows,
                         int64_t cols) {
    if (i >= rows || j >= cols) return 0.0f;
    return to_float(x[transposed ? j * stride + i : i * stride + j]);
}

// A piece of op(X): neighbouring threads read neighbouring addresses, whichever way it is stored.
template <class T>
__device__ void load_piece(float (&piece)[32][33], const T* x, int64_t stride, bool transposed, int64_t i0,
                           int64_t j0, int64_t rows, int64_t cols) {
    for (int y = threadIdx.y; y < 32; y += 8) {
        const int i = transposed ? threadIdx.x : y, j = transposed ? y : threadIdx.x;
        piece[i][j] = element(x, stride, transposed, i0 + i, j0 + j, rows, cols);
    }
}

template <class T> __global__ void __launch_bounds__(256) gemm_tiled(const Problem p) {
    __shared__ float a[32][33], b[32][33];                           // 33: a column lies in 32 banks
    const Place place = place_of_block(p);
    const int64_t row = place.tile_m * 32, column = place.tile_n * 32;
    const T* data_a = static_cast<const T*>(p.a) + place.problem * p.stride_a;
    const T* data_b = static_cast<const T*>(p.b) + place.problem * p.stride_b;
    float sums[4] = {};
    for (int64_t k = place.k_begin; k < place.k_end; k += 32) {
        load_piece(a, data_a, p.lda, p.trans_a, row, k, p.end.m, place.k_end);
        load_piece(b, data_b, p.ldb, p.trans_b, k, column, place.k_end, p.end.n);
        __syncthreads();
        for (int kk = 0; kk < 32; kk++)
            for (int i = 0; i < 4; i++)
                sums[i] = fmaf(a[threadIdx.y + 8 * i][kk], b[kk][threadIdx.x], sums[i]);
        __syncthreads();
    }
    const Epilogue end = end_of_block(p, place);
    for (int i = 0; i < 4; i++) {
        const int64_t r = row + threadIdx.y + 8 * i, c = column + threadIdx.x;
        if (r < end.m && c < end.n) end.store(sums[i], r, c);
    }
}

int launch_tiled(const Problem& p, int32_t dtype, cudaStream_t stream) {
    NN_FOR_FLOATING(dtype, T, { gemm_tiled<T><<<blocks_of(p), dim3(32, 8), 0, stream>>>(p); });
    return launched("gemm_tiled");
}

}  // namespace nn
