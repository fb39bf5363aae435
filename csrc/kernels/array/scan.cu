// Cumulative sums along rows, always in the same order.
//
// one thread per row -> a block per row, warps by shuffles -> rows in chunks over several blocks: the sums of
// the chunks first, then their cumulative sums, then each chunk from where it begins (used)
#include "element.cuh"
#include "layout.cuh"

#include <algorithm>

namespace nn::array {

constexpr int EACH = 4, STEP = THREADS * EACH, CHUNK = 4 * STEP, WARPS = THREADS / 32;
constexpr unsigned EVERY_LANE = 0xffffffffu;

struct Scan {
    void* y;                                         // null: nothing but the sums of the chunks
    const void* x;
    void* sums;                                      // [rows, chunks]: each chunk's sum, or where it begins
    int64_t rows, n, chunks;
    int32_t y_dtype, x_dtype, packs;
};

// Exclusive over the block; `total` of all threads.
template <class C> __device__ __forceinline__ C block_scan(C x, C* scratch, C* total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    C inclusive = x;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const C left = __shfl_up_sync(EVERY_LANE, inclusive, distance);
        if (lane >= distance) inclusive += left;
    }
    if (lane == 31) scratch[warp] = inclusive;
    __syncthreads();
    C begin = C(0), sum = C(0);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp) begin = sum;
        sum += scratch[w];
    }
    __syncthreads();
    *total = sum;
    const C left = __shfl_up_sync(EVERY_LANE, inclusive, 1);
    return lane == 0 ? begin : begin + left;
}

template <class C> __global__ void __launch_bounds__(THREADS) array_scan(const __grid_constant__ Scan s) {
    __shared__ C scratch[WARPS];
    for (int64_t block = blockIdx.x; block < s.rows * s.chunks; block += gridDim.x) {
        const int64_t row = block / s.chunks, from = block % s.chunks * CHUNK;
        const int64_t stop = s.chunks == 1 ? s.n : min(s.n, from + CHUNK);
        C before = s.y && s.chunks > 1 ? static_cast<const C*>(s.sums)[block] : C(0);
        for (int64_t i = from; i < stop; i += STEP) {
            const int64_t mine = i + threadIdx.x * EACH;
            C x[EACH], total;
            if (s.packs && mine + EACH <= stop) {
                load_many<EACH>(x, s.x, s.x_dtype, row * s.n + mine);
            } else {
#pragma unroll
                for (int j = 0; j < EACH; ++j)
                    x[j] = mine + j < stop ? load<C>(s.x, s.x_dtype, row * s.n + mine + j) : C(0);
            }
#pragma unroll
            for (int j = 1; j < EACH; ++j) x[j] += x[j - 1];
            const C at = before + block_scan(x[EACH - 1], scratch, &total);
#pragma unroll
            for (int j = 0; j < EACH; ++j) x[j] += at;
            if (s.y && s.packs && mine + EACH <= stop) {
                store_many<EACH>(s.y, s.y_dtype, row * s.n + mine, x);
            } else if (s.y) {
#pragma unroll
                for (int j = 0; j < EACH; ++j)
                    if (mine + j < stop) store(s.y, s.y_dtype, row * s.n + mine + j, x[j]);
            }
            before += total;
        }
        if (!s.y && threadIdx.x == 0) static_cast<C*>(s.sums)[block] = before;
    }
}

// sums[rows, chunks] become where each chunk begins; a block per row.
template <class C>
__global__ void __launch_bounds__(THREADS) array_scan_chunks(C* sums, int64_t rows, int64_t chunks) {
    __shared__ C scratch[WARPS];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        C before = C(0), total;
        for (int64_t i = 0; i < chunks; i += THREADS) {
            const int64_t mine = i + threadIdx.x;
            const C x = mine < chunks ? sums[row * chunks + mine] : C(0);
            const C at = before + block_scan(x, scratch, &total);
            if (mine < chunks) sums[row * chunks + mine] = at;
            before += total;
        }
    }
}

namespace {

int64_t chunks_of(int64_t n) { return n <= CHUNK ? 1 : ceil_div(n, CHUNK); }

template <class C> int launch(Scan s, nn_stream stream) {
    if (s.chunks > 1) {
        Scan sums = s;
        sums.y = nullptr;
        array_scan<C><<<limited(s.rows * s.chunks), THREADS, 0, native(stream)>>>(sums);
        NN_TRY(launched("array_scan"));
        C* begins = static_cast<C*>(s.sums);
        array_scan_chunks<C><<<limited(s.rows), THREADS, 0, native(stream)>>>(begins, s.rows, s.chunks);
        NN_TRY(launched("array_scan_chunks"));
    }
    array_scan<C><<<limited(s.rows * s.chunks), THREADS, 0, native(stream)>>>(s);
    return launched("array_scan");
}

}  // namespace
}  // namespace nn::array

NN_API int64_t nn_array_cumulative_sum_workspace_size(int64_t rows, int64_t n) {
    const int64_t chunks = nn::array::chunks_of(n);
    return chunks == 1 ? 0 : rows * chunks * 8;
}

NN_API int nn_array_cumulative_sum(void* y, const void* x, int64_t rows, int64_t n, int32_t y_dtype,
                                   int32_t x_dtype, void* workspace, int64_t workspace_bytes,
                                   nn_stream stream) {
    using namespace nn::array;
    NN_TRY(nn::check_elements("rows", rows, "n", n));
    NN_TRY(check_known("y_dtype", y_dtype));
    NN_TRY(check_known("x_dtype", x_dtype));
    if (rows == 0 || n == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", y_dtype));
    NN_TRY(nn::check_array(x, "x", x_dtype));
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_array_cumulative_sum_workspace_size(rows, n)));
    const int64_t y_bytes = EACH * nn::dtype_bytes(y_dtype), x_bytes = EACH * nn::dtype_bytes(x_dtype);
    const bool packs = n % EACH == 0 && nn::aligned(y, std::min<int64_t>(16, y_bytes)) &&
                       nn::aligned(x, std::min<int64_t>(16, x_bytes));
    Scan s{y, x, workspace, rows, n, chunks_of(n), y_dtype, x_dtype, packs};
    if (y_dtype == NN_FLOAT64) return launch<double>(s, stream);
    return floating(y_dtype) ? launch<float>(s, stream) : launch<int64_t>(s, stream);
}
