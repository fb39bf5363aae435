// All experts' linear maps on tensor cores: float16 and bfloat16 with float32 sums, by the dense product's
// main loop (../gemm/mainloop.cuh) with loaders of this file. Widths are multiples of 8 and pointers of 16
// bytes.
//
// one launch per expert (a host read of the counts, small grids) -> padded groups -> ragged groups found in
// offsets by each block -> + rows of x gathered by the loader, so that no permuted copy of x need exist
// (used)
//
// Tiles of 128x128 where groups are long, of 32x128 where they are short (decoding: the weights' bytes
// decide, and a tall tile would be mostly waste). Sums run over k in the same steps in both: the choice
// changes no bit.
#include "../gemm/mainloop.cuh"
#include "device/activation.cuh"
#include "grouped.cuh"

namespace nn {

template <class T> using LongTile = TensorTile<T, 128, 128, 2, 2>;
template <class T> using ShortTile = TensorTile<T, 32, 128, 1, 4, 4>;

constexpr int SHORT_GROUP = 64;      // rows per expert, on average, below which tiles are short

// Rows of a matrix, the first `extent` from `first` on; through `order` if it is given.
template <class T> struct GroupRows {
    const T* data;
    const int64_t* order;
    int64_t first, stride, extent;
    uint32_t choices;

    __device__ __forceinline__ const T* row(int64_t r) const {
        r += first;
        if (order) r = static_cast<uint32_t>(order[r]) / choices;
        return data + r * stride;
    }
};

// The rows of a packed gate/up matrix [2F][stride] that make columns `column` ... of both halves: each warp's
// columns are half gate and half up, so that the activation needs no other warp. Columns beyond F repeat the
// last.
template <class Tile> struct GateUpRows {
    using T = typename Tile::T;
    static constexpr int64_t extent = Tile::BN;
    const T* data;
    int64_t stride, column, half;

    __device__ __forceinline__ const T* row(int64_t r) const {
        constexpr int HALF = Tile::WN / 2;
        const int64_t at = min(column + r / Tile::WN * HALF + r % HALF, half - 1);
        return data + (r % Tile::WN < HALF ? at : half + at) * stride;
    }
};

// Four floats as T; they become what T made of them.
template <class T> __device__ __forceinline__ Pack<T, 4> rounded(float (&four)[4]) {
    const Pack<T, 4> pack = packed<T>(four);
    unpack(four, pack);
    return pack;
}

// y[row][column] of a tile of GateUpRows, and, if wanted, what it was made of: hidden[row][column], [half +
// column].
template <class Tile, class T>
__device__ __forceinline__ void write_swiglu(const Sums<Tile>& sums, char* shared, T* y, T* hidden,
                                             int64_t half, int64_t rows, int64_t columns) {
    for_each_part<Tile>(sums, shared, [&](const Part& part) {
        constexpr int HALF = Tile::WN / 2, QUADS = HALF / 4;
        for (int i = part.thread; i < part.rows * QUADS; i += part.threads) {
            const int r = i / QUADS, c = i % QUADS * 4;
            const int64_t row = part.row + r, column = part.column / 2 + c;
            if (row >= rows || column >= columns) continue;
            const float* at = part.at + r * part.stride + c;
            float gate[4], up[4];
            load_floats(gate, at), load_floats(up, at + HALF);
            const Pack<T, 4> gates = rounded<T>(gate), ups = rounded<T>(up);
            if (hidden) {
                store_global(hidden + row * 2 * half + column, gates);
                store_global(hidden + row * 2 * half + half + column, ups);
            }
#pragma unroll
            for (int q = 0; q < 4; ++q) gate[q] = silu(gate[q]) * up[q];
            store_floats(y + row * half + column, gate);
        }
    });
}

// The tile's results at out[row][column], of which `rows` and `columns` exist.
template <class Tile, class T>
__device__ __forceinline__ void write_tile(const Sums<Tile>& sums, char* shared, T* out, int64_t stride,
                                           int64_t rows, int64_t columns) {
    for_each_part<Tile>(sums, shared, [&](const Part& part) {
        const int quads = part.columns / 4;
        for (int i = part.thread; i < part.rows * quads; i += part.threads) {
            const int r = i / quads, c = i % quads * 4;
            if (part.row + r >= rows || part.column + c >= columns) continue;
            float four[4];
            load_floats(four, part.at + r * part.stride + c);
            store_floats(out + (part.row + r) * stride + part.column + c, four);
        }
    });
}

template <class T>
__device__ __forceinline__ void write_zeros(T* out, int64_t stride, int64_t rows, int64_t columns) {
    const int quads = static_cast<int>(columns / 4);
    for (int i = threadIdx.x; i < rows * quads; i += blockDim.x)
        store_global(out + i / quads * stride + i % quads * 4, Pack<T, 4>{});
}

// FORWARD, SWIGLU, INPUT: a block per tile of rows and columns.
template <class Tile, Product PRODUCT>
__global__ void __launch_bounds__(Tile::THREADS) grouped_rows_mma(Grouped call) {
    using T = typename Tile::T;
    if constexpr (tensor_cores<T>) {
        extern __shared__ __align__(1024) char shared[];
        constexpr bool SWIGLU = PRODUCT == Product::SWIGLU, FORWARD = PRODUCT != Product::INPUT;
        const int64_t length = FORWARD ? call.inputs : call.outputs;
        const int64_t width = SWIGLU ? call.outputs / 2 : FORWARD ? call.outputs : call.inputs;
        constexpr int COLUMNS = SWIGLU ? Tile::BN / 2 : Tile::BN;
        const int64_t column = static_cast<int64_t>(blockIdx.x % call.tiles_n) * COLUMNS;
        GroupTile tile;
        if (!find_tile<Tile::BM>(&tile, call, blockIdx.x / call.tiles_n)) return;
        const int64_t rows = tile.end - tile.first;
        T* out = static_cast<T*>(call.out) + tile.first * width + column;
        T* hidden = static_cast<T*>(call.hidden);
        if (SWIGLU && hidden) hidden += tile.first * 2 * width + column;
        if (tile.expert == call.num_experts) {
            const int64_t columns = min(width - column, int64_t(COLUMNS));
            write_zeros(out, width, rows, columns);
            if (SWIGLU && hidden) {
                write_zeros(hidden, 2 * width, rows, columns);
                write_zeros(hidden + width, 2 * width, rows, columns);
            }
            return;
        }
        const T* weight = static_cast<const T*>(call.b) + tile.expert * call.outputs * call.inputs;
        const GroupRows<T> a{static_cast<const T*>(call.a), call.order, tile.first, length, rows,
                             call.choices};
        Sums<Tile> sums;
        if constexpr (SWIGLU) {
            const GateUpRows<Tile> b{weight, call.inputs, column, width};
            multiply<Tile, true, true>(sums, shared, a, 0, b, 0, 0, length);
            write_swiglu<Tile>(sums, shared, out, hidden, width, rows, width - column);
        } else {
            const DenseRows<T> b{weight, call.inputs, width};
            multiply<Tile, true, FORWARD>(sums, shared, a, 0, b, column, 0, length);
            write_tile<Tile>(sums, shared, out, width, rows, width - column);
        }
    }
}

// WEIGHT: a block per expert and tile of its matrix; the expert's rows are the sum's length.
template <class Tile> __global__ void __launch_bounds__(Tile::THREADS) grouped_weight_mma(Grouped call) {
    using T = typename Tile::T;
    if constexpr (tensor_cores<T>) {
        extern __shared__ __align__(1024) char shared[];
        const int64_t tiles_m = (call.outputs + Tile::BM - 1) / Tile::BM, tile_m = blockIdx.x / call.tiles_n;
        const int64_t expert = tile_m / tiles_m, m = tile_m % tiles_m * Tile::BM;
        const int64_t n = static_cast<int64_t>(blockIdx.x % call.tiles_n) * Tile::BN;
        const int64_t first = min(max(call.offsets[expert], int64_t(0)), call.rows);
        const int64_t count = min(call.offsets[expert + 1], call.rows) - first;
        const GroupRows<T> a{static_cast<const T*>(call.a), nullptr, first, call.outputs, call.outputs, 1};
        const GroupRows<T> b{static_cast<const T*>(call.b), call.order, first, call.inputs, call.inputs,
                             call.choices};
        Sums<Tile> sums;
        multiply<Tile, false, false>(sums, shared, a, m, b, n, 0, count);
        write_tile<Tile>(sums, shared,
                         static_cast<float*>(call.out) + (expert * call.outputs + m) * call.inputs + n,
                         call.inputs, call.outputs - m, call.inputs - n);
    }
}

template <class Tile, class Kernel>
int launch_mma(Kernel* kernel, Grouped call, int64_t tiles_m, int64_t tiles_n, cudaStream_t stream) {
    unsigned blocks = 0;
    NN_TRY(grouped_grid(tiles_m, tiles_n, &blocks));
    call.tiles_n = static_cast<int>(tiles_n);
    Device device;
    NN_TRY(current_device(&device));
    const int shared = Tile::shared_bytes(device.capability);
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), shared));
    kernel<<<blocks, Tile::THREADS, shared, stream>>>(call);
    return launched("grouped_mma");
}

