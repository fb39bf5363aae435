// Products with few rows (m <= 16; 8 where B is stored [k][n], for want of registers): decoding.  B, the
// weights, is most of what moves: it is read once, 16 bytes at a time, and every row of A meets it in
// registers.  Ends with sums over lanes and warps, in a fixed order.
//
// Ladder, B stored [n][k] (weights): a block per column -> four columns share what is read of A (used).
//         B stored [k][n]: a warp reads 32 x 16 bytes of one row -> 8 x 16 bytes of four rows, which leaves
//         four times as many blocks (used).
//
// A row's bits depend neither on m nor on the other rows.
#include "device/launch.h"
#include "device/reduce.cuh"
#include "problem.cuh"

namespace nn {

constexpr int SKINNY_COLUMNS = 4, SKINNY_WARPS = 4;    // of a block, B stored [n][k]

// C[m, 4 columns] = A[m, k] B[n, k]^T: the block's lanes lie side by side along k.
template <class T> __global__ void __launch_bounds__(32 * SKINNY_WARPS) gemm_skinny_nt(const Problem p) {
    constexpr int M = 16, N = PACK<T>, COLUMNS = SKINNY_COLUMNS, WARPS = SKINNY_WARPS;
    __shared__ float shared[WARPS][M * COLUMNS];
    const Place place = place_of_block(p);
    const DenseRows<T> a = rows_of_a<T>(p, place), b = rows_of_b<T>(p, place);
    const int64_t n0 = place.tile_n * COLUMNS;
    const int rows = static_cast<int>(p.end.m);
    const int columns = p.end.n - n0 < COLUMNS ? int(p.end.n - n0) : COLUMNS;
    float sums[M][COLUMNS] = {};
    for (int64_t k = threadIdx.x * N; k < p.k; k += 32 * WARPS * N) {
        float w[COLUMNS][N];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            load_floats(w[j], b.row(j < columns ? n0 + j : n0) + k, p.k - k, p.k - k >= N);
#pragma unroll
        for (int i = 0; i < M; i++) {
            if (i >= rows) break;
            float x[N];
            load_floats(x, a.row(i) + k, p.k - k, p.k - k >= N);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int q = 0; q < N; q++) sums[i][j] = fmaf(x[q], w[j][q], sums[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        if (i >= rows) break;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            float sum = warp_reduce<Sum>(sums[i][j]);
            if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32][i * COLUMNS + j] = sum;
        }
    }
    __syncthreads();
    const int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    if (row >= rows || column >= columns) return;
    float sum = shared[0][threadIdx.x];
    for (int warp = 1; warp < WARPS; warp++) sum += shared[warp][threadIdx.x];
    end_of_block(p, place).store(sum, row, n0 + column);
}

// C[m, 8 x 16 bytes] = A[m, k] B[k, n]: a warp has four rows of B at a time, the block 32.
template <class T> __global__ void __launch_bounds__(256, 2) gemm_skinny_nn(const Problem p) {
    constexpr int M = 8, N = PACK<T>, COLUMNS = 8 * N, WARPS = 8, DEPTH = 64;
    __shared__ float shared[WARPS][M][COLUMNS];
    __shared__ float part[M][DEPTH];                   // of A, as floats
    const Place place = place_of_block(p);
    const DenseRows<T> a = rows_of_a<T>(p, place), b = rows_of_b<T>(p, place);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = static_cast<int>(p.end.m);
    const int64_t n0 = place.tile_n * COLUMNS, column = n0 + lane % 8 * N, left = p.end.n - column;
    float sums[M][N] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < DEPTH * M; i += 256) {
            const int row = i / DEPTH, k = i % DEPTH;
            part[row][k] = row < rows && k0 + k < p.k ? to_float(a.row(row)[k0 + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < DEPTH / 32; step++) {
            const int k = 32 * step + 4 * warp + lane / 8;
            if (k0 + k >= p.k || left <= 0) continue;
            float w[N];
            load_floats(w, b.row(k0 + k) + column, left, left >= N);
#pragma unroll
            for (int i = 0; i < M; i++) {
                if (i >= rows) break;
#pragma unroll
                for (int j = 0; j < N; j++) sums[i][j] = fmaf(part[i][k], w[j], sums[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        if (i >= rows) break;
#pragma unroll
        for (int j = 0; j < N; j++) {
            float sum = sums[i][j];
            sum += __shfl_xor_sync(ALL_LANES, sum, 8);
            sum += __shfl_xor_sync(ALL_LANES, sum, 16);
            if (lane < 8) shared[warp][i][lane * N + j] = sum;
        }
    }
    __syncthreads();
    const Epilogue end = end_of_block(p, place);
    for (int i = threadIdx.x; i < rows * COLUMNS; i += 256) {
        const int row = i / COLUMNS, at = i % COLUMNS;
        if (n0 + at >= p.end.n) continue;
        float sum = shared[0][row][at];
        for (int w = 1; w < WARPS; w++) sum += shared[w][row][at];
        end.store(sum, row, n0 + at);
    }
}

int launch_skinny(const Problem& p, int32_t dtype, cudaStream_t stream) {
    const unsigned blocks = blocks_of(p);
    NN_FOR_FLOATING(dtype, T, {
        if (p.trans_b)
            gemm_skinny_nt<T><<<blocks, 32 * SKINNY_WARPS, 0, stream>>>(p);
        else
            gemm_skinny_nn<T><<<blocks, 256, 0, stream>>>(p);
    });
    return launched("gemm_skinny");
}

}  // namespace nn
