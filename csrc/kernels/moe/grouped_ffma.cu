// All experts' linear maps by float32 multiply-add: float32 itself, and half precision where tensor cores
// cannot be used (before sm_80 for bfloat16, odd widths, unaligned pointers).
//
// one thread per element -> tiles in shared memory -> 8x8 results per thread (used)
//
// A block of 128 threads makes 64x128 results from steps of 16 in k.  Both operands lie in shared memory as
// [k][m or n] in float32, so that a thread takes its 8 + 8 numbers with four 16-byte reads; the next step is
// loaded into registers while this one is multiplied. 64 rows, not 128: a group's last tile is mostly waste.
#include "device/activation.cuh"
#include "grouped.cuh"

namespace nn {

constexpr int FFMA_THREADS = 128;  // 3 blocks per multiprocessor: unasked, ptxas makes room for 4 and spills
constexpr int FFMA_M = 64, FFMA_N = 128, FFMA_K = 16;
constexpr int FFMA_PAD = 4;          // of 4 modulo 8: a warp's scattered stores of quads hit 32 banks

// An operand whose rows are contiguous along k:  tile[k][WIDTH] of WIDTH rows.  A thread has rows
// warp * 16 + lane / 2 + 64 j and of each the quads lane % 2 and lane % 2 + 2: pairs of lanes read whole
// sectors.
template <class T, int WIDTH> struct AlongK {
    static constexpr int ROWS = WIDTH / 64;
    const T* row[ROWS];                                          // null: no such row
    int64_t length;                                              // of k
    bool vector;
    float quads[ROWS][2][4];

    __device__ __forceinline__ static int index(int j) {
        return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 2 + 64 * j;
    }

    __device__ __forceinline__ void load(int64_t k) {
#pragma unroll
        for (int j = 0; j < ROWS; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int64_t at = k + (threadIdx.x % 2 + 2 * i) * 4;
                const int64_t valid = row[j] ? length - at : 0;
                load_floats(quads[j][i], row[j] + at, valid, vector && valid >= 4);
            }
    }

    __device__ __forceinline__ void store(float (*tile)[WIDTH + FFMA_PAD]) const {
#pragma unroll
        for (int j = 0; j < ROWS; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float(*at)[WIDTH + FFMA_PAD] = tile + (threadIdx.x % 2 + 2 * i) * 4;
#pragma unroll
                for (int q = 0; q < 4; ++q) at[q][index(j)] = quads[j][i][q];
            }
    }
};

// An operand whose rows are steps of k, contiguous across:  tile[k][WIDTH] as it lies in memory.
template <class T, int WIDTH> struct AcrossK {
    static constexpr int LANES = WIDTH / 4, STEP = FFMA_THREADS / LANES, ROWS = FFMA_K / STEP;
    const T* from;                                               // this tile's first column, in row 0
    int64_t stride, length, width;                               // of a row; rows; columns from here on
    bool vector;
    const int64_t* order;                                        // row k is order[k] / choices; or null
    uint32_t choices;
    float quads[ROWS][4];

    __device__ __forceinline__ void load(int64_t k) {
        const int column = threadIdx.x % LANES * 4;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            int64_t row = k + threadIdx.x / LANES + STEP * i, valid = row < length ? width - column : 0;
            if (order && row < length) row = static_cast<uint32_t>(order[row]) / choices;
            load_floats(quads[i], from + row * stride + column, valid, vector && valid >= 4);
        }
    }

    __device__ __forceinline__ void store(float (*tile)[WIDTH + FFMA_PAD]) const {
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
            store_shared(&tile[threadIdx.x / LANES + STEP * i][threadIdx.x % LANES * 4],
                         packed<float>(quads[i]));
    }
};

struct FfmaTiles {
    float a[2][FFMA_K][FFMA_M + FFMA_PAD], b[2][FFMA_K][FFMA_N + FFMA_PAD];
};

// A thread's results: rows 4 m + i and 32 + 4 m + i, columns 4 n + j and 64 + 4 n + j of the tile.
__device__ __forceinline__ int ffma_m() { return threadIdx.x % 32 / 8 + threadIdx.x / 64 * 4; }
__device__ __forceinline__ int ffma_n() { return threadIdx.x % 8 + threadIdx.x / 32 % 2 * 8; }

