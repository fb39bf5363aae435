// Softmax and log-softmax, backward: a row sum (of dy y, or of dy), then one multiplication per element.
//
// one block per row, two reads -> both rows kept in registers by 8 ... 32 lanes, or in shared memory by a
// block: one read (used up to 63 KiB) -> beyond: parts of 16,384 columns, joined in order, then a second read
// (used)
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "nn/softmax.h"
#include "plan.h"

namespace nn {

template <int N, class T>
__device__ __forceinline__ float row_sum(const Pack<T, N>& dy, const Pack<T, N>& y, bool log) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += to_float(dy[j]) * (log ? 1.0f : to_float(y[j]));
    return sum;
}

template <int N, class T>
__device__ __forceinline__ void store_gradient(T* dx, const Pack<T, N>& dy, const Pack<T, N>& y, float sum,
                                               bool log) {
    float v[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float g = to_float(dy[j]), p = to_float(y[j]);
        v[j] = log ? g - exp_fast(p) * sum : p * (g - sum);
    }
    store_floats(dx, v);
}

template <class T, int N, int P>
__global__ void __launch_bounds__(ROWS_THREADS, 2)
    softmax_backward_rows(T* dx, const T* dy, const T* y, int64_t rows, int cols, int width, bool log) {
    const int lane = threadIdx.x % width, group = threadIdx.x / width, groups = ROWS_THREADS / width;
    const int step = width * N;
    for (int64_t first = int64_t{blockIdx.x} * groups; first < rows; first += int64_t{gridDim.x} * groups) {
        const int64_t row = first + group, begin = row * cols + lane * N;
        const int end = row < rows ? cols - lane * N : 0;  // what is left to this lane: columns 0, step, ...
        Pack<T, N> g[P], p[P];
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < P; ++i) {
            if (i * step >= end) break;
            g[i] = load_pack<N>(dy + begin + i * step), p[i] = load_pack<N>(y + begin + i * step);
        }
#pragma unroll
        for (int i = 0; i < P; ++i) {
            if (i * step >= end) break;
            sum += row_sum<N>(g[i], p[i], log);
        }
        sum = lanes_reduce<Sum>(sum, width);
#pragma unroll
        for (int i = 0; i < P; ++i) {
            if (i * step >= end) break;
            store_gradient<N>(dx + begin + i * step, g[i], p[i], sum, log);
        }
    }
}

template <class T, int N>
__global__ void __launch_bounds__(1024)
    softmax_backward_kept(T* dx, const T* dy, const T* y, int64_t rows, int cols, bool log) {
    extern __shared__ uint4 kept_memory[];
    __shared__ float scratch[32];
    T* kept_dy = reinterpret_cast<T*>(kept_memory);
    T* kept_y = kept_dy + (cols + PACK<T> - 1) / PACK<T> * PACK<T>;
    const int step = blockDim.x * N;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int64_t begin = row * cols;
        float sum = 0.0f;
#pragma unroll 2
        for (int c = threadIdx.x * N; c < cols; c += step) {
            Pack<T, N> g = load_pack<N>(dy + begin + c), p = load_pack<N>(y + begin + c);
            store_shared(kept_dy + c, g), store_shared(kept_y + c, p);
            sum += row_sum<N>(g, p, log);
        }
        sum = block_reduce<Sum>(sum, scratch);
        for (int c = threadIdx.x * N; c < cols; c += step)
            store_gradient<N>(dx + begin + c, load_pack<N>(kept_dy + c), load_pack<N>(kept_y + c), sum, log);
    }
}

template <class T, int N>
__global__ void __launch_bounds__(CHUNK_THREADS)
    softmax_backward_chunks(float* parts, const T* dy, const T* y, int64_t rows, int64_t cols, int64_t chunks,
                            bool log) {
    __shared__ float scratch[32];
    for (int64_t part = blockIdx.x; part < rows * chunks; part += gridDim.x) {
        const int64_t row = part / chunks, begin = part % chunks * CHUNK;
        const int64_t end = begin + CHUNK < cols ? begin + CHUNK : cols;
        float sum = 0.0f;
#pragma unroll 2
        for (int64_t c = begin + threadIdx.x * N; c < end; c += CHUNK_THREADS * N)
            sum += row_sum<N>(load_pack<N>(dy + row * cols + c), load_pack<N>(y + row * cols + c), log);
        sum = block_reduce<Sum>(sum, scratch);
        if (threadIdx.x == 0) parts[part] = sum;
    }
}

