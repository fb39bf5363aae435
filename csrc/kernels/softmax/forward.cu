// Softmax and log-softmax, forward.
//
// three passes over global memory, one block per row -> online maximum and sum, two passes -> the row kept in
// registers by 8 ... 32 lanes, or in shared memory by a block: one read, one write (used up to 63 KiB) ->
// rows beyond that: parts of 16,384 columns by a block each, joined in order, then a second read (used)
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "nn/softmax.h"
#include "plan.h"

namespace nn {

constexpr float INFINITE = __builtin_huge_valf();

struct Largest {                         // NaN loses: it reaches the row's sum by itself
    static constexpr float identity = -INFINITE;
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Visible {  // columns 0 ... i + offset of row i of each `period` rows; period 0: all
    int64_t period, offset;
    const int64_t* device_offset;

    __device__ __forceinline__ int64_t operator()(int64_t row, int64_t cols) const {
        if (period == 0) return cols;
        int64_t end = row % period + offset + (device_offset ? *device_offset : 0) + 1;
        return end < 0 ? 0 : end < cols ? end : cols;
    }
};

struct Statistics {                      // of a row, or of a part of it
    float largest, sum;                  // sum of exp(x - largest)
};

// What subtracts from an element, and what scales its exponential.
struct Normal {
    float shift, scale;

    __device__ __forceinline__ Normal(Statistics s, bool log) {
        shift = s.largest, scale = 1.0f / (s.sum == 0.0f ? 1.0f : s.sum);
        if (log) scale = logf(s.sum == 0.0f ? 1.0f : s.sum);
    }
    __device__ __forceinline__ float operator()(float x, bool log) const {
        return log ? (x - shift) - scale : exp_fast(x - shift) * scale;
    }
};

__device__ __forceinline__ float finite_or_zero(float x) { return x == -INFINITE ? 0.0f : x; }

// A pack's first `left` elements, -inf behind them
template <int N, class T>
__device__ __forceinline__ void unpack_visible(float (&v)[N], const Pack<T, N>& pack, int left) {
    unpack(v, pack);
    if (left >= N) return;
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = j < left ? v[j] : -INFINITE;
}

template <int N, class T>
__device__ __forceinline__ void load_visible(float (&v)[N], const T* from, int left) {
    Pack<T, N> pack{};
    if (left > 0) pack = load_pack<N>(from);
    unpack_visible(v, pack, left);
}

// `width` lanes per row, P packs of N per lane
template <class T, int N, int P>
__global__ void __launch_bounds__(ROWS_THREADS, 2)
    softmax_rows(T* y, const T* x, int64_t rows, int cols, int width, Visible visible, bool log) {
    const int lane = threadIdx.x % width, group = threadIdx.x / width, groups = ROWS_THREADS / width;
    const int step = width * N;
    for (int64_t first = int64_t{blockIdx.x} * groups; first < rows; first += int64_t{gridDim.x} * groups) {
        const int64_t row = first + group;
        const int left = row < rows ? static_cast<int>(visible(row, cols)) - lane * N : 0;  // to this lane
        const T* from = x + row * cols + lane * N;
        T* to = y + row * cols + lane * N;
        Pack<T, N> packs[P] = {};
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * step < left) packs[p] = load_pack<N>(from + p * step);
        float v[P][N], largest = -INFINITE, sum = 0.0f;
#pragma unroll
        for (int p = 0; p < P; ++p) {
            unpack_visible(v[p], packs[p], left - p * step);
#pragma unroll
            for (int j = 0; j < N; ++j) largest = fmaxf(largest, v[p][j]);
        }
        largest = finite_or_zero(lanes_reduce<Largest>(largest, width));
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (p * step >= cols) break;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float shifted = v[p][j] - largest, e = exp_fast(shifted);
                v[p][j] = log ? shifted : e;
                sum += e;
            }
        }
        sum = lanes_reduce<Sum>(sum, width);
        const float one = sum == 0.0f ? 1.0f : sum, scale = log ? logf(one) : 1.0f / one;
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (row >= rows || p * step >= cols - lane * N) break;
#pragma unroll
            for (int j = 0; j < N; ++j) v[p][j] = log ? v[p][j] - scale : v[p][j] * scale;
            store_floats(to + p * step, v[p]);
        }
    }
}

