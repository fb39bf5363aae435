// RMSNorm and LayerNorm: backward.
//
// one block per row, weight gradients by atomics -> two kernels, the second by columns over all rows (reads
// dy and x twice) -> blocks that stay, each with its own partial sums of the weight gradients in registers,
// written once; a second kernel adds the partial sums in order -> as many blocks as the partial sums of all
// stay below a twentieth of the matrices; a single block writes the gradients themselves (used) -> rows wider
// than the registers: read twice, partial sums in the workspace (used)
#include "nn/norm.h"
#include "partial.cuh"
#include "plan.cuh"

#include <algorithm>

namespace nn {

constexpr int64_t MAX_PARTS = 512;       // blocks, and so partial sums of a weight gradient
constexpr int64_t SHARE = 1 << 20;       // bytes of the matrices: some 20 us of a multiprocessor
constexpr int BACKWARD_PACKS = 4;        // of 16 bytes per thread: with the sums, below 128 registers

// LayerNorm's second sum in half precision leaves registers for fewer threads.
template <class T, bool CENTRED>
constexpr int BACKWARD_WIDTH = CENTRED && sizeof(T) == 2 ? NORM_THREADS : MAX_WIDTH;

template <class T> struct NormBackward {
    T* dx;
    float *parts, *bias_parts;           // RMSNorm [blocks, cols]; LayerNorm [blocks, 2, cols]: weight, bias
    const T *dy, *x, *weight, *dresidual;
    const float *mean, *rstd;            // mean null: RMSNorm
    int64_t rows, cols;
    bool keep;                           // the weight fits shared memory
};

struct RowSums {
    float plain, normed;                 // of a, and of a n, with a = dy weight, n = (x - mean) rstd
};

template <int N, class T>
__device__ __forceinline__ void normed_pack(float (&n)[N], const Pack<T, N>& x, float mean, float rstd) {
    unpack(n, x);
#pragma unroll
    for (int j = 0; j < N; ++j) n[j] = (n[j] - mean) * rstd;
}

template <int N, class T>
__device__ __forceinline__ void add_row_sums(RowSums& sums, const Pack<T, N>& dy, const float (&n)[N],
                                             const T* weight) {
    float g[N], w[N];
    unpack(g, dy);
    load_floats(w, weight);
#pragma unroll
    for (int j = 0; j < N; ++j) w[j] *= g[j], sums.plain += w[j], sums.normed += w[j] * n[j];
}

// dx from the means over the row
template <int N, class T>
__device__ __forceinline__ void store_dx(T* dx, const Pack<T, N>& dy, const float (&n)[N], const T* weight,
                                         float rstd,
                                         RowSums means, const T* dresidual) {
    float g[N], w[N];
    unpack(g, dy);
    load_floats(w, weight);
#pragma unroll
    for (int j = 0; j < N; ++j) g[j] = rstd * (g[j] * w[j] - means.plain - n[j] * means.normed);
    if (dresidual) {
        load_floats(w, dresidual);
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] += w[j];
    }
    store_floats(dx, g);
}

// A float of the row for all its threads: read by one lane of each warp.
__device__ __forceinline__ float row_value(const float* value, bool active, int width) {
    const int lanes = width < 32 ? width : 32;
    return __shfl_sync(ALL_LANES, active && threadIdx.x % lanes == 0 ? *value : 0.0f, 0, lanes);
}

