// SwiGLU, forward and backward, over two arrays or over one that has gate and up side by side.
//
// One element per thread -> a pack of 16 bytes per operand -> both layouts in one kernel, rows with gaps
// (used).
#include "nn/elementwise.h"
#include "tile.cuh"

namespace nn {

template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    swiglu_forward(T* y, const T* gate, const T* up, int64_t n, Gapped inputs, bool vector) {
    for (int64_t tile = int64_t{blockIdx.x} * TILE<T>; tile < n; tile += int64_t{gridDim.x} * TILE<T>) {
        Place<T> place(tile, n, vector);
        auto gates = fetch(gate, place, inputs), ups = fetch(up, place, inputs);
        float a[PACK<T>], b[PACK<T>];
        unpack(a, gates);
        unpack(b, ups);
#pragma unroll
        for (int j = 0; j < PACK<T>; ++j) a[j] = a[j] * sigmoid(a[j]) * b[j];
        store(y, a, place);
    }
}

template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    swiglu_backward(T* dgate, T* dup, const T* dy, const T* gate, const T* up, int64_t n, Gapped inputs,
                    bool vector) {
    for (int64_t tile = int64_t{blockIdx.x} * TILE<T>; tile < n; tile += int64_t{gridDim.x} * TILE<T>) {
        Place<T> place(tile, n, vector);
        auto gradients = fetch(dy, place), gates = fetch(gate, place, inputs), ups = fetch(up, place, inputs);
        float g[PACK<T>], a[PACK<T>], b[PACK<T>];
        unpack(g, gradients);
        unpack(a, gates);
        unpack(b, ups);
#pragma unroll
        for (int j = 0; j < PACK<T>; ++j) {
            float s = sigmoid(a[j]), silu = a[j] * s;
            a[j] = (silu * (1.0f - s) + s) * g[j] * b[j];
            b[j] = silu * g[j];
        }
        store(dgate, a, place, inputs);
        store(dup, b, place, inputs);
    }
}

template <class T>
static int forward(void* y, const void* gate, const void* up, int64_t n, Gapped inputs, nn_stream stream) {
    bool vector = aligned(y, 16) && aligned(gate, 16) && aligned(up, 16) &&
                  (inputs.gap == 0 || inputs.cols % PACK<T> == 0);
    swiglu_forward<T><<<blocks_for(n, TILE<T>), TILE_THREADS, 0, native(stream)>>>(
        static_cast<T*>(y), static_cast<const T*>(gate), static_cast<const T*>(up), n, inputs, vector);
    return launched("swiglu_forward");
}

template <class T>
static int backward(void* dgate, void* dup, const void* dy, const void* gate, const void* up, int64_t n,
                    Gapped inputs, nn_stream stream) {
    bool vector = aligned(dgate, 16) && aligned(dup, 16) && aligned(dy, 16) && aligned(gate, 16) &&
                  aligned(up, 16) && (inputs.gap == 0 || inputs.cols % PACK<T> == 0);
    swiglu_backward<T><<<blocks_for(n, TILE<T>), TILE_THREADS, 0, native(stream)>>>(
        static_cast<T*>(dgate), static_cast<T*>(dup), static_cast<const T*>(dy), static_cast<const T*>(gate),
        static_cast<const T*>(up), n, inputs, vector);
    return launched("swiglu_backward");
}

// The second half of a packed row
static const char* half_row(const void* x, int64_t cols, int32_t dtype) {
    return static_cast<const char*>(x) + cols * dtype_bytes(dtype);
}

}  // namespace nn

NN_API int nn_swiglu_forward(void* y, const void* gate, const void* up, int64_t n, int32_t dtype,
                             nn_stream stream) {
    NN_TRY(nn::check_count("n", n));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (n == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", dtype));
    NN_TRY(nn::check_array(gate, "gate", dtype));
    NN_TRY(nn::check_array(up, "up", dtype));
    NN_FOR_FLOATING(dtype, T, return nn::forward<T>(y, gate, up, n, nn::Gapped{n, 0}, stream));
    return NN_OK;
}

NN_API int nn_swiglu_backward(void* dgate, void* dup, const void* dy, const void* gate, const void* up,
                              int64_t n, int32_t dtype, nn_stream stream) {
    NN_TRY(nn::check_count("n", n));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (n == 0) return NN_OK;
    NN_TRY(nn::check_array(dgate, "dgate", dtype));
    NN_TRY(nn::check_array(dup, "dup", dtype));
    NN_TRY(nn::check_array(dy, "dy", dtype));
    NN_TRY(nn::check_array(gate, "gate", dtype));
    NN_TRY(nn::check_array(up, "up", dtype));
    NN_FOR_FLOATING(dtype, T,
                    return nn::backward<T>(dgate, dup, dy, gate, up, n, nn::Gapped{n, 0}, stream));
    return NN_OK;
}

NN_API int nn_swiglu_packed_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                                    nn_stream stream) {
    NN_TRY(nn::check_matrix(rows, cols));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (rows == 0 || cols == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", dtype));
    NN_TRY(nn::check_array(x, "x", dtype));
    NN_REQUIRE(y != x, "y: is x; a packed input is not overwritten");
    const void* up = nn::half_row(x, cols, dtype);
    NN_FOR_FLOATING(dtype, T, return nn::forward<T>(y, x, up, rows * cols, nn::Gapped{cols, cols}, stream));
    return NN_OK;
}

NN_API int nn_swiglu_packed_backward(void* dx, const void* dy, const void* x, int64_t rows, int64_t cols,
                                     int32_t dtype, nn_stream stream) {
    NN_TRY(nn::check_matrix(rows, cols));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (rows == 0 || cols == 0) return NN_OK;
    NN_TRY(nn::check_array(dx, "dx", dtype));
    NN_TRY(nn::check_array(dy, "dy", dtype));
    NN_TRY(nn::check_array(x, "x", dtype));
    char* dup = const_cast<char*>(nn::half_row(dx, cols, dtype));
    const void* up = nn::half_row(x, cols, dtype);
    NN_FOR_FLOATING(dtype, T, return nn::backward<T>(dx, dup, dy, x, up, rows * cols, nn::Gapped{cols, cols},
                                                     stream));
    return NN_OK;
}