__device__ __forceinline__ void ffma_step(float (&sums)[8][8], const float (*a)[FFMA_M + FFMA_PAD],
                                          const float (*b)[FFMA_N + FFMA_PAD]) {
#pragma unroll 2
    for (int k = 0; k < FFMA_K; ++k) {
        const float *a_quads = &a[k][ffma_m() * 4], *b_quads = &b[k][ffma_n() * 4];
        const Pack<float, 4> left[2] = {load_pack<4>(a_quads), load_pack<4>(a_quads + FFMA_M / 2)};
        const Pack<float, 4> right[2] = {load_pack<4>(b_quads), load_pack<4>(b_quads + FFMA_N / 2)};
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                sums[i][j] = fmaf(left[i / 4][i % 4], right[j / 4][j % 4], sums[i][j]);
    }
}

template <class A, class B>
__device__ __forceinline__ void ffma_product(float (&sums)[8][8], A& a, B& b, int64_t length,
                                             FfmaTiles& tiles) {
    if (length <= 0) return;
    a.load(0), b.load(0);
    a.store(tiles.a[0]), b.store(tiles.b[0]);
    __syncthreads();
    int now = 0;
    for (int64_t k = 0; k < length; k += FFMA_K, now ^= 1) {
        const bool more = k + FFMA_K < length;
        if (more) a.load(k + FFMA_K), b.load(k + FFMA_K);
        ffma_step(sums, tiles.a[now], tiles.b[now]);
        if (more) a.store(tiles.a[now ^ 1]), b.store(tiles.b[now ^ 1]);
        __syncthreads();
    }
}

// Half of a thread's results, columns FIRST ... FIRST + 3 of 8, as one quad per row at out[row][4 n]. Of the
// tile at out, `rows` and `columns` exist.
template <int FIRST, class T>
__device__ __forceinline__ void ffma_write_half(T* out, const float (&sums)[8][8], int64_t stride,
                                                int64_t rows, int64_t columns, bool vector) {
    const int column = ffma_n() * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row = i / 4 * (FFMA_M / 2) + ffma_m() * 4 + i % 4;
        if (row >= rows) continue;
        T* to = out + row * stride + column;
        if (vector && column + 4 <= columns) {
            Pack<T, 4> pack;
#pragma unroll
            for (int q = 0; q < 4; ++q) pack[q] = from_float<T>(sums[i][FIRST + q]);
            store_global(to, pack);
            continue;
        }
#pragma unroll
        for (int q = 0; q < 4; ++q)
            if (column + q < columns) to[q] = from_float<T>(sums[i][FIRST + q]);
    }
}

template <class T>
__device__ __forceinline__ void ffma_write(T* out, const float (&sums)[8][8], int64_t stride, int64_t rows,
                                           int64_t columns, bool vector) {
    ffma_write_half<0>(out, sums, stride, rows, columns, vector);
    ffma_write_half<4>(out + FFMA_N / 2, sums, stride, rows, columns - FFMA_N / 2, vector);
}

// SWIGLU: a thread's two halves are gate and up of the same columns.
template <class T>
__device__ __forceinline__ void ffma_write_swiglu(const Grouped& call, float (&sums)[8][8],
                                                  const GroupTile& tile, int64_t column) {
    const int64_t half = call.outputs / 2, rows = tile.end - tile.first, columns = half - column;
    if (call.hidden) {
        T* hidden = static_cast<T*>(call.hidden) + tile.first * 2 * half + column;
        ffma_write_half<0>(hidden, sums, 2 * half, rows, columns, call.vector);
        ffma_write_half<4>(hidden + half, sums, 2 * half, rows, columns, call.vector);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            const float gate = to_float(from_float<T>(sums[i][q])),
            up = to_float(from_float<T>(sums[i][4 + q]));
            sums[i][q] = silu(gate) * up;
        }
    ffma_write_half<0>(static_cast<T*>(call.out) + tile.first * half + column, sums, half, rows, columns,
                       call.vector);
}