template <class T, int N>
__global__ void __launch_bounds__(CHUNK_THREADS)
    softmax_backward_finish(T* dx, const T* dy, const T* y, const float* parts, int64_t rows, int64_t cols,
                            int64_t chunks, bool log) {
    __shared__ float scratch[32];
    for (int64_t part = blockIdx.x; part < rows * chunks; part += gridDim.x) {
        const int64_t row = part / chunks, begin = part % chunks * CHUNK;
        const int64_t end = begin + CHUNK < cols ? begin + CHUNK : cols;
        float sum = 0.0f;
        for (int64_t i = threadIdx.x; i < chunks; i += CHUNK_THREADS) sum += parts[row * chunks + i];
        sum = block_reduce<Sum>(sum, scratch);
#pragma unroll 2
        for (int64_t c = begin + threadIdx.x * N; c < end; c += CHUNK_THREADS * N) {
            const int64_t at = row * cols + c;
            store_gradient<N>(dx + at, load_pack<N>(dy + at), load_pack<N>(y + at), sum, log);
        }
    }
}

template <class T, int N>
static int launch_softmax_backward(T* dx, const T* dy, const T* y, int64_t rows, int64_t cols,
                                   const SoftmaxPlan& plan, bool log, void* workspace, nn_stream stream) {
    const int width = static_cast<int>(cols);
    if (plan.path == Path::FEW || plan.path == Path::MANY) {
        auto kernel = plan.path == Path::FEW ? softmax_backward_rows<T, PACK<T>, 2>
                                             : softmax_backward_rows<T, N, 8>;
        kernel<<<blocks_for(rows, ROWS_THREADS / plan.width), ROWS_THREADS, 0, native(stream)>>>(
            dx, dy, y, rows, width, plan.width, log);
        return launched("softmax_backward_rows");
    }
    if (plan.path == Path::KEPT) {
        const int bytes = static_cast<int>(2 * ceil_div(cols * sizeof(T), 16) * 16);
        auto kernel = softmax_backward_kept<T, N>;
        NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
        kernel<<<blocks_for(rows, 1), plan.threads, bytes, native(stream)>>>(dx, dy, y, rows, width, log);
        return launched("softmax_backward_kept");
    }
    auto* parts = static_cast<float*>(workspace);
    const unsigned blocks = blocks_for(rows * plan.chunks, 1);
    softmax_backward_chunks<T, N><<<blocks, CHUNK_THREADS, 0, native(stream)>>>(parts, dy, y, rows, cols,
                                                                                plan.chunks, log);
    NN_TRY(launched("softmax_backward_chunks"));
    softmax_backward_finish<T, N><<<blocks, CHUNK_THREADS, 0, native(stream)>>>(dx, dy, y, parts, rows, cols,
                                                                                plan.chunks, log);
    return launched("softmax_backward_finish");
}

static int softmax_backward(void* dx, const void* dy, const void* y, int64_t rows, int64_t cols, bool log,
                            int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(check_matrix(rows, cols));
    NN_TRY(check_floating("dtype", dtype));
    if (rows == 0 || cols == 0) return NN_OK;
    NN_TRY(check_array(dx, "dx", dtype));
    NN_TRY(check_array(dy, "dy", dtype));
    NN_TRY(check_array(y, "y", dtype));
    const bool all_aligned = aligned(dx, 16) && aligned(dy, 16) && aligned(y, 16);
    const auto plan = softmax_plan(cols, dtype_bytes(dtype), all_aligned, 2);
    NN_TRY(check_workspace(workspace, workspace_bytes, rows * plan.chunks * int64_t{sizeof(float)}));
    NN_FOR_FLOATING(dtype, T, {
        auto launch = plan.vector ? launch_softmax_backward<T, PACK<T>> : launch_softmax_backward<T, 1>;
        return launch(static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const T*>(y), rows, cols,
                      plan,
                      log, workspace, stream);
    });
    return NN_OK;
}

}  // namespace nn

NN_API int nn_softmax_backward(void* dx, const void* dy, const void* y, int64_t rows, int64_t cols,
                               int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    return nn::softmax_backward(dx, dy, y, rows, cols, false, dtype, workspace, workspace_bytes, stream);
}

NN_API int nn_log_softmax_backward(void* dx, const void* dy, const void* y, int64_t rows, int64_t cols,
                                   int32_t dtype, void* workspace, int64_t workspace_bytes,
                                       nn_stream stream) {
    return nn::softmax_backward(dx, dy, y, rows, cols, true, dtype, workspace, workspace_bytes, stream);
}
