// Rows by index, and their gradient: scatter-add without float atomics.
//
// scatter    every row looks through all indices: rows x count reads -> a stable sort of the indices: nine
//            launches -> integer atomics gather each row's tokens into a list, in any order; one block per
//            row that occurs puts its list in order and sums (used)
// The order of a sum is that of n, so it does not matter in which order the atomics came.
#include "device/arguments.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/pack.cuh"
#include "nn/optimizer.h"

namespace nn {

constexpr int SCATTER_THREADS = 128, SCATTER_LIST = 1024, SCATTER_COLUMNS = 4;

__device__ __forceinline__ int64_t index_at(const void* index, int64_t n, int32_t dtype) {
    return dtype == NN_INT32 ? static_cast<const int32_t*>(index)[n] : static_cast<const int64_t*>(index)[n];
}

// ---- rows by index ----------------------------------------------------------------------------------------

template <class T, int N>
__global__ void __launch_bounds__(256)
embedding_forward(T* out, const T* table, const void* index, int64_t count, int64_t rows, int64_t width,
                  int32_t index_dtype) {
    const int64_t step = int64_t(gridDim.x) * blockDim.y;
    for (int64_t n = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; n < count; n += step) {
        const int64_t row = index_at(index, n, index_dtype);
        const bool inside = row >= 0 && row < rows;
        Pack<T, N> nothing;
#pragma unroll
        for (int i = 0; i < N; ++i) nothing[i] = from_float<T>(__int_as_float(0x7fc00000));
        for (int64_t c = N * threadIdx.x; c < width; c += N * blockDim.x)
            store_global(out + n * width + c, inside ? load_global<N>(table + row * width + c) : nothing);
    }
}

template <class T>
static int embedding(void* out, const void* table, const void* index, int64_t count, int64_t rows,
                     int64_t width, int32_t index_dtype, cudaStream_t stream) {
    const bool packs = aligned(out, 16) && aligned(table, 16) && width % PACK<T> == 0;
    const dim3 grid(blocks_for(count, 8, 65536)), block(32, 8);
    T* to = static_cast<T*>(out);
    const T* from = static_cast<const T*>(table);
    if (packs)
        embedding_forward<T, PACK<T>>
            <<<grid, block, 0, stream>>>(to, from, index, count, rows, width, index_dtype);
    else
        embedding_forward<T, 1><<<grid, block, 0, stream>>>(to, from, index, count, rows, width, index_dtype);
    return launched("embedding_forward");
}

// ---- scatter-add ------------------------------------------------------------------------------------------

// In the workspace: how often each row occurs, where its list begins, which place in it a token took, the
// lists.
struct Lists {
    int32_t *counts, *total, *starts, *places, *tokens;
};

__global__ void __launch_bounds__(256)
scatter_count(Lists lists, const void* index, int64_t count, int64_t rows, int32_t index_dtype) {
    const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const int64_t row = index_at(index, n, index_dtype);
    lists.places[n] = row >= 0 && row < rows ? atomicAdd(lists.counts + row, 1) : -1;
}

// The first token of a row takes room for all of them.
__global__ void __launch_bounds__(256)
scatter_start(Lists lists, const void* index, int64_t count, int32_t index_dtype) {
    const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= count || lists.places[n] != 0) return;
    const int64_t row = index_at(index, n, index_dtype);
    lists.starts[row] = atomicAdd(lists.total, lists.counts[row]);
}

__global__ void __launch_bounds__(256)
scatter_place(Lists lists, const void* index, int64_t count, int32_t index_dtype) {
    const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= count || lists.places[n] < 0) return;
    lists.tokens[lists.starts[index_at(index, n, index_dtype)] + lists.places[n]] = int32_t(n);
}

// list[SCATTER_LIST] <- the row's tokens in increasing order; all of them are in `tokens`.
__device__ __forceinline__ void sort_tokens(int32_t* list, const int32_t* tokens, int size) {
    __shared__ int32_t unsorted[SCATTER_LIST];
    for (int i = threadIdx.x; i < size; i += SCATTER_THREADS) unsorted[i] = tokens[i];
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += SCATTER_THREADS) {
        int before = 0;
        for (int j = 0; j < size; ++j) before += unsorted[j] < unsorted[i];
        list[before] = unsorted[i];
    }
    __syncthreads();
}

