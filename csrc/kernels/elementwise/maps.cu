// Activations and their derivatives, sums, products, casts, fills.
//
// One element per thread -> a pack of 16 bytes per thread -> operation chosen at run time, once per pack: one
// kernel per number of operands and type instead of one per operation (used).
#include <cstring>

#include "nn/elementwise.h"
#include "tile.cuh"

namespace nn {

enum Unary { SILU, GELU, GELU_TANH, SIGMOID, RELU, SCALE };
enum Binary { SILU_BACKWARD, GELU_BACKWARD, GELU_TANH_BACKWARD, SIGMOID_BACKWARD, RELU_BACKWARD, ADD, MUL };

constexpr float INVERSE_SQRT_2_PI = 0.39894228f;

__device__ __forceinline__ float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

__device__ __forceinline__ float gelu_slope(float x) {
    return 0.5f * (1.0f + erff(x * SQRT_HALF)) + x * (INVERSE_SQRT_2_PI * expf(-0.5f * x * x));
}

__device__ __forceinline__ float gelu_tanh_slope(float x) {
    float s = gelu_tanh_gate(x), tail = s * (1.0f - s);          // 0 for large x, where x^2 would be inf
    float more = 2.0f * SQRT_2_OVER_PI * x * tail * (1.0f + 0.134145f * x * x);
    return tail == 0.0f ? s : s + more;
}

template <int N, class F> __device__ __forceinline__ void each(float (&v)[N], F f) {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = f(v[j]);
}

template <int N, class F>
__device__ __forceinline__ void each(float (&v)[N], const float (&w)[N], F f) {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = f(v[j], w[j]);
}

template <int N> __device__ __forceinline__ void apply(int op, float (&v)[N], float alpha, float beta) {
    switch (op) {
        case SILU: each(v, [](float x) { return silu(x); }); break;
        case GELU: each(v, [](float x) { return gelu(x); }); break;
        case GELU_TANH: each(v, [](float x) { return gelu_tanh(x); }); break;
        case SIGMOID: each(v, [](float x) { return sigmoid(x); }); break;
        case RELU: each(v, [](float x) { return x <= 0.0f ? 0.0f : x; }); break;
        default: each(v, [=](float x) { return alpha * x + beta; });
    }
}

template <int N> __device__ __forceinline__ void apply(int op, float (&a)[N], const float (&b)[N]) {
    switch (op) {
        case SILU_BACKWARD: each(a, b, [](float dy, float x) { return dy * silu_slope(x); }); break;
        case GELU_BACKWARD: each(a, b, [](float dy, float x) { return dy * gelu_slope(x); }); break;
        case GELU_TANH_BACKWARD: each(a, b, [](float dy, float x) { return dy * gelu_tanh_slope(x); }); break;
        case SIGMOID_BACKWARD: each(a, b, [](float dy, float y) { return dy * (y * (1.0f - y)); }); break;
        case RELU_BACKWARD: each(a, b, [](float dy, float x) { return x <= 0.0f ? 0.0f : dy; }); break;
        case ADD: each(a, b, [](float x, float y) { return x + y; }); break;
        default: each(a, b, [](float x, float y) { return x * y; });
    }
}

template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    map_one(T* y, const T* x, int64_t n, int op, float alpha, float beta, bool vector) {
    for (int64_t tile = int64_t{blockIdx.x} * TILE<T>; tile < n; tile += int64_t{gridDim.x} * TILE<T>) {
        Place<T> place(tile, n, vector);
        float v[PACK<T>];
        unpack(v, fetch(x, place));
        apply(op, v, alpha, beta);
        store(y, v, place);
    }
}

template <class T>
__global__ void __launch_bounds__(TILE_THREADS)
    map_two(T* y, const T* a, const T* b, int64_t n, int op, bool vector) {
    for (int64_t tile = int64_t{blockIdx.x} * TILE<T>; tile < n; tile += int64_t{gridDim.x} * TILE<T>) {
        Place<T> place(tile, n, vector);
        auto first = fetch(a, place), second = fetch(b, place);
        float v[PACK<T>], w[PACK<T>];
        unpack(v, first);
        unpack(w, second);
        apply(op, v, w);
        store(y, v, place);
    }
}

// Four elements per thread: 16 bytes of the wider type, 8 of the narrower.
template <class To, class From>
__global__ void __launch_bounds__(TILE_THREADS) cast(To* y, const From* x, int64_t n, bool vector) {
    const int64_t threads = int64_t{gridDim.x} * TILE_THREADS;
    const int64_t me = int64_t{blockIdx.x} * TILE_THREADS + threadIdx.x;
    int64_t done = vector ? n / 4 * 4 : 0;
    for (int64_t i = 4 * me; i < done; i += 4 * threads) {
        float v[4];
        load_floats(v, x + i);
        store_floats(y + i, v);
    }
    for (int64_t i = done + me; i < n; i += threads) y[i] = from_float<To>(to_float(x[i]));
}

// `word` repeats the value over four bytes; `bytes` is the element's size.
__global__ void __launch_bounds__(TILE_THREADS) fill(void* y, int64_t n, unsigned word, int bytes,
                                                     bool vector) {
    const int64_t threads = int64_t{gridDim.x} * TILE_THREADS;
    const int64_t me = int64_t{blockIdx.x} * TILE_THREADS + threadIdx.x;
    const int64_t packs = vector ? n / (16 / bytes) : 0;
    const Pack<unsigned, 4> pack{word, word, word, word};
    for (int64_t i = me; i < packs; i += threads) store_global(static_cast<unsigned*>(y) + 4 * i, pack);
    for (int64_t i = packs * (16 / bytes) + me; i < n; i += threads) {
        if (bytes == 4) static_cast<unsigned*>(y)[i] = word;
        else static_cast<unsigned short*>(y)[i] = static_cast<unsigned short>(word);
    }
}

static int one(void* y, const void* x, int64_t n, int op, float alpha, float beta, int32_t dtype,
               nn_stream stream) {
    NN_TRY(check_count("n", n));
    NN_TRY(check_floating("dtype", dtype));
    if (n == 0) return NN_OK;
    NN_TRY(check_array(y, "y", dtype));
    NN_TRY(check_array(x, "x", dtype));
    bool vector = aligned(y, 16) && aligned(x, 16);
    NN_FOR_FLOATING(dtype, T, {
        map_one<T><<<blocks_for(n, TILE<T>), TILE_THREADS, 0, native(stream)>>>(
            static_cast<T*>(y), static_cast<const T*>(x), n, op, alpha, beta, vector);
    });
    return launched("map_one");
}

static int two(void* y, const char* y_name, const void* a, const char* a_name, const void* b,
               const char* b_name,
               int64_t n, int op, int32_t dtype, nn_stream stream) {
    NN_TRY(check_count("n", n));
    NN_TRY(check_floating("dtype", dtype));
    if (n == 0) return NN_OK;
    NN_TRY(check_array(y, y_name, dtype));
    NN_TRY(check_array(a, a_name, dtype));
    NN_TRY(check_array(b, b_name, dtype));
    bool vector = aligned(y, 16) && aligned(a, 16) && aligned(b, 16);
    NN_FOR_FLOATING(dtype, T, {
        map_two<T><<<blocks_for(n, TILE<T>), TILE_THREADS, 0, native(stream)>>>(
            static_cast<T*>(y), static_cast<const T*>(a), static_cast<const T*>(b), n, op, vector);
    });
    return launched("map_two");
}

template <class To, class From> static int cast_to(void* y, const void* x, int64_t n, nn_stream stream) {
    bool vector = aligned(y, 4 * sizeof(To)) && aligned(x, 4 * sizeof(From));
    cast<To, From><<<blocks_for(n, 4 * TILE_THREADS), TILE_THREADS, 0, native(stream)>>>(
        static_cast<To*>(y), static_cast<const From*>(x), n, vector);
    return launched("cast");
}

}  // namespace nn

