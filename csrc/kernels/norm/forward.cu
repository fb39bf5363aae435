// RMSNorm, with or without a residual sum before it, and LayerNorm: forward.
//
// one thread per row -> one block per row, two reads -> the row kept in registers by 8 ... 512 threads, the
// weight in shared memory for all rows of a block that stays (used up to 16,384 floats or 32,768 halves) ->
// wider rows: read again (used)
#include "nn/norm.h"
#include "plan.cuh"

namespace nn {

template <class T> struct NormForward {
    T *y, *sum;                          // sum, mean, residual, bias: null where there is none
    float *mean, *rstd;
    const T *x, *residual, *weight, *bias;
    int64_t rows, cols;
    float eps;
    bool keep;                           // the weight (and bias) fit shared memory
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> sum_of(const Pack<T, N>& a, const Pack<T, N>& b) {
    float v[N], w[N];
    unpack(v, a);
    unpack(w, b);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] += w[j];
    return packed<T>(v);
}

// x, or x + residual, which is also stored
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_input(const NormForward<T>& a, int64_t at) {
    Pack<T, N> pack = load_pack<N>(a.x + at);
    if (a.residual) pack = sum_of(pack, load_pack<N>(a.residual + at)), store_global(a.sum + at, pack);
    return pack;
}

// The sum of the elements (less the mean, squared)
template <int N, class T> __device__ __forceinline__ float sum_of_pack(const Pack<T, N>& pack) {
    float v[N], sum = 0.0f;
    unpack(v, pack);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += v[j];
    return sum;
}

template <int N, class T>
__device__ __forceinline__ float squares_of_pack(const Pack<T, N>& pack, float mean) {
    float v[N], sum = 0.0f;
    unpack(v, pack);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] -= mean, sum += v[j] * v[j];
    return sum;
}

template <class T> __device__ __forceinline__ T* moved(T* array, int64_t by) {
    return array ? array + by : array;
}

template <int N, class T>
__device__ __forceinline__ void store_output(T* y, const Pack<T, N>& x, float mean, float rstd,
                                             const T* weight,
                                             const T* bias) {
    float v[N], w[N];
    unpack(v, x);
    load_floats(w, weight);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = (v[j] - mean) * rstd;
    if (bias == nullptr) {
        unpack(v, packed<T>(v));
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] *= w[j];
    } else {
        float b[N];
        load_floats(b, bias);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = v[j] * w[j] + b[j];
    }
    store_floats(y, v);
}

// P packs of N elements per thread
template <class T, int N, int P>
__global__ void __launch_bounds__(MAX_WIDTH, 1) norm_forward_rows(NormForward<T> a, int width) {
    extern __shared__ uint4 norm_memory[];
    __shared__ float scratch[32];
    const int cols = static_cast<int>(a.cols), lane = threadIdx.x % width, step = width * N;
    const int groups = blockDim.x / width;
    const T *weight = a.weight, *bias = a.bias;
    if (a.keep) {
        T* kept = reinterpret_cast<T*>(norm_memory);
        keep_vector<N>(kept, a.weight, cols);
        weight = kept;
        if (bias) {
            kept += (cols + PACK<T> - 1) / PACK<T> * PACK<T>;
            keep_vector<N>(kept, a.bias, cols);
            bias = kept;
        }
        __syncthreads();
    }
    weight += lane * N, bias = moved(bias, lane * N);
    for (int64_t first = int64_t{blockIdx.x} * groups; first < a.rows; first += int64_t{gridDim.x} * groups) {
        const int64_t row = first + threadIdx.x / width, begin = row * cols + lane * N;
        // what is left to this thread: columns 0, step, ...
        const int end = row < a.rows ? cols - lane * N : 0;
        Pack<T, N> packs[P];                                     // all loads before the first use
        float sum = 0.0f, mean = 0.0f;
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * step < end) packs[p] = load_pack<N>(a.x + begin + p * step);
        if (a.residual) {
#pragma unroll
            for (int p = 0; p < P; ++p)
                if (p * step < end) packs[p] = sum_of(packs[p], load_pack<N>(a.residual + begin + p * step));
#pragma unroll
            for (int p = 0; p < P; ++p)
                if (p * step < end) store_global(a.sum + begin + p * step, packs[p]);
        }
        if (a.mean) {
#pragma unroll
            for (int p = 0; p < P; ++p)
                if (p * step < end) sum += sum_of_pack(packs[p]);
            mean = row_sum(sum, width, scratch) / a.cols;
            sum = 0.0f;
        }
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * step < end) sum += squares_of_pack(packs[p], mean);
        const float rstd = rsqrtf(row_sum(sum, width, scratch) / a.cols + a.eps);
        if (lane == 0 && row < a.rows) {
            a.rstd[row] = rstd;
            if (a.mean) a.mean[row] = mean;
        }
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * step < end)
                store_output(a.y + begin + p * step, packs[p], mean, rstd, weight + p * step,
                             moved(bias, p * step));
    }
}