// A block per row, the row in shared memory; a thread reads back only what it wrote
template <class T, int N>
__global__ void __launch_bounds__(1024)
    softmax_kept(T* y, const T* x, int64_t rows, int cols, Visible visible, bool log) {
    extern __shared__ uint4 kept_memory[];
    __shared__ float scratch[32];
    T* kept = reinterpret_cast<T*>(kept_memory);
    const int step = blockDim.x * N;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int end = static_cast<int>(visible(row, cols));
        const T* from = x + row * cols;
        float largest = -INFINITE, sum = 0.0f;
#pragma unroll 4
        for (int c = threadIdx.x * N; c < end; c += step) {
            Pack<T, N> pack = load_pack<N>(from + c);
            store_shared(kept + c, pack);
#pragma unroll
            for (int j = 0; j < N; ++j) largest = fmaxf(largest, c + j < end ? to_float(pack[j]) : -INFINITE);
        }
        largest = finite_or_zero(block_reduce<Largest>(largest, scratch));
        for (int c = threadIdx.x * N; c < end; c += step) {
            float v[N];
            load_visible(v, kept + c, end - c);
#pragma unroll
            for (int j = 0; j < N; ++j) sum += exp_fast(v[j] - largest);
        }
        const Normal normal({largest, block_reduce<Sum>(sum, scratch)}, log);
        for (int c = threadIdx.x * N; c < cols; c += step) {
            float v[N];
            load_visible(v, kept + c, end - c);
#pragma unroll
            for (int j = 0; j < N; ++j) v[j] = normal(v[j], log);
            store_floats(y + row * cols + c, v);
        }
    }
}

// All threads get the statistics of the whole from those of each thread's part.
__device__ __forceinline__ Statistics join(Statistics part, float* scratch) {
    float largest = finite_or_zero(block_reduce<Largest>(part.largest, scratch));
    return {largest, block_reduce<Sum>(part.sum * exp_fast(part.largest - largest), scratch)};
}

__device__ __forceinline__ void raise(Statistics& s, float largest) {
    if (!(largest > s.largest)) return;
    s.sum *= exp_fast(s.largest - largest);
    s.largest = largest;
}

template <class T, int N>
__global__ void __launch_bounds__(CHUNK_THREADS)
    softmax_chunks(Statistics* parts, const T* x, int64_t rows, int64_t cols, int64_t chunks,
                   Visible visible) {
    __shared__ float scratch[32];
    for (int64_t part = blockIdx.x; part < rows * chunks; part += gridDim.x) {
        const int64_t row = part / chunks, begin = part % chunks * CHUNK, seen = visible(row, cols);
        const int64_t end = begin + CHUNK < seen ? begin + CHUNK : seen;
        Statistics mine{-INFINITE, 0.0f};
#pragma unroll 4
        for (int64_t c = begin + threadIdx.x * N; c < end; c += CHUNK_THREADS * N) {
            float v[N], largest = -INFINITE;
            load_visible(v, x + row * cols + c, static_cast<int>(end - c));
#pragma unroll
            for (int j = 0; j < N; ++j) largest = fmaxf(largest, v[j]);
            raise(mine, largest);
            const float shift = finite_or_zero(mine.largest);
#pragma unroll
            for (int j = 0; j < N; ++j) mine.sum += exp_fast(v[j] - shift);
        }
        Statistics all = join(mine, scratch);
        if (threadIdx.x == 0) parts[part] = all;
    }
}

template <class T, int N>
__global__ void __launch_bounds__(CHUNK_THREADS)
    softmax_finish(T* y, const T* x, const Statistics* parts, int64_t rows, int64_t cols, int64_t chunks,
                   Visible visible, bool log) {
    __shared__ float scratch[32];
    for (int64_t part = blockIdx.x; part < rows * chunks; part += gridDim.x) {
        const int64_t row = part / chunks, begin = part % chunks * CHUNK, seen = visible(row, cols);
        Statistics mine{-INFINITE, 0.0f};
        for (int64_t i = threadIdx.x; i < chunks; i += CHUNK_THREADS) {
            Statistics other = parts[row * chunks + i];
            if (other.sum == 0.0f) continue;                     // saw nothing
            raise(mine, other.largest);
            mine.sum += other.sum * exp_fast(other.largest - finite_or_zero(mine.largest));
        }
        const Normal normal(join(mine, scratch), log);
        const int64_t end = begin + CHUNK < cols ? begin + CHUNK : cols;
#pragma unroll 4
        for (int64_t c = begin + threadIdx.x * N; c < end; c += CHUNK_THREADS * N) {
            float v[N];
            load_visible(v, x + row * cols + c, static_cast<int>(seen - c < N ? seen - c : N));
#pragma unroll
            for (int j = 0; j < N; ++j) v[j] = normal(v[j], log);
            store_floats(y + row * cols + c, v);
        }
    }
}