// P packs of N elements per thread
template <class T, int N, int P, bool CENTRED>
__global__ void __launch_bounds__(BACKWARD_WIDTH<T, CENTRED>, 1)
    norm_backward_rows(NormBackward<T> a, int width) {
    extern __shared__ uint4 norm_memory[];
    __shared__ float scratch[32];
    const int cols = static_cast<int>(a.cols), lane = threadIdx.x % width, step = width * N;
    const int groups = blockDim.x / width;
    const T* weight = a.weight;
    if (a.keep) {
        T* kept = reinterpret_cast<T*>(norm_memory);
        keep_vector<N>(kept, a.weight, cols);
        weight = kept;
        __syncthreads();
    }
    weight += lane * N;
    float dweight[P][N] = {}, dbias[CENTRED ? P : 1][N] = {};
    for (int64_t first = int64_t{blockIdx.x} * groups; first < a.rows; first += int64_t{gridDim.x} * groups) {
        const int64_t row = first + threadIdx.x / width, begin = row * cols + lane * N;
        // what is left to this thread: columns 0, step, ...
        const int end = row < a.rows ? cols - lane * N : 0;
        Pack<T, N> dy[P], x[P];
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (p * step >= end) break;
            dy[p] = load_pack<N>(a.dy + begin + p * step), x[p] = load_pack<N>(a.x + begin + p * step);
        }
        const float rstd = row_value(a.rstd + row, row < a.rows, width);
        const float mean = CENTRED ? row_value(a.mean + row, row < a.rows, width) : 0.0f;
        RowSums sums{};
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (p * step >= end) break;
            float n[N], g[N];
            normed_pack(n, x[p], mean, rstd);
            add_row_sums(sums, dy[p], n, weight + p * step);
            unpack(g, dy[p]);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                dweight[p][j] += g[j] * n[j];
                if (CENTRED) dbias[p][j] += g[j];
            }
        }
        sums.normed = row_sum(sums.normed, width, scratch) / a.cols;
        sums.plain = CENTRED ? row_sum(sums.plain, width, scratch) / a.cols : 0.0f;
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (p * step >= end) break;
            float n[N];
            normed_pack(n, x[p], mean, rstd);
            const int64_t at = begin + p * step;
            store_dx(a.dx + at, dy[p], n, weight + p * step, rstd, sums,
                     a.dresidual ? a.dresidual + at : nullptr);
        }
    }
    float* memory = reinterpret_cast<float*>(norm_memory);
    const int64_t part = int64_t{blockIdx.x} * cols * (CENTRED ? 2 : 1);
    store_partial(a.parts + part, dweight, cols, width, memory);
    if (CENTRED) store_partial(a.bias_parts + part, dbias, cols, width, memory);
}

// A block per row that does not fit registers; its partial sums are in the workspace
template <class T, int N>
__global__ void __launch_bounds__(MAX_WIDTH, 1) norm_backward_reread(NormBackward<T> a) {
    __shared__ float scratch[32];
    const int64_t step = blockDim.x * N, start = threadIdx.x * N;
    const int64_t part = blockIdx.x * a.cols * (a.mean ? 2 : 1);
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const int64_t begin = row * a.cols;
        const float rstd = a.rstd[row], mean = a.mean ? a.mean[row] : 0.0f;
        const bool first = row == blockIdx.x;
        RowSums sums{};
        for (int64_t c = start; c < a.cols; c += step) {
            Pack<T, N> dy = load_pack<N>(a.dy + begin + c), x = load_pack<N>(a.x + begin + c);
            float n[N], g[N];
            normed_pack(n, x, mean, rstd);
            add_row_sums(sums, dy, n, a.weight + c);
            unpack(g, dy);
            if (a.mean) add_to_part(a.bias_parts + part + c, g, first);
#pragma unroll
            for (int j = 0; j < N; ++j) g[j] *= n[j];
            add_to_part(a.parts + part + c, g, first);
        }
        sums.normed = row_sum(sums.normed, blockDim.x, scratch) / a.cols;
        sums.plain = a.mean ? row_sum(sums.plain, blockDim.x, scratch) / a.cols : 0.0f;
        for (int64_t c = start; c < a.cols; c += step) {
            Pack<T, N> dy = load_pack<N>(a.dy + begin + c), x = load_pack<N>(a.x + begin + c);
            float n[N];
            normed_pack(n, x, mean, rstd);
            store_dx(a.dx + begin + c, dy, n, a.weight + c, rstd, sums,
                     a.dresidual ? a.dresidual + begin + c : nullptr);
        }
    }
}

// The columns of parts[count, cols] (+ cols more for dbias) added up: 32 columns by 8 rows at once
__global__ void __launch_bounds__(256)
    norm_weight_gradients(float* dweight, float* dbias, const float* parts, int64_t count, int64_t cols) {
    __shared__ float sums[8][32];
    const int lane = threadIdx.x % 32, slice = threadIdx.x / 32;
    const int64_t all = dbias ? 2 * cols : cols;
    for (int64_t first = int64_t{blockIdx.x} * 32; first < all; first += int64_t{gridDim.x} * 32) {
        const int64_t c = first + lane;
        float sum = 0.0f;
        if (c < all) {
#pragma unroll 4
            for (int64_t i = slice; i < count; i += 8) sum += parts[i * all + c];
        }
        sums[slice][lane] = sum;
        __syncthreads();
        if (slice == 0 && c < all) {
            for (int i = 1; i < 8; ++i) sum += sums[i][lane];
            *(c < cols ? dweight + c : dbias + (c - cols)) = sum;
        }
        __syncthreads();
    }
}