// list <- the next tokens of the row at or after *n, in order, until the list is nearly full; their number.
__device__ __forceinline__ int find_tokens(int32_t* list, int64_t& n, const void* index, int64_t row,
                                           int64_t count, int32_t index_dtype) {
    __shared__ int found[SCATTER_THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int size = 0;
    for (; n < count && size <= SCATTER_LIST - SCATTER_THREADS; n += SCATTER_THREADS) {
        const int64_t mine = n + threadIdx.x;
        const bool hit = mine < count && index_at(index, mine, index_dtype) == row;
        const unsigned hits = __ballot_sync(0xffffffffu, hit);
        if (lane == 0) found[warp] = __popc(hits);
        __syncthreads();
        int before = size;
        for (int w = 0; w < SCATTER_THREADS / 32; ++w) {
            if (w < warp) before += found[w];
            size += found[w];
        }
        if (hit) list[before + __popc(hits & ((1u << lane) - 1))] = int32_t(mine);
        __syncthreads();
    }
    return size;
}

// sum[] += source[token] over the list, in its order
template <class T, int N>
__device__ __forceinline__ void add_list(float (&sum)[N], const int32_t* list, int size, const T* source,
                                         int64_t width) {
#pragma unroll 4
    for (int i = 0; i < size; ++i) {
        float x[N];
        load_floats(x, source + list[i] * width);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += x[j];
    }
}

// Block (n, part): if n took the first place of its row, some columns of that row.
template <class T, int N>
__global__ void __launch_bounds__(SCATTER_THREADS, 8)
scatter_add_forward(float* out, Lists lists, const T* source, const void* index, int64_t count, int64_t width,
                    int32_t accumulate, int32_t index_dtype) {
    __shared__ int32_t list[SCATTER_LIST];
    if (lists.places[blockIdx.x] != 0) return;
    const int64_t row = index_at(index, blockIdx.x, index_dtype);
    const int64_t column = (int64_t(blockIdx.y) * SCATTER_THREADS + threadIdx.x) * N;
    const bool inside = column < width;
    const int size = lists.counts[row];
    float sum[N] = {};
    if (inside && accumulate) load_floats(sum, out + row * width + column);
    if (size <= SCATTER_LIST) {
        sort_tokens(list, lists.tokens + lists.starts[row], size);
        if (inside) add_list<T, N>(sum, list, size, source + column, width);
    } else {
        for (int64_t n = 0; n < count;) {
            const int some = find_tokens(list, n, index, row, count, index_dtype);
            if (inside) add_list<T, N>(sum, list, some, source + column, width);
            __syncthreads();
        }
    }
    if (inside) store_floats(out + row * width + column, sum);
}

// int32s, to a multiple of 256 bytes
static int64_t lines(int64_t count) { return ceil_div(count * 4, 256) * 64; }

template <class T>
static int scatter(float* out, Lists lists, const void* source, const void* index, int64_t count,
                   int64_t width, int32_t accumulate, int32_t index_dtype, cudaStream_t stream) {
    const T* from = static_cast<const T*>(source);
    const bool packs = width % SCATTER_COLUMNS == 0 && aligned(out, 16) &&
        aligned(source, SCATTER_COLUMNS * sizeof(T));
    const int64_t parts = ceil_div(width, SCATTER_THREADS * (packs ? SCATTER_COLUMNS : 1));
    NN_SUPPORT(parts <= MAX_GRID_YZ, "width: %lld is too large", (long long)width);
    const dim3 grid{unsigned(count), unsigned(parts)};
    if (packs)
        scatter_add_forward<T, SCATTER_COLUMNS><<<grid, SCATTER_THREADS, 0, stream>>>(
            out, lists, from, index, count, width, accumulate, index_dtype);
    else
        scatter_add_forward<T, 1><<<grid, SCATTER_THREADS, 0, stream>>>(out, lists, from, index, count, width,
                                                                        accumulate, index_dtype);
    return launched("scatter_add_forward");
}

static int gather_lists(Lists lists, const void* index, int64_t count, int64_t rows, int32_t index_dtype,
                        cudaStream_t stream) {
    const unsigned blocks = unsigned(ceil_div(count, 256));
    const int64_t cleared = (lines(rows) + lines(1)) * 4;                     // counts, and total after them
    NN_TRY(checked(cudaMemsetAsync(lists.counts, 0, size_t(cleared), stream), "scatter_add: memset"));
    scatter_count<<<blocks, 256, 0, stream>>>(lists, index, count, rows, index_dtype);
    NN_TRY(launched("scatter_count"));
    scatter_start<<<blocks, 256, 0, stream>>>(lists, index, count, index_dtype);
    NN_TRY(launched("scatter_start"));
    scatter_place<<<blocks, 256, 0, stream>>>(lists, index, count, index_dtype);
    return launched("scatter_place");
}

static int check_rows(int64_t count, int64_t rows, int64_t width, int32_t dtype, int32_t index_dtype) {
    NN_TRY(check_elements("count", count, "width", width));
    NN_TRY(check_elements("rows", rows, "width", width));
    NN_TRY(check_floating("dtype", dtype));
    return check_index("index_dtype", index_dtype);
}

}  // namespace nn

