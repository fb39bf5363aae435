// Rows to experts and back: dispatch, combine, and their gradients. Memory-bound: every kernel moves whole
// rows, 16 bytes per thread where pointers and width allow, one element otherwise, in blocks of as many warps
// as a row needs.
//
// dispatch            one block per row of xs: a gather                         reads and writes M rows
// dispatch backward   one block per token: its K rows summed in order           reads M, writes N; no atomics
// combine             the same with weights                                     reads M, writes N
// combine backward    one block per token, dy kept in registers: writes dys and forms dweights in one pass
// (a gather and a dot kernel, reading dy 2K times and ys once -> one pass, dy once (used))
#include <algorithm>

#include "device/arguments.h"
#include "device/launch.h"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "nn/moe.h"

namespace nn {

constexpr int MOVE_THREADS = 256;
constexpr int MOVE_HELD = 4;                                     // packs of dy that a thread keeps

// A block's groups of `lanes` threads take one row each; `packs` is a row's width in packs of N.
template <class T, int N>
__global__ void __launch_bounds__(MOVE_THREADS) moe_dispatch(T* xs, const T* x, const int64_t* order,
                                                             int64_t rows, uint32_t choices, int64_t packs,
                                                             int lanes) {
    const int lane = threadIdx.x % lanes, per_block = blockDim.x / lanes;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x / lanes;
    if (row >= rows) return;
    const T* from = x + static_cast<uint32_t>(order[row]) / choices * packs * N;
    T* to = xs + row * packs * N;
    for (int64_t p = lane; p < packs; p += lanes) store_global<N>(to + p * N, load_pack<N>(from + p * N));
}

// y[n] = sum over k of weights[n,k] ys[inverse[n,k]]; without weights, all are 1.
template <class T, int N>
__global__ void __launch_bounds__(MOVE_THREADS, 2) moe_combine(T* y, const T* ys, const float* weights,
                                                            const int64_t* inverse, int64_t tokens,
                                                            int choices, int64_t packs, int lanes) {
    const int lane = threadIdx.x % lanes, per_block = blockDim.x / lanes;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x / lanes;
    if (n >= tokens) return;
    inverse += n * choices;
    for (int64_t p = lane; p < packs; p += lanes) {
        float sum[N] = {};
#pragma unroll 4
        for (int k = 0; k < choices; ++k) {
            float row[N];
            load_floats<N>(row, ys + (inverse[k] * packs + p) * N);
            const float w = weights ? weights[n * choices + k] : 1.0f;
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += w * row[i];
        }
        store_floats<N>(y + (n * packs + p) * N, sum);
    }
}

// dys = w dy for one pack; what this pack adds to <dy, ys>.
template <class T, int N>
__device__ __forceinline__ float weigh(T* dys, const T* ys, const Pack<T, N>& dy, float w) {
    float row[N], out[N], dot = 0.0f;
    load_floats<N>(row, ys);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float g = to_float(dy[i]);
        out[i] = w * g;
        dot += g * row[i];
    }
    store_floats(dys, out);
    return dot;
}

// One block per token; the first MOVE_HELD packs of dy per thread stay in registers over all choices.
template <class T, int N>
__global__ void __launch_bounds__(MOVE_THREADS) moe_combine_backward(
    T* dys, float* dweights, const T* dy, const T* ys, const float* weights, const int64_t* inverse,
    int choices,
    int64_t packs) {
    __shared__ float scratch[32];
    const int64_t n = blockIdx.x, held = static_cast<int64_t>(MOVE_HELD) * blockDim.x;
    dy += n * packs * N;
    Pack<T, N> mine[MOVE_HELD];
#pragma unroll
    for (int j = 0; j < MOVE_HELD; ++j) {
        const int64_t p = threadIdx.x + static_cast<int64_t>(j) * blockDim.x;
        if (p < packs) mine[j] = load_pack<N>(dy + p * N);
    }
    for (int k = 0; k < choices; ++k) {
        const int64_t start = inverse[n * choices + k] * packs * N;
        const float w = weights[n * choices + k];
        float dot = 0.0f;
#pragma unroll
        for (int j = 0; j < MOVE_HELD; ++j) {
            const int64_t p = threadIdx.x + static_cast<int64_t>(j) * blockDim.x;
            if (p < packs) dot += weigh<T, N>(dys + start + p * N, ys + start + p * N, mine[j], w);
        }
        for (int64_t p = held + threadIdx.x; p < packs; p += blockDim.x)
            dot += weigh<T, N>(dys + start + p * N, ys + start + p * N, load_pack<N>(dy + p * N), w);
        dot = block_reduce<Sum>(dot, scratch);
        if (threadIdx.x == 0) dweights[n * choices + k] = dot;
    }
}