// Blocks with equally many turns of plan.groups rows each.  A number of a partial sum costs 8 bytes, written
// and read: few enough blocks that all together stay below a twentieth of the matrices, whose elements have
// `element_bytes` in all; but while multiprocessors idle, one for each whole SHARE, which pays for the
// partial sums of 6553 columns.  Where blocks are fewer than the multiprocessors they are larger ones.
static int64_t backward_blocks(NormPlan& plan, int64_t rows, int64_t cols, int64_t element_bytes,
                               int gradients, int64_t multiprocessors, int max_width) {
    const int64_t shares = rows * cols / (SHARE / element_bytes);
    int64_t worth = rows * element_bytes / (20 * 8 * gradients);
    worth = std::max(worth, std::clamp<int64_t>(shares, 1, multiprocessors));
    if (plan.reread) worth = rows;
    if (worth < multiprocessors && worth < ceil_div(rows, plan.groups))
        plan.threads = max_width, plan.groups = max_width / plan.width;
    const int64_t turns = ceil_div(rows, plan.groups);
    int64_t blocks = 2 * multiprocessors < MAX_PARTS ? 2 * multiprocessors : MAX_PARTS;
    if (worth < blocks) blocks = worth;
    if (turns < blocks) blocks = turns;
    return blocks ? ceil_div(turns, ceil_div(turns, blocks)) : 0;
}

template <class T, bool CENTRED>
static int launch_norm_backward(NormBackward<T> a, float* dweight, float* dbias, bool all_aligned,
                                nn_stream stream) {
    constexpr int width = BACKWARD_WIDTH<T, CENTRED>, gradients = CENTRED ? 2 : 1;
    auto plan = norm_plan(a.cols, sizeof(T), all_aligned, BACKWARD_PACKS, width);
    Device device;
    NN_TRY(current_device(&device));
    const int64_t element_bytes = (a.dresidual ? 4 : 3) * int64_t{sizeof(T)};
    const int64_t blocks = backward_blocks(plan, a.rows, a.cols, element_bytes, gradients,
                                           device.multiprocessors, width);
    const bool alone = blocks == 1 && aligned(dweight, 16) && aligned(dbias, 16);
    a.bias_parts = alone ? dbias : a.parts + a.cols;
    if (alone) a.parts = dweight;
    const auto grid = static_cast<unsigned>(blocks);
    if (blocks && plan.reread) {
        auto kernel = plan.vector ? norm_backward_reread<T, PACK<T>> : norm_backward_reread<T, 1>;
        kernel<<<grid, plan.threads, 0, native(stream)>>>(a);
        NN_TRY(launched("norm_backward_reread"));
    } else if (blocks) {
        const int64_t weight = ceil_div(a.cols * sizeof(T), 16) * 16;
        const int64_t partial = partial_bytes(plan.threads, plan.vector ? PACK<T> : 1);
        a.keep = weight <= 48 * 1024 - 256;
        const auto bytes = static_cast<size_t>(a.keep && weight > partial ? weight : partial);
        auto kernel = plan.few ? norm_backward_rows<T, PACK<T>, 2, CENTRED>
                    : plan.vector ? norm_backward_rows<T, PACK<T>, BACKWARD_PACKS, CENTRED>
                                  : norm_backward_rows<T, 1, 8, CENTRED>;
        kernel<<<grid, plan.threads, bytes, native(stream)>>>(a, plan.width);
        NN_TRY(launched("norm_backward_rows"));
    }
    if (alone) return NN_OK;
    const int64_t by_columns = ceil_div(gradients * a.cols, 32);
    norm_weight_gradients<<<static_cast<unsigned>(by_columns < MAX_GRID_X ? by_columns : MAX_GRID_X), 256, 0,
                            native(stream)>>>(dweight, dbias, a.parts, blocks, a.cols);
    return launched("norm_weight_gradients");
}

