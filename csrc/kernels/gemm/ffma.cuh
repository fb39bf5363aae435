// The main loop of a matrix product in float32 arithmetic, for one block: exact products, any type, any
// alignment.
//
//     using Tile = FfmaTile<128, 128, 8, 8, 8>;                    // 256 threads, 8x8 sums each
//     __shared__ __align__(16) float shared[Tile::SHARED_FLOATS];
//     float sums[Tile::TM][Tile::TN] = {};
//     multiply_ffma<Tile>(sums, shared, a, a_along_k, m0, b, b_along_k, n0, k_begin, k_end);
//     for_each_ffma_part<Tile>(sums, shared, [&](const Part& part) { ... });
//
// Operands come from loaders as in mainloop.cuh, and `wide`: whether rows start at multiples of 4 elements.
// Sums run over k one by one from k_begin on, whatever the tile: a row's bits depend on its operands alone.
//
// Ladder: 32x32 tiles, one sum per thread (tiled.cu) -> 8x8 sums in registers: 64 FFMA for 4 loads of 16
// bytes -> the next step's operands wait in registers, two stages (used).
#pragma once

#include "mainloop.cuh"

namespace nn {

template <int BM_, int BN_, int BK_, int TM_, int TN_> struct FfmaTile {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_, THREADS = 256;
    static constexpr int STRIDE_A = BM + 4, STRIDE_B = BN + 4;       // 4 rows further: 16 banks further
    static constexpr int STAGE = BK * (STRIDE_A + STRIDE_B);         // floats
    static constexpr int PART_ROWS = BM / (TM / 4);
    static constexpr int SHARED_FLOATS = PART_ROWS * BN > 2 * STAGE ? PART_ROWS * BN : 2 * STAGE;
    static_assert(BM / TM == 16 && BN / TN == 16, "256 threads in 16 x 16");
    static_assert(BM * BK == 4 * THREADS && BN * BK == 4 * THREADS, "four of each operand per thread");
};

// A thread's four elements of an operand: fetched from global memory, put into shared[k][EXTENT].
template <class Tile, int EXTENT, class Loader> struct Quad {
    using T = typename Loader::T;
    const Loader& loader;
    const bool along_k;
    int line, quad;                                    // along k: of m (n), of k; else: of k, of m (n)
    int count;                                         // of the four inside the extent
    int64_t column, k_end;                             // column: where there is nothing to add for k
    const T* fixed = nullptr;                          // the row, along k

    __device__ __forceinline__ Quad(const Loader& loader_, bool along_k_, int64_t origin, int64_t k_end_)
        : loader(loader_), along_k(along_k_), k_end(k_end_) {
        const int t = threadIdx.x;
        if (along_k) {             // two lanes share 8 neighbours (a sector of float); 16 rows: all banks
            line = t / 2 % EXTENT, quad = t % 2 + t / (2 * EXTENT) * 2, column = 4 * quad;
            count = origin + line < loader.extent ? 4 : 0;
            if (count) fixed = loader.row(origin + line);
        } else {
            line = t / (EXTENT / 4), quad = t % (EXTENT / 4), column = origin + 4 * quad;
            const int64_t left = loader.extent - column;
            count = left < 0 ? 0 : left < 4 ? int(left) : 4;
        }
    }

    __device__ __forceinline__ void fetch(float (&x)[4], int64_t k) const {
        const T* from = nullptr;
        int there = count;
        if (along_k) {
            const int64_t left = k_end - k - column;
            from = fixed + k + column;
            if (left < there) there = int(left);
        } else if (k + line < k_end) {
            from = loader.row(k + line) + column;
        } else {
            there = 0;
        }
        load_floats(x, from, there, there == 4 && loader.wide);
    }

    __device__ __forceinline__ void put(float* stage, const float (&x)[4]) const {
        constexpr int STRIDE = EXTENT + 4;
        if (along_k) {
#pragma unroll
            for (int j = 0; j < 4; j++) stage[(4 * quad + j) * STRIDE + line] = x[j];
        } else {
            store_shared(stage + line * STRIDE + 4 * quad, packed<float>(x));
        }
    }
};

// A dense operand for this loop.
template <class T_> struct DenseQuads : DenseRows<T_> {
    using T = T_;
    bool wide;
    __device__ __forceinline__ DenseQuads(const DenseRows<T>& rows, bool wide_)
        : DenseRows<T>(rows), wide(wide_) {}
};

// 16 x 16 threads; a warp is 4 x 8 of them, so that its loads of a row are one run of 128 bytes, or
// broadcasts.
__device__ __forceinline__ int ffma_row() { return threadIdx.x / 64 * 4 + threadIdx.x % 32 / 8; }
__device__ __forceinline__ int ffma_column() { return threadIdx.x / 32 % 2 * 8 + threadIdx.x % 8; }

template <class Tile>
__device__ __forceinline__ void multiply_ffma_stage(float (&sums)[Tile::TM][Tile::TN], const float* stage) {
    const float* a = stage + 4 * ffma_row();
    const float* b = stage + Tile::BK * Tile::STRIDE_A + 4 * ffma_column();
#pragma unroll
    for (int k = 0; k < Tile::BK; k++) {
        Pack<float, 4> x[Tile::TM / 4], y[Tile::TN / 4];
#pragma unroll
        for (int i = 0; i < Tile::TM; i += 4)
            x[i / 4] = load_pack<4>(a + k * Tile::STRIDE_A + 16 * i);
#pragma unroll
        for (int j = 0; j < Tile::TN; j += 4)
            y[j / 4] = load_pack<4>(b + k * Tile::STRIDE_B + 16 * j);
#pragma unroll
        for (int i = 0; i < Tile::TM; i++)
#pragma unroll
            for (int j = 0; j < Tile::TN; j++)
                sums[i][j] = fmaf(x[i / 4][i % 4], y[j / 4][j % 4], sums[i][j]);
    }
}

// Ends with `shared` free for other use.
template <class Tile, class LoaderA, class LoaderB>
__device__ __forceinline__ void multiply_ffma(float (&sums)[Tile::TM][Tile::TN], float* shared,
                                              const LoaderA& a, bool a_along_k, int64_t m0, const LoaderB& b,
                                              bool b_along_k, int64_t n0, int64_t k_begin, int64_t k_end) {
    constexpr int B = Tile::BK * Tile::STRIDE_A;       // where B begins in a stage
    const Quad<Tile, Tile::BM, LoaderA> quad_a(a, a_along_k, m0, k_end);
    const Quad<Tile, Tile::BN, LoaderB> quad_b(b, b_along_k, n0, k_end);
    float held_a[4], held_b[4];
    const int64_t stages = (k_end - k_begin + Tile::BK - 1) / Tile::BK;
    if (stages > 0) {
        quad_a.fetch(held_a, k_begin), quad_b.fetch(held_b, k_begin);
        quad_a.put(shared, held_a), quad_b.put(shared + B, held_b);
    }
    __syncthreads();
    for (int64_t s = 0; s < stages; s++) {
        float *now = shared + s % 2 * Tile::STAGE, *next = shared + (s + 1) % 2 * Tile::STAGE;
        const bool more = s + 1 < stages;
        const int64_t k = k_begin + (s + 1) * Tile::BK;
        if (more) quad_a.fetch(held_a, k), quad_b.fetch(held_b, k);
        multiply_ffma_stage<Tile>(sums, now);
        if (more) quad_a.put(next, held_a), quad_b.put(next + B, held_b);
        __syncthreads();
    }
}

// The block visits its sums as parts of PART_ROWS x BN floats in shared memory; all threads together.
template <class Tile, class Visit>
__device__ __forceinline__ void for_each_ffma_part(const float (&sums)[Tile::TM][Tile::TN], float* shared,
                                                   const Visit& visit) {
    const int row = 4 * ffma_row(), column = 4 * ffma_column();
#pragma unroll 1
    for (int part = 0; part < Tile::TM / 4; part++) {
        __syncthreads();
#pragma unroll
        for (int known = 0; known < Tile::TM / 4; known++) {         // registers have no run-time index
            if (known != part) continue;
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < Tile::TN; j += 4)
                    store_shared(shared + (row + i) * Tile::BN + column + 16 * j,
                                 Pack<float, 4>{sums[4 * known + i][j], sums[4 * known + i][j + 1],
                                                sums[4 * known + i][j + 2], sums[4 * known + i][j + 3]});
        }
        __syncthreads();
        visit(Part{shared, Tile::BN, Tile::PART_ROWS, Tile::BN, part * Tile::PART_ROWS, 0, int(threadIdx.x),
                   Tile::THREADS});
    }
}

}  // namespace nn