// A block per row that does not fit registers
template <class T, int N>
__global__ void __launch_bounds__(MAX_WIDTH, 1) norm_forward_reread(NormForward<T> a) {
    __shared__ float scratch[32];
    const int64_t step = blockDim.x * N, start = threadIdx.x * N;
    const float cols = a.cols ? a.cols : 1;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const int64_t begin = row * a.cols;
        const T* x = (a.residual ? a.sum : a.x) + begin;
        float sum = 0.0f, squares = 0.0f, mean = 0.0f;
        for (int64_t c = start; c < a.cols; c += step) {
            Pack<T, N> pack = load_input<N>(a, begin + c);
            sum += sum_of_pack(pack), squares += squares_of_pack(pack, 0.0f);
        }
        if (a.mean) {                                            // E[x^2] - E[x]^2 would cancel
            mean = row_sum(sum, blockDim.x, scratch) / cols;
            squares = 0.0f;
            for (int64_t c = start; c < a.cols; c += step)
                squares += squares_of_pack(load_pack<N>(x + c), mean);
        }
        const float rstd = rsqrtf(row_sum(squares, blockDim.x, scratch) / cols + a.eps);
        if (threadIdx.x == 0) {
            a.rstd[row] = rstd;
            if (a.mean) a.mean[row] = mean;
        }
        for (int64_t c = start; c < a.cols; c += step)
            store_output(a.y + begin + c, load_pack<N>(x + c), mean, rstd, a.weight + c, moved(a.bias, c));
    }
}

template <class T> static int launch_norm(NormForward<T> a, const NormPlan& plan, nn_stream stream) {
    Device device;
    NN_TRY(current_device(&device));
    const int64_t resident = device.multiprocessors * (plan.few ? 2048 : 1024) / plan.threads;
    const int64_t needed = ceil_div(a.rows, plan.groups);
    const auto blocks = static_cast<unsigned>(needed < resident ? needed : resident);
    if (plan.reread || a.cols == 0) {
        auto kernel = plan.vector ? norm_forward_reread<T, PACK<T>> : norm_forward_reread<T, 1>;
        kernel<<<blocks, plan.threads, 0, native(stream)>>>(a);
        return launched("norm_forward_reread");
    }
    int64_t bytes = ceil_div(a.cols * sizeof(T), 16) * 16 * (a.bias ? 2 : 1);
    a.keep = bytes <= 48 * 1024 - 256;
    if (!a.keep) bytes = 0;
    auto kernel = plan.few ? norm_forward_rows<T, PACK<T>, 2>
                : plan.vector ? norm_forward_rows<T, PACK<T>, 8> : norm_forward_rows<T, 1, 8>;
    kernel<<<blocks, plan.threads, static_cast<size_t>(bytes), native(stream)>>>(a, plan.width);
    return launched("norm_forward_rows");
}

struct Named {
    const void* pointer;
    const char* name;
};