// FORWARD, SWIGLU, INPUT: a block per tile of rows and columns.
template <class T, Product PRODUCT>
__global__ void __launch_bounds__(FFMA_THREADS, 3) grouped_rows_ffma(Grouped call) {
    __shared__ __align__(16) FfmaTiles tiles;
    constexpr bool SWIGLU = PRODUCT == Product::SWIGLU, FORWARD = PRODUCT != Product::INPUT;
    const int64_t length = FORWARD ? call.inputs : call.outputs;
    const int64_t width = SWIGLU ? call.outputs / 2 : FORWARD ? call.outputs : call.inputs;
    const int64_t column = static_cast<int64_t>(blockIdx.x % call.tiles_n) * (SWIGLU ? FFMA_N / 2 : FFMA_N);
    GroupTile tile;
    if (!find_tile<FFMA_M>(&tile, call, blockIdx.x / call.tiles_n)) return;
    float sums[8][8] = {};
    if (tile.expert < call.num_experts) {
        const T* weight = static_cast<const T*>(call.b) + tile.expert * call.outputs * call.inputs;
        AlongK<T, FFMA_M> a;
        a.length = length, a.vector = call.vector;
        const int64_t r = tile.first + a.index(0);
        a.row[0] = r < tile.end ? static_cast<const T*>(call.a) + source_row(call, r) * length : nullptr;
        if constexpr (FORWARD) {
            AlongK<T, FFMA_N> b;
            b.length = length, b.vector = call.vector;
#pragma unroll
            for (int j = 0; j < b.ROWS; ++j) {
                const int64_t at = column + b.index(SWIGLU ? 0 : j);
                b.row[j] = at < width ? weight + (SWIGLU ? at + j * width : at) * length : nullptr;
            }
            ffma_product(sums, a, b, length, tiles);
        } else {
            AcrossK<T, FFMA_N> b{weight + column, width, length, width - column, call.vector, nullptr, 1, {}};
            ffma_product(sums, a, b, length, tiles);
        }
    }
    if constexpr (SWIGLU)
        ffma_write_swiglu<T>(call, sums, tile, column);
    else
        ffma_write(static_cast<T*>(call.out) + tile.first * width + column, sums, width,
                   tile.end - tile.first, width - column, call.vector);
}

// WEIGHT: a block per expert and tile of its matrix; the expert's rows are the sum's length.
template <class T> __global__ void __launch_bounds__(FFMA_THREADS, 3) grouped_weight_ffma(Grouped call) {
    __shared__ __align__(16) FfmaTiles tiles;
    const int64_t tiles_m = (call.outputs + FFMA_M - 1) / FFMA_M, tile_m = blockIdx.x / call.tiles_n;
    const int64_t expert = tile_m / tiles_m, m = tile_m % tiles_m * FFMA_M;
    const int64_t n = static_cast<int64_t>(blockIdx.x % call.tiles_n) * FFMA_N;
    const int64_t first = min(max(call.offsets[expert], int64_t(0)), call.rows);
    const int64_t length = min(call.offsets[expert + 1], call.rows) - first;
    AcrossK<T, FFMA_M> a{static_cast<const T*>(call.a) + first * call.outputs + m, call.outputs, length,
                         call.outputs - m, call.vector, nullptr, 1, {}};
    const T* x = static_cast<const T*>(call.b) + n;
    AcrossK<T, FFMA_N> b{call.order ? x : x + first * call.inputs, call.inputs, length, call.inputs - n,
                         call.vector, call.order ? call.order + first : nullptr, call.choices, {}};
    float sums[8][8] = {};
    ffma_product(sums, a, b, length, tiles);
    ffma_write(static_cast<float*>(call.out) + (expert * call.outputs + m) * call.inputs + n, sums,
               call.inputs, call.outputs - m, call.inputs - n, call.vector);
}

template <class T> int launch_ffma(Grouped call, Product product, cudaStream_t stream) {
    const bool forward = product == Product::FORWARD || product == Product::SWIGLU;
    const int64_t tiles_n = ceil_div(forward ? call.outputs : call.inputs, FFMA_N);
    const int64_t tiles_m = product == Product::WEIGHT ? call.num_experts * ceil_div(call.outputs, FFMA_M)
                                                       : most_tiles<FFMA_M>(call.rows, call.num_experts);
    unsigned blocks = 0;
    NN_TRY(grouped_grid(tiles_m, tiles_n, &blocks));
    call.tiles_n = static_cast<int>(tiles_n);
    if (product == Product::FORWARD)
        grouped_rows_ffma<T, Product::FORWARD><<<blocks, FFMA_THREADS, 0, stream>>>(call);
    else if (product == Product::SWIGLU)
        grouped_rows_ffma<T, Product::SWIGLU><<<blocks, FFMA_THREADS, 0, stream>>>(call);
    else if (product == Product::INPUT)
        grouped_rows_ffma<T, Product::INPUT><<<blocks, FFMA_THREADS, 0, stream>>>(call);
    else
        grouped_weight_ffma<T><<<blocks, FFMA_THREADS, 0, stream>>>(call);
    return launched("grouped_ffma");
}

int grouped_ffma(const Grouped& call, Product product, int32_t dtype, cudaStream_t stream) {
    NN_FOR_FLOATING(dtype, T, return launch_ffma<T>(call, product, stream));
}

}  // namespace nn