struct Checked {
    const void* pointer;
    const char* name;
    int32_t dtype;
};

// Arrays of rows x cols or of rows, which may be null without rows; then those of cols.
template <int A, int B>
static int check_backward(const Checked (&by_rows)[A], const Checked (&by_cols)[B], int64_t rows) {
    if (rows)
        for (const Checked& array : by_rows) NN_TRY(check_array(array.pointer, array.name, array.dtype));
    for (const Checked& array : by_cols) NN_TRY(check_array(array.pointer, array.name, array.dtype));
    return NN_OK;
}

static int64_t parts_bytes(int64_t rows, int64_t cols, int gradients) {
    if (rows <= 0 || cols <= 0) return 0;
    return (rows < MAX_PARTS ? rows : MAX_PARTS) * cols * gradients * int64_t{sizeof(float)};
}

}  // namespace nn

NN_API int64_t nn_rms_norm_workspace_size(int64_t rows, int64_t cols) {
    return nn::parts_bytes(rows, cols, 1);
}

NN_API int64_t nn_layer_norm_workspace_size(int64_t rows, int64_t cols) {
    return nn::parts_bytes(rows, cols, 2);
}

NN_API int nn_rms_norm_backward(void* dx, float* dweight, const void* dy, const void* x, const void* weight,
                                const float* rstd, const void* dresidual, int64_t rows, int64_t cols,
                                int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(nn::check_matrix(rows, cols));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (cols == 0) return NN_OK;
    NN_TRY(nn::check_backward({{dx, "dx", dtype}, {dy, "dy", dtype}, {x, "x", dtype},
                               {rstd, "rstd", NN_FLOAT32}},
                              {{dweight, "dweight", NN_FLOAT32}, {weight, "weight", dtype}}, rows));
    if (dresidual) NN_TRY(nn::check_array(dresidual, "dresidual", dtype));
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_rms_norm_workspace_size(rows, cols)));
    const bool all_aligned = nn::aligned(dx, 16) && nn::aligned(dy, 16) && nn::aligned(x, 16) &&
                             nn::aligned(weight, 16) && nn::aligned(dresidual, 16);
    NN_FOR_FLOATING(dtype, T, {
        nn::NormBackward<T> a{static_cast<T*>(dx), static_cast<float*>(workspace), nullptr,
                              static_cast<const T*>(dy), static_cast<const T*>(x),
                              static_cast<const T*>(weight), static_cast<const T*>(dresidual), nullptr, rstd,
                              rows, cols, false};
        return nn::launch_norm_backward<T, false>(a, dweight, nullptr, all_aligned, stream);
    });
    return NN_OK;
}

NN_API int nn_layer_norm_backward(void* dx, float* dweight, float* dbias, const void* dy, const void* x,
                                  const void* weight, const float* mean, const float* rstd, int64_t rows,
                                  int64_t cols, int32_t dtype, void* workspace, int64_t workspace_bytes,
                                  nn_stream stream) {
    NN_TRY(nn::check_matrix(rows, cols));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (cols == 0) return NN_OK;
    NN_TRY(nn::check_backward({{dx, "dx", dtype}, {dy, "dy", dtype}, {x, "x", dtype},
                               {mean, "mean", NN_FLOAT32},
                               {rstd, "rstd", NN_FLOAT32}},
                              {{dweight, "dweight", NN_FLOAT32}, {dbias, "dbias", NN_FLOAT32},
                               {weight, "weight", dtype}}, rows));
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_layer_norm_workspace_size(rows, cols)));
    const bool all_aligned = nn::aligned(dx, 16) && nn::aligned(dy, 16) && nn::aligned(x, 16) &&
                             nn::aligned(weight, 16);
    NN_FOR_FLOATING(dtype, T, {
        nn::NormBackward<T> a{static_cast<T*>(dx), static_cast<float*>(workspace), nullptr,
                              static_cast<const T*>(dy), static_cast<const T*>(x),
                              static_cast<const T*>(weight), nullptr, mean, rstd, rows, cols, false};
        return nn::launch_norm_backward<T, true>(a, dweight, dbias, all_aligned, stream);
    });
    return NN_OK;
}