// ---- launches ---------------------------------------------------------------------------------------------

namespace {

// The threads of a block that share a row: a power of two, so that a warp's rows are whole.
inline int lanes_for(int64_t packs, int most) {
    int lanes = 1;
    while (lanes < packs && lanes < most) lanes *= 2;
    return lanes;
}

template <class T> bool in_packs(int64_t width, const void* a, const void* b) {
    return width % PACK<T> == 0 && aligned(a, 16) && aligned(b, 16);
}

template <class T, int N>
int dispatch(T* xs, const T* x, const int64_t* order, int64_t rows, int64_t choices, int64_t width,
             cudaStream_t stream) {
    const int64_t packs = width / N;
    const int lanes = lanes_for(packs, MOVE_THREADS);
    moe_dispatch<T, N><<<blocks_for(rows, MOVE_THREADS / lanes), MOVE_THREADS, 0, stream>>>(
        xs, x, order, rows, static_cast<uint32_t>(choices), packs, lanes);
    return launched("moe_dispatch");
}

template <class T, int N>
int combine(T* y, const T* ys, const float* weights, const int64_t* inverse, int64_t tokens, int64_t choices,
            int64_t width, cudaStream_t stream) {
    const int64_t packs = width / N;
    const int lanes = lanes_for(packs, MOVE_THREADS);
    moe_combine<T, N><<<blocks_for(tokens, MOVE_THREADS / lanes), MOVE_THREADS, 0, stream>>>(
        y, ys, weights, inverse, tokens, static_cast<int>(choices), packs, lanes);
    return launched("moe_combine");
}

template <class T, int N>
int combine_backward(T* dys, float* dweights, const T* dy, const T* ys, const float* weights,
                     const int64_t* inverse, int64_t tokens, int64_t choices, int64_t width,
                     cudaStream_t stream) {
    const int64_t packs = width / N;
    const int threads = std::max(32, lanes_for(packs, MOVE_THREADS));   // by the width alone, as the bits are
    moe_combine_backward<T, N><<<static_cast<unsigned>(tokens), threads, 0, stream>>>(
        dys, dweights, dy, ys, weights, inverse, static_cast<int>(choices), packs);
    return launched("moe_combine_backward");
}

int check_sizes(int64_t tokens, int64_t choices, int64_t width) {
    NN_TRY(check_int("tokens", tokens));
    NN_REQUIRE(choices >= 1 && choices <= 1024, "choices: %lld is not in 1 ... 1024", (long long)choices);
    NN_TRY(check_int("tokens * choices", tokens * choices));    // a block each, at most
    return check_int("width", width);
}

}  // namespace
}  // namespace nn

using namespace nn;

NN_API int nn_moe_dispatch_forward(void* xs, const void* x, const int64_t* order, int64_t tokens,
                                   int64_t choices, int64_t width, int32_t dtype, nn_stream stream) {
    NN_TRY(check_sizes(tokens, choices, width));
    NN_TRY(check_floating("dtype", dtype));
    if (tokens == 0 || width == 0) return NN_OK;
    NN_TRY(check_array(order, "order", NN_INT64));
    NN_TRY(check_array(xs, "xs", dtype));
    NN_TRY(check_array(x, "x", dtype));
    const int64_t rows = tokens * choices;
    NN_FOR_FLOATING(dtype, T, {
        T* to = static_cast<T*>(xs);
        const T* from = static_cast<const T*>(x);
        return in_packs<T>(width, xs, x)
                   ? dispatch<T, PACK<T>>(to, from, order, rows, choices, width, native(stream))
                   : dispatch<T, 1>(to, from, order, rows, choices, width, native(stream));
    });
    return NN_OK;
}

