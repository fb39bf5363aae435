// Decode attention: few queries against a cache, split over the keys; bound by the bytes of the cache.
//
// one block per head -> per key/value head, its query heads as rows -> and per split of 256 keys (used): a
// row's sum does not depend on how many splits, rows or sequences there are beside it.
#include <algorithm>

#include "decode.h"
#include "device/pack.cuh"
#include "device/reduce.cuh"

namespace nn {

constexpr int DECODE_THREADS = 128, LANES_PER_KEY = 4;
constexpr int MERGE_WARPS = 8;

// One of the two halves of a cache, for a row of the batch and a group.
template <class T> struct CacheRows {
    const T* base;
    int64_t stride, page_stride;
    const int32_t* table;
    int page_shift;

    __device__ __forceinline__ CacheRows(const nn_cache& c, const void* start, const int64_t (&strides)[3],
                                         int64_t b,
                                         int64_t group)
        : base(static_cast<const T*>(start) + group * strides[1]), stride(strides[2]),
            page_stride(strides[0]),
          table(nullptr), page_shift(0) {
        if (c.block_table)
            table = c.block_table + b * c.max_pages, page_shift = 31 - __clz(static_cast<int>(c.page));
        else
            base += b * strides[0];
    }
    __device__ __forceinline__ const T* at(int row) const {
        if (!table) return base + row * stride;
        return base + table[row >> page_shift] * page_stride + (row & ((1 << page_shift) - 1)) * stride;
    }
};

// Scores by four lanes a key; softmax by a warp a row; then a thread owns 16 bytes of columns and every
// groups-th key.  ROWS: at most, in a block.
template <class T, int ROWS>
__global__ void __launch_bounds__(DECODE_THREADS, ROWS == 1 ? 7 : 4) attention_decode(nn_decode d, nn_cache c,
                                                                                  DecodeGrid grid,
                                                                                  bool packs) {
    constexpr int N = PACK<T>;
    __shared__ float p[ROWS][NN_DECODE_SPLIT], total[ROWS], top[ROWS];
    __shared__ __align__(16) float scratch[DECODE_THREADS * N * ROWS];           // q, then sums of the groups
    const DecodeBlock at(d, c, grid);
    if (at.first >= at.last && grid.splits > 1) return;
    const int rows = at.rows - at.row, keys = max(at.last - at.first, 0), width = static_cast<int>(c.width);
    const int chunks = (width + N - 1) / N, q_pitch = chunks * N;
    const T* q = static_cast<const T*>(d.q) + at.b * d.q_strides[0] + at.head * d.q_strides[1];
    for (int i = threadIdx.x; i < rows * q_pitch; i += DECODE_THREADS) {
        const int r = at.row + i / q_pitch, column = i % q_pitch;
        const int64_t from = r / grid.pack * d.q_strides[2] + r % grid.pack * d.q_strides[1];
        scratch[i] = column < width ? to_float(q[from + column]) : 0.0f;
    }
    __syncthreads();

    const CacheRows<T> k(c, c.k, c.k_strides, at.b, at.group), v(c, c.v, c.v_strides, at.b, at.group);
    const int part = threadIdx.x % LANES_PER_KEY;
    for (int j0 = 0; j0 < keys; j0 += DECODE_THREADS / LANES_PER_KEY) {
        const int j = j0 + threadIdx.x / LANES_PER_KEY;
        float s[ROWS] = {};
        if (j < keys) {
            const T* key = k.at(at.first + j);
#pragma unroll 4
            for (int chunk = part; chunk < chunks; chunk += LANES_PER_KEY) {
                float x[N];
                load_floats(x, key + chunk * N, width - chunk * N, packs);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    if (r >= rows) break;
#pragma unroll
                    for (int e = 0; e < N; e += 4) {
                        const Pack<float, 4> y = load_pack<4>(scratch + r * q_pitch + chunk * N + e);
#pragma unroll
                        for (int f = 0; f < 4; f++) s[r] = fmaf(x[e + f], y[f], s[r]);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) break;
            const float sum = warp_reduce<Sum, LANES_PER_KEY>(s[r]);
            if (j < keys && part == r % LANES_PER_KEY) p[r][j] = sum;
        }
    }
    __syncthreads();

    for (int r = threadIdx.x / 32; r < rows; r += DECODE_THREADS / 32) {
        const int query = (at.row + r) / grid.pack, lo = at.reach.lo(query), hi = at.reach.hi(query);
        float largest = -INFINITE, sum = 0.0f;
        for (int j = threadIdx.x % 32; j < keys; j += 32) {
            float s = p[r][j] * d.scale;
            if (d.softcap > 0.0f) s = d.softcap * tanhf(s / d.softcap);
            p[r][j] = s = at.first + j >= lo && at.first + j < hi ? s * LOG2_E : -INFINITE;
            largest = fmaxf(largest, s);
        }
        largest = warp_reduce<Max>(largest);
        if (largest == -INFINITE) largest = 0.0f;
        for (int j = threadIdx.x % 32; j < keys; j += 32) sum += p[r][j] = exp2f(p[r][j] - largest);
        sum = warp_reduce<Sum>(sum);
        if (threadIdx.x % 32 == 0) total[r] = sum, top[r] = largest;
    }
    __syncthreads();

    const int value_width = static_cast<int>(c.value_width), columns = (value_width + N - 1) / N;      // by N
    const int groups = DECODE_THREADS / columns, group = threadIdx.x / columns;
    const int mine = threadIdx.x % columns * N;
    float o[ROWS][N] = {};
    if (group < groups) {
#pragma unroll 4
        for (int j = group; j < keys; j += groups) {
            float x[N];
            load_floats(x, v.at(at.first + j) + mine, value_width - mine, packs);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (r >= rows) break;
#pragma unroll
                for (int e = 0; e < N; e++) o[r][e] = fmaf(p[r][j], x[e], o[r][e]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) break;
#pragma unroll
            for (int e = 0; e < N; e++) scratch[((group * rows + r) * columns) * N + mine + e] = o[r][e];
        }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < rows * columns * N; i += DECODE_THREADS) {
        const int r = i / (columns * N), column = i % (columns * N), query = (at.row + r) / grid.pack;
        if (column >= value_width) continue;
        float x = 0.0f;
        for (int g = 0; g < groups; g++) x += scratch[(g * rows + r) * columns * N + column];
        x = total[r] == 0.0f ? 0.0f : x / total[r];
        const int64_t head = at.head + (at.row + r) % grid.pack, row = decode_row(d, at.b, head, query);
        const float weight = total[r] == 0.0f ? -INFINITE : top[r] + log2f(total[r]);
        if (grid.splits > 1) {
            grid.partial[(row * grid.splits + at.split) * grid.pitch + column] = x;
            if (column == 0) grid.weight[row * grid.splits + at.split] = weight;
        } else {
            const int64_t to = at.b * d.o_strides[0] + head * d.o_strides[1] + query * d.o_strides[2];
            static_cast<T*>(d.o)[to + column] = from_float<T>(x);
            if (column == 0 && d.lse) d.lse[row] = weight * LN_2;
        }
    }
}

// o = sum of 2^(weight - largest) o_i over that of the weights, splits in order: a warp a run of them, then
// the warps.  One block a row; only splits with a key that the row's block of rows sees were written.
template <class T>
__global__ void __launch_bounds__(32 * MERGE_WARPS) attention_decode_merge(nn_decode d, nn_cache c,
                                                                           DecodeGrid grid) {
    __shared__ __align__(16) float sums[MERGE_WARPS][ATTENTION_MAX_WIDTH], totals[MERGE_WARPS];
    __shared__ float scratch[32];
    const int64_t row = blockIdx.x, b = row / (d.heads * d.queries), head = row / d.queries % d.heads;
    const int query = static_cast<int>(row % d.queries), width = static_cast<int>(c.value_width);
    const Reach see = DecodeBlock::decode_reach(d, c, b);
    const int lo = see.lo(query), hi = see.hi(query);
    const int first = lo / NN_DECODE_SPLIT, last = lo < hi ? (hi - 1) / NN_DECODE_SPLIT + 1 : first;
    const float* weights = grid.weight + row * grid.splits;
    float largest = -INFINITE;
    for (int i = first + threadIdx.x; i < last; i += blockDim.x) largest = fmaxf(largest, weights[i]);
    largest = block_reduce<Max>(largest, scratch);
    if (largest == -INFINITE) largest = 0.0f;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int run = (last - first + MERGE_WARPS - 1) / MERGE_WARPS;
    const int from = min(first + warp * run, last), to = min(from + run, last);
    float total = 0.0f;
    for (int i = from; i < to; i++) total += exp2f(weights[i] - largest);
    for (int column = 4 * lane; column < width; column += 128) {
        Pack<float, 4> sum{};
#pragma unroll 4
        for (int i = from; i < to; i++) {
            const float weight = exp2f(weights[i] - largest);
            const float* partial = grid.partial + (row * grid.splits + i) * grid.pitch;
            const Pack<float, 4> x = load_pack<4>(partial + column);
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (column + e < width) sum[e] = fmaf(weight, x[e], sum[e]);
        }
        store_shared(&sums[warp][column], sum);
    }
    if (lane == 0) totals[warp] = total;
    __syncthreads();

    total = 0.0f;
    for (int i = 0; i < MERGE_WARPS; i++) total += totals[i];
    T* o = static_cast<T*>(d.o) + b * d.o_strides[0] + head * d.o_strides[1] + query * d.o_strides[2];
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float x = 0.0f;
        for (int i = 0; i < MERGE_WARPS; i++) x += sums[i][column];
        o[column] = from_float<T>(total == 0.0f ? 0.0f : x / total);
    }
    if (threadIdx.x == 0 && d.lse) d.lse[row] = total == 0.0f ? -INFINITE : (largest + log2f(total)) * LN_2;
}

namespace {

constexpr int64_t MAX_DECODE_QUERIES = 16;

int64_t splits_of(int64_t capacity) { return std::max<int64_t>(1, ceil_div(capacity, NN_DECODE_SPLIT)); }
int64_t pitch_of(int64_t value_width) { return ceil_div(value_width, 4) * 4; }

int64_t workspace_bytes_of(int64_t rows, int64_t capacity, int64_t value_width) {
    const int64_t splits = splits_of(capacity);
    return splits == 1 ? 0 : rows * splits * (pitch_of(value_width) + 4) * int64_t(sizeof(float));
}

bool in_packs(const nn_cache& c, int64_t n) {
    bool even = c.width % n == 0 && c.value_width % n == 0 && aligned(c.k, 16) && aligned(c.v, 16);
    for (int i = 0; i < 3; i++) even = even && c.k_strides[i] % n == 0 && c.v_strides[i] % n == 0;
    return even;
}

bool on_tensor_cores(const nn_decode& d, const nn_cache& c, const Device& device) {
    bool even = in_packs(c, 8) && aligned(d.q, 16) && aligned(d.o, 16) && d.scale > 0.0f;
    for (int i = 0; i < 3; i++) even = even && d.q_strides[i] % 8 == 0 && d.o_strides[i] % 2 == 0;
    return even && c.dtype != NN_FLOAT32 && device.capability >= 80 && d.heads / c.groups * d.queries >= 8;
}

template <class T>
int launch_float(const nn_decode& d, const nn_cache& c, const DecodeGrid& grid, int64_t blocks,
                 cudaStream_t stream) {
    const bool packs = in_packs(c, PACK<T>);
    auto kernel = grid.chunk_rows == 1 ? attention_decode<T, 1> : attention_decode<T, 8>;
    kernel<<<static_cast<unsigned>(blocks), DECODE_THREADS, 0, stream>>>(d, c, grid, packs);
    return launched("attention_decode");
}

int check_decode(nn_decode* d, const nn_decode* call, const nn_cache& c) {
    NN_TRY(copy_call(d, call, "call", "decode"));
    NN_TRY(check_heads(c.batch, d->heads, c.groups));
    NN_REQUIRE_SIZE(d->queries, MAX_DECODE_QUERIES);
    NN_TRY(check_options(&d->window, d->scale, d->softcap));
    if (c.batch == 0 || d->heads == 0 || d->queries == 0) return NN_OK;
    NN_REQUIRE(d->o && d->q, "o or q: a null pointer");
    const size_t bytes = static_cast<size_t>(dtype_bytes(c.dtype));
    NN_REQUIRE(aligned(d->q, bytes) && aligned(d->o, bytes),
               "o or q: not aligned to %d bytes, the size of a number",
               (int)bytes);
    NN_REQUIRE(aligned(d->lse, 4), "lse: %p is not aligned to float32", (void*)d->lse);
    NN_REQUIRE(aligned(d->lengths, 4), "lengths: %p is not aligned to int32", (const void*)d->lengths);
    return NN_OK;
}

}  // namespace
}  // namespace nn