// `arrays` of x's type, `statistics` of floats
template <int A, int S>
static int check_norm(const Named (&arrays)[A], const Named (&statistics)[S], int64_t rows, int64_t cols,
                      float eps,
                      int32_t dtype, bool* all_aligned) {
    NN_TRY(check_matrix(rows, cols));
    NN_REQUIRE(eps >= 0.0f, "eps: %g is negative or no number", eps);
    NN_TRY(check_floating("dtype", dtype));
    *all_aligned = true;
    for (const Named& array : arrays) {
        if (rows && cols) NN_TRY(check_array(array.pointer, array.name, dtype));
        *all_aligned = *all_aligned && aligned(array.pointer, 16);
    }
    for (const Named& array : statistics)
        if (rows) NN_TRY(check_array(array.pointer, array.name, NN_FLOAT32));
    return NN_OK;
}

template <class T>
static NormForward<T> typed(void* y, void* sum, float* mean, float* rstd, const void* x, const void* residual,
                            const void* weight, const void* bias, int64_t rows, int64_t cols, float eps) {
    return {static_cast<T*>(y), static_cast<T*>(sum), mean, rstd, static_cast<const T*>(x),
            static_cast<const T*>(residual), static_cast<const T*>(weight), static_cast<const T*>(bias),
            rows, cols, eps, false};
}

static NormPlan forward_plan(int64_t cols, int32_t dtype, bool all_aligned) {
    return norm_plan(cols, dtype_bytes(dtype), all_aligned, 8, MAX_WIDTH);
}

}  // namespace nn

NN_API int nn_rms_norm_forward(void* y, float* rstd, const void* x, const void* weight, int64_t rows,
                               int64_t cols, float eps, int32_t dtype, nn_stream stream) {
    bool all_aligned;
    NN_TRY(nn::check_norm({{y, "y"}, {x, "x"}, {weight, "weight"}}, {{rstd, "rstd"}}, rows, cols, eps, dtype,
                          &all_aligned));
    if (rows == 0) return NN_OK;
    NN_FOR_FLOATING(dtype, T, {
        auto a = nn::typed<T>(y, nullptr, nullptr, rstd, x, nullptr, weight, nullptr, rows, cols, eps);
        return nn::launch_norm(a, nn::forward_plan(cols, dtype, all_aligned), stream);
    });
    return NN_OK;
}

NN_API int nn_rms_norm_residual_forward(void* y, void* sum, float* rstd, const void* x, const void* residual,
                                        const void* weight, int64_t rows, int64_t cols, float eps,
                                        int32_t dtype, nn_stream stream) {
    bool all_aligned;
    NN_TRY(nn::check_norm({{y, "y"}, {sum, "sum"}, {x, "x"}, {residual, "residual"}, {weight, "weight"}},
                          {{rstd, "rstd"}}, rows, cols, eps, dtype, &all_aligned));
    NN_REQUIRE(rows == 0 || cols == 0 || y != sum, "sum: is y, but both are results");
    if (rows == 0) return NN_OK;
    NN_FOR_FLOATING(dtype, T, {
        auto a = nn::typed<T>(y, sum, nullptr, rstd, x, residual, weight, nullptr, rows, cols, eps);
        return nn::launch_norm(a, nn::forward_plan(cols, dtype, all_aligned), stream);
    });
    return NN_OK;
}

NN_API int nn_layer_norm_forward(void* y, float* mean, float* rstd, const void* x, const void* weight,
                                 const void* bias, int64_t rows, int64_t cols, float eps, int32_t dtype,
                                 nn_stream stream) {
    bool all_aligned;
    NN_TRY(nn::check_norm({{y, "y"}, {x, "x"}, {weight, "weight"}, {bias, "bias"}},
                          {{mean, "mean"}, {rstd, "rstd"}},
                          rows, cols, eps, dtype, &all_aligned));
    if (rows == 0) return NN_OK;
    NN_FOR_FLOATING(dtype, T, {
        auto a = nn::typed<T>(y, nullptr, mean, rstd, x, nullptr, weight, bias, rows, cols, eps);
        return nn::launch_norm(a, nn::forward_plan(cols, dtype, all_aligned), stream);
    });
    return NN_OK;
}