NN_API int nn_embedding_forward(void* out, const void* table, const void* index, int64_t count, int64_t rows,
                                int64_t width, int32_t dtype, int32_t index_dtype, nn_stream stream) {
    NN_TRY(nn::check_rows(count, rows, width, dtype, index_dtype));
    if (!count || !width) return NN_OK;
    NN_TRY(nn::check_array(out, "out", dtype));
    NN_TRY(nn::check_array(index, "index", index_dtype));
    NN_TRY(rows ? nn::check_array(table, "table", dtype) : NN_OK);
    NN_FOR_FLOATING(dtype, T, return nn::embedding<T>(out, table, index, count, rows, width, index_dtype,
                                                      nn::native(stream)));
    return NN_OK;
}

NN_API int64_t nn_scatter_add_workspace_size(int64_t count, int64_t rows) {
    return 4 * (2 * nn::lines(rows > 0 ? rows : 0) + nn::lines(1) + 2 * nn::lines(count > 0 ? count : 0));
}

NN_API int nn_scatter_add_forward(float* out, const void* source, const void* index, int64_t count,
                                  int64_t rows, int64_t width, int32_t accumulate, int32_t dtype,
                                  int32_t index_dtype, void* workspace, int64_t workspace_bytes,
                                  nn_stream stream) {
    NN_TRY(nn::check_rows(count, rows, width, dtype, index_dtype));
    NN_REQUIRE(count <= nn::MAX_GRID_X, "count: %lld is above 2^31 - 1", (long long)count);
    NN_TRY(nn::check_flag("accumulate", accumulate));
    if (!rows || !width) return NN_OK;
    NN_TRY(nn::check_array(out, "out", NN_FLOAT32));
    if (count) {
        NN_TRY(nn::check_array(source, "source", dtype));
        NN_TRY(nn::check_array(index, "index", index_dtype));
        NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_scatter_add_workspace_size(count, rows)));
    }
    cudaStream_t native = nn::native(stream);
    if (!accumulate)
        NN_TRY(nn::checked(cudaMemsetAsync(out, 0, size_t(rows) * size_t(width) * 4, native),
                           "scatter_add: zeros"));
    if (!count) return NN_OK;
    nn::Lists lists;
    lists.counts = static_cast<int32_t*>(workspace), lists.total = lists.counts + nn::lines(rows);
    lists.starts = lists.total + nn::lines(1), lists.places = lists.starts + nn::lines(rows);
    lists.tokens = lists.places + nn::lines(count);
    NN_TRY(nn::gather_lists(lists, index, count, rows, index_dtype, native));
    NN_FOR_FLOATING(dtype, T, return nn::scatter<T>(out, lists, source, index, count, width, accumulate,
                                                    index_dtype,
                                                    native));
    return NN_OK;
}