NN_API int64_t nn_attention_decode_workspace_size(int64_t batch, int64_t heads, int64_t queries,
                                                  int64_t capacity,
                                                  int64_t value_width) {
    if (batch < 0 || heads < 0 || queries < 0 || capacity < 0 || value_width < 0) return 0;
    return nn::workspace_bytes_of(batch * heads * queries, capacity, value_width);
}

NN_API int nn_attention_decode(const nn_decode* call, const nn_cache* cache, void* workspace,
                               int64_t workspace_bytes,
                               nn_stream stream) {
    nn_cache c;
    nn_decode d;
    NN_TRY(nn::read_cache(&c, cache));
    NN_TRY(nn::check_decode(&d, call, c));
    const int64_t rows = c.batch * d.heads * d.queries;
    if (rows == 0) return NN_OK;
    const int64_t needed = nn::workspace_bytes_of(rows, c.capacity, c.value_width);
    if (workspace_bytes < needed)
        return nn::fail(NN_ERROR_WORKSPACE, "workspace_bytes: %lld; %lld are needed",
                        (long long)workspace_bytes,
                        (long long)needed);
    NN_REQUIRE(needed == 0 || (workspace && nn::aligned(workspace, 16)),
               "workspace: null, or not aligned to 16 bytes");
    nn::Device device;
    NN_TRY(nn::current_device(&device));
    const bool tensor = nn::on_tensor_cores(d, c, device);
    nn::DecodeGrid grid{};
    grid.pack = static_cast<int>(d.heads / c.groups);
    const int64_t group_rows = grid.pack * d.queries;
    grid.splits = static_cast<int>(nn::splits_of(c.capacity));
    grid.chunk_rows = tensor ? nn::decode_mma_rows(group_rows) : group_rows == 1 ? 1 : 8;
    grid.chunks = static_cast<int>(nn::ceil_div(group_rows, grid.chunk_rows));
    grid.pitch = static_cast<int>(nn::pitch_of(c.value_width));
    grid.partial = static_cast<float*>(workspace);
    grid.weight = grid.partial + rows * grid.splits * grid.pitch;
    const int64_t blocks = c.batch * c.groups * grid.chunks * grid.splits;
    NN_REQUIRE(blocks <= nn::MAX_GRID_X && rows <= nn::MAX_GRID_X,
               "batch, heads, capacity: %lld blocks are more than 2^31 - 1", (long long)blocks);
    if (tensor) {
        NN_TRY(nn::launch_decode_mma(d, c, grid, blocks, nn::native(stream)));
    } else {
        NN_FOR_FLOATING(c.dtype, T, NN_TRY(nn::launch_float<T>(d, c, grid, blocks, nn::native(stream))));
    }
    if (grid.splits == 1) return NN_OK;
    NN_FOR_FLOATING(c.dtype, T, {
        nn::attention_decode_merge<T>
            <<<static_cast<unsigned>(rows), 32 * nn::MERGE_WARPS, 0, nn::native(stream)>>>(d, c, grid);
    });
    return nn::launched("attention_decode_merge");
}