// KEPT: what of the forward its backward reads, x or y.
#define NN_MAP(NAME, OP, KEPT)                                                                              \
    NN_API int nn_##NAME##_forward(void* y, const void* x, int64_t n, int32_t dtype, nn_stream stream) {    \
        return nn::one(y, x, n, nn::OP, 0.0f, 0.0f, dtype, stream);                                         \
    }                                                                                                       \
    NN_API int nn_##NAME##_backward(void* dx, const void* dy, const void* KEPT, int64_t n, int32_t dtype,   \
                                    nn_stream stream) {                                                     \
        return nn::two(dx, "dx", dy, "dy", KEPT, #KEPT, n, nn::OP##_BACKWARD, dtype, stream);               \
    }

NN_MAP(silu, SILU, x)
NN_MAP(gelu, GELU, x)
NN_MAP(gelu_tanh, GELU_TANH, x)
NN_MAP(sigmoid, SIGMOID, y)
NN_MAP(relu, RELU, x)

NN_API int nn_add_forward(void* y, const void* a, const void* b, int64_t n, int32_t dtype, nn_stream stream) {
    return nn::two(y, "y", a, "a", b, "b", n, nn::ADD, dtype, stream);
}

NN_API int nn_mul_forward(void* y, const void* a, const void* b, int64_t n, int32_t dtype, nn_stream stream) {
    return nn::two(y, "y", a, "a", b, "b", n, nn::MUL, dtype, stream);
}

NN_API int nn_scale_forward(void* y, const void* x, int64_t n, float alpha, float beta, int32_t dtype,
                            nn_stream stream) {
    return nn::one(y, x, n, nn::SCALE, alpha, beta, dtype, stream);
}

NN_API int nn_cast_forward(void* y, const void* x, int64_t n, int32_t y_dtype, int32_t x_dtype,
                           nn_stream stream) {
    NN_TRY(nn::check_count("n", n));
    NN_TRY(nn::check_floating("y_dtype", y_dtype));
    NN_TRY(nn::check_floating("x_dtype", x_dtype));
    if (n == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", y_dtype));
    NN_TRY(nn::check_array(x, "x", x_dtype));
    NN_FOR_FLOATING(y_dtype, To,
                    NN_FOR_FLOATING(x_dtype, From, return nn::cast_to<To, From>(y, x, n, stream)));
    return NN_OK;
}

NN_API int nn_fill_forward(void* y, int64_t n, float value, int32_t dtype, nn_stream stream) {
    NN_TRY(nn::check_count("n", n));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (n == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", dtype));
    unsigned word = 0;
    if (dtype == NN_FLOAT32) {
        memcpy(&word, &value, 4);
    } else {
        unsigned short half = dtype == NN_FLOAT16 ? __half_as_ushort(__float2half_rn(value))
                                                  : __bfloat16_as_ushort(__float2bfloat16_rn(value));
        word = half * 0x10001u;
    }
    int bytes = static_cast<int>(nn::dtype_bytes(dtype));
    nn::fill<<<nn::blocks_for(n, nn::TILE_THREADS * 16 / bytes), nn::TILE_THREADS, 0, nn::native(stream)>>>(
        y, n, word, bytes, nn::aligned(y, 16));
    return nn::launched("fill");
}