template <class Tile> int launch_rows(const Grouped& call, Product product, cudaStream_t stream) {
    const int64_t tiles_m = most_tiles<Tile::BM>(call.rows, call.num_experts);
    const int64_t outputs = ceil_div(call.outputs, Tile::BN), inputs = ceil_div(call.inputs, Tile::BN);
    if (product == Product::FORWARD)
        return launch_mma<Tile>(grouped_rows_mma<Tile, Product::FORWARD>, call, tiles_m, outputs, stream);
    if (product == Product::SWIGLU)
        return launch_mma<Tile>(grouped_rows_mma<Tile, Product::SWIGLU>, call, tiles_m, outputs, stream);
    return launch_mma<Tile>(grouped_rows_mma<Tile, Product::INPUT>, call, tiles_m, inputs, stream);
}

template <class T> int launch_product(const Grouped& call, Product product, cudaStream_t stream) {
    if (product == Product::WEIGHT) {
        using Tile = LongTile<T>;
        const int64_t tiles_m = call.num_experts * ceil_div(call.outputs, Tile::BM);
        return launch_mma<Tile>(grouped_weight_mma<Tile>, call, tiles_m, ceil_div(call.inputs, Tile::BN),
                                stream);
    }
    if (call.rows < int64_t(SHORT_GROUP) * call.num_experts)
        return launch_rows<ShortTile<T>>(call, product, stream);
    return launch_rows<LongTile<T>>(call, product, stream);
}

int grouped_mma(const Grouped& call, Product product, int32_t dtype, cudaStream_t stream) {
    return dtype == NN_FLOAT16 ? launch_product<half>(call, product, stream)
                               : launch_product<bfloat16>(call, product, stream);
}

}  // namespace nn