template <class T, int N>
static int launch_softmax(T* y, const T* x, int64_t rows, int64_t cols, const SoftmaxPlan& plan,
                          Visible visible,
                          bool log, void* workspace, nn_stream stream) {
    const int width = static_cast<int>(cols);
    if (plan.path == Path::FEW || plan.path == Path::MANY) {
        auto kernel = plan.path == Path::FEW ? softmax_rows<T, PACK<T>, 2> : softmax_rows<T, N, 8>;
        kernel<<<blocks_for(rows, ROWS_THREADS / plan.width), ROWS_THREADS, 0, native(stream)>>>(
            y, x, rows, width, plan.width, visible, log);
        return launched("softmax_rows");
    }
    if (plan.path == Path::KEPT) {
        const int bytes = static_cast<int>(ceil_div(cols * sizeof(T), 16) * 16);
        auto kernel = softmax_kept<T, N>;
        NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
        kernel<<<blocks_for(rows, 1), plan.threads, bytes, native(stream)>>>(y, x, rows, width, visible, log);
        return launched("softmax_kept");
    }
    auto* parts = static_cast<Statistics*>(workspace);
    const unsigned blocks = blocks_for(rows * plan.chunks, 1);
    softmax_chunks<T, N><<<blocks, CHUNK_THREADS, 0, native(stream)>>>(parts, x, rows, cols, plan.chunks,
                                                                       visible);
    NN_TRY(launched("softmax_chunks"));
    softmax_finish<T, N><<<blocks, CHUNK_THREADS, 0, native(stream)>>>(y, x, parts, rows, cols, plan.chunks,
                                                                       visible,
                                                                       log);
    return launched("softmax_finish");
}

static int softmax(void* y, const void* x, int64_t rows, int64_t cols, Visible visible, bool log,
                   int32_t dtype,
                   void* workspace, int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(check_matrix(rows, cols));
    NN_TRY(check_floating("dtype", dtype));
    if (rows == 0 || cols == 0) return NN_OK;
    NN_TRY(check_array(y, "y", dtype));
    NN_TRY(check_array(x, "x", dtype));
    const auto plan = softmax_plan(cols, dtype_bytes(dtype), aligned(y, 16) && aligned(x, 16), 1);
    NN_TRY(check_workspace(workspace, workspace_bytes, rows * plan.chunks * int64_t{sizeof(Statistics)}));
    NN_FOR_FLOATING(dtype, T, {
        auto launch = plan.vector ? launch_softmax<T, PACK<T>> : launch_softmax<T, 1>;
        return launch(static_cast<T*>(y), static_cast<const T*>(x), rows, cols, plan, visible, log, workspace,
                      stream);
    });
    return NN_OK;
}

}  // namespace nn

NN_API int64_t nn_softmax_workspace_size(int64_t rows, int64_t cols, int32_t dtype) {
    const auto plan = nn::softmax_plan(cols, nn::dtype_bytes(dtype), false, 2);
    return rows > 0 ? rows * plan.chunks * int64_t{sizeof(nn::Statistics)} : 0;
}

NN_API int nn_softmax_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                              void* workspace, int64_t workspace_bytes, nn_stream stream) {
    return nn::softmax(y, x, rows, cols, nn::Visible{}, false, dtype, workspace, workspace_bytes, stream);
}

NN_API int nn_softmax_causal_forward(void* y, const void* x, int64_t rows, int64_t cols, int64_t period,
                                     int64_t offset, const int64_t* device_offset, int32_t dtype,
                                     void* workspace, int64_t workspace_bytes, nn_stream stream) {
    NN_REQUIRE(period > 0, "period: %lld is not positive", (long long)period);
    NN_TRY(nn::check_count("offset", offset < 0 ? -offset : offset));
    NN_TRY(nn::check_optional(device_offset, "device_offset", NN_INT64));
    const nn::Visible visible{period, offset, device_offset};
    return nn::softmax(y, x, rows, cols, visible, false, dtype, workspace, workspace_bytes, stream);
}

NN_API int nn_log_softmax_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                                  void* workspace, int64_t workspace_bytes, nn_stream stream) {
    return nn::softmax(y, x, rows, cols, nn::Visible{}, true, dtype, workspace, workspace_bytes, stream);
}