// y[n] = sum over k of weights[n,k] ys[inverse[n,k]]: both directions; without weights, all are 1.
static int sum_rows(void* y, const char* y_name, const void* ys, const char* ys_name, const float* weights,
                    const int64_t* inverse, int64_t tokens, int64_t choices, int64_t width, int32_t dtype,
                    nn_stream stream) {
    NN_TRY(check_array(inverse, "inverse", NN_INT64));
    NN_TRY(check_array(y, y_name, dtype));
    NN_TRY(check_array(ys, ys_name, dtype));
    NN_FOR_FLOATING(dtype, T, {
        T* to = static_cast<T*>(y);
        const T* from = static_cast<const T*>(ys);
        return in_packs<T>(width, y, ys)
                   ? combine<T, PACK<T>>(to, from, weights, inverse, tokens, choices, width, native(stream))
                   : combine<T, 1>(to, from, weights, inverse, tokens, choices, width, native(stream));
    });
    return NN_OK;
}

NN_API int nn_moe_dispatch_backward(void* dx, const void* dxs, const int64_t* inverse, int64_t tokens,
                                    int64_t choices, int64_t width, int32_t dtype, nn_stream stream) {
    NN_TRY(check_sizes(tokens, choices, width));
    NN_TRY(check_floating("dtype", dtype));
    if (tokens == 0 || width == 0) return NN_OK;
    return sum_rows(dx, "dx", dxs, "dxs", nullptr, inverse, tokens, choices, width, dtype, stream);
}

NN_API int nn_moe_combine_forward(void* y, const void* ys, const float* weights, const int64_t* inverse,
                                  int64_t tokens, int64_t choices, int64_t width, int32_t dtype,
                                  nn_stream stream) {
    NN_TRY(check_sizes(tokens, choices, width));
    NN_TRY(check_floating("dtype", dtype));
    if (tokens == 0 || width == 0) return NN_OK;
    NN_TRY(check_array(weights, "weights", NN_FLOAT32));
    return sum_rows(y, "y", ys, "ys", weights, inverse, tokens, choices, width, dtype, stream);
}

NN_API int nn_moe_combine_backward(void* dys, float* dweights, const void* dy, const void* ys,
                                   const float* weights, const int64_t* inverse, int64_t tokens,
                                   int64_t choices, int64_t width, int32_t dtype, nn_stream stream) {
    NN_TRY(check_sizes(tokens, choices, width));
    NN_TRY(check_floating("dtype", dtype));
    if (tokens == 0) return NN_OK;
    NN_TRY(check_array(inverse, "inverse", NN_INT64));
    NN_TRY(check_array(dweights, "dweights", NN_FLOAT32));
    NN_TRY(check_array(weights, "weights", NN_FLOAT32));
    if (width > 0) {                                             // with no width, dweights are zeros
        NN_TRY(check_array(dys, "dys", dtype));
        NN_TRY(check_array(dy, "dy", dtype));
        NN_TRY(check_array(ys, "ys", dtype));
    }
    NN_FOR_FLOATING(dtype, T, {
        T* to = static_cast<T*>(dys);
        const T *g = static_cast<const T*>(dy), *rows = static_cast<const T*>(ys);
        return in_packs<T>(width, dys, dy) && aligned(ys, 16)
                   ? combine_backward<T, PACK<T>>(to, dweights, g, rows, weights, inverse, tokens, choices,
                                                  width, native(stream))
                   : combine_backward<T, 1>(to, dweights, g, rows, weights, inverse, tokens, choices, width,
                                            native(stream));
    });
    return NN_OK;
}
