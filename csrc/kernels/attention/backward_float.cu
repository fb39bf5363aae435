// The attention backward in float arithmetic: every type, width up to 256 and alignment, every architecture.
//
// one thread per score, sums in shared memory -> results in registers, P and dS once through shared memory,
// four scores and 4 x 8 results to a thread, rows read as float4 (used)
#include "backward.cuh"
#include "device/pack.cuh"

namespace nn::backward {

constexpr int MAX_WIDTH = 256;

// Rows of a tile in shared memory are an odd number of float4 apart: eight of them lie in different banks.
__host__ __device__ inline int tile_stride(int width) { return 4 * ((width + 3) / 4 | 1); }

template <class T>
__device__ void widen_rows(float* tile, int stride, const T* from, int64_t step, int rows, int valid,
                           int width) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32)
        for (int c = lane; c < (width + 3) / 4 * 4; c += 32)
            tile[row * stride + c] = row < valid && c < width ? to_float(from[row * step + c]) : 0.0f;
}

// tile[rows][width] = rows of a head in whatever type they have, zeros from `valid` on
__device__ inline void load_rows(float* tile, int stride, const View& view, int dtype, int b, int h, int start,
                          int rows, int valid, int width) {
    if (dtype == NN_FLOAT32)
        widen_rows(tile, stride, head_of<const float>(view, b, h, start), view.row, rows, valid, width);
    else if (dtype == NN_FLOAT16)
        widen_rows(tile, stride, head_of<const half>(view, b, h, start), view.row, rows, valid, width);
    else
        widen_rows(tile, stride, head_of<const bfloat16>(view, b, h, start), view.row, rows, valid, width);
}

template <class T>
__device__ void narrow_rows(T* out, int64_t step, int valid, int width, const float (&x)[4][MAX_WIDTH / 32],
                            float scale) {
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int i = 0; i < MAX_WIDTH / 32; i++) {
            int c = threadIdx.x % 32 + 32 * i;
            if (r < valid && c < width) out[r * step + c] = from_float<T>(x[r][i] * scale);
        }
}

__device__ inline void store_rows(const View& view, int dtype, int b, int h, int start, int valid, int width,
                           const float (&x)[4][MAX_WIDTH / 32], float scale) {
    if (dtype == NN_FLOAT32)
        narrow_rows(head_of<float>(view, b, h, start), view.row, valid, width, x, scale);
    else if (dtype == NN_FLOAT16)
        narrow_rows(head_of<half>(view, b, h, start), view.row, valid, width, x, scale);
    else
        narrow_rows(head_of<bfloat16>(view, b, h, start), view.row, valid, width, x, scale);
}

// sums[i] = owned row · streamed rows lane, lane + 8, ...
template <int N>
__device__ __forceinline__ void dot_products(float (&sums)[N], const float* owned, const float* streamed,
                                             int stride, int width) {
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] = 0.0f;
#pragma unroll 2
    for (int c = 0; c < width; c += 4) {
        const Pack<float, 4> a = load_pack<4>(owned + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const Pack<float, 4> b = load_pack<4>(streamed + 8 * i * stride + c);
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i] = fmaf(a[e], b[e], sums[i]);
        }
    }
}

// out[r][columns of this lane] += Σ weights[row][r] streamed[row], the sum of a tile first: rounding errors stay
// those of short sums however many tiles there are.
__device__ __forceinline__ void add_rows(float (&out)[4][MAX_WIDTH / 32], const float* weights,
                                         int weights_stride, const float* streamed, int stride, int rows,
                                         int width) {
#pragma unroll
    for (int i = 0; i < MAX_WIDTH / 32; i += 2) {
        if (32 * i >= width) break;
        const int one = threadIdx.x % 32 + 32 * i, two = one + 32;
        float sums[4][2] = {};
#pragma unroll 4
        for (int row = 0; row < rows; row++) {
            const Pack<float, 4> a = load_pack<4>(weights + row * weights_stride);
            const float x = one < width ? streamed[row * stride + one] : 0.0f;
            const float y = two < width ? streamed[row * stride + two] : 0.0f;
#pragma unroll
            for (int r = 0; r < 4; r++)
                sums[r][0] = fmaf(a[r], x, sums[r][0]), sums[r][1] = fmaf(a[r], y, sums[r][1]);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) out[r][i] += sums[r][0], out[r][i + 1] += sums[r][1];
    }
}

// 8 threads per owned row; a warp's four rows are also the rows of the result that it sums.
template <int OWNED, int STREAMED, bool KEYS>
__global__ void __launch_bounds__(8 * OWNED, 1) attention_backward_float(const Backward call, int tiles) {
    constexpr int N = STREAMED / 8, WEIGHTS = OWNED + 4;
    extern __shared__ __align__(16) float shared_floats[];
    const int stride = tile_stride(max(call.width, call.value_width));
    float *owned1 = shared_floats, *owned2 = owned1 + OWNED * stride, *streamed1 = owned2 + OWNED * stride;
    float *streamed2 = streamed1 + STREAMED * stride, *probabilities = streamed2 + STREAMED * stride;
    float *slopes = probabilities + STREAMED * WEIGHTS, *statistics = slopes + STREAMED * WEIGHTS;

    const int repeat = call.heads / call.groups;                         // 0 without query heads
    const Piece piece(blockIdx.x, tiles, OWNED, 1, 1, KEYS ? call.groups : call.heads, !KEYS);
    const Sequence sequence(call, piece.b);
    const int rows = KEYS ? sequence.key_rows : sequence.queries;
    if (piece.row >= rows) return;
    const int query_head = KEYS ? piece.head * repeat : piece.head;
    const int key_head = KEYS ? piece.head : query_head / repeat;
    const int owned_start = piece.row + (KEYS ? sequence.key_start : sequence.query_start);
    Sight sight(call, sequence, piece.b, query_head);
    const Tiles seen(sight, KEYS, piece.row, piece.row + OWNED, STREAMED);

    const int valid = (KEYS ? sequence.keys : rows) - piece.row;
    const View &own1 = KEYS ? call.k : call.q, &own2 = KEYS ? call.v : call.d_o;
    const View &stream1 = KEYS ? call.q : call.k, &stream2 = KEYS ? call.d_o : call.v;
    if (seen.count > 0) {
        load_rows(owned1, stride, own1, call.dtype, piece.b, piece.head, owned_start, OWNED, valid,
                  call.width);
        load_rows(owned2, stride, own2, call.dtype, piece.b, piece.head, owned_start, OWNED, valid,
                  call.value_width);
    }
    const int owned = threadIdx.x / 8, lane = threadIdx.x % 8, row = piece.row + owned;
    const float* query_rows = reinterpret_cast<const float*>(call.rows)
                            + 2 * (int64_t(piece.b) * call.heads + query_head) * call.queries;
    float lse = INFINITY, delta = 0.0f;
    if (!KEYS && row < rows) lse = query_rows[2 * row], delta = query_rows[2 * row + 1];

    float out1[4][MAX_WIDTH / 32] = {}, out2[4][MAX_WIDTH / 32] = {};
    for (int head = 0; head < (KEYS ? repeat : 1); head++) {
        if (KEYS && call.mask)
            sight.mask = call.mask + piece.b * call.mask_batch + (query_head + head) * call.mask_head;
        for (int tile = 0; tile < seen.count; tile++) {
            const int first = (seen.first + tile) * STREAMED, h = KEYS ? query_head + head : key_head;
            const int start = first + (KEYS ? sequence.query_start : sequence.key_start);
            const int there = (KEYS ? sequence.queries : sequence.keys) - first;
            __syncthreads();                                             // the tile before has been read
            load_rows(streamed1, stride, stream1, call.dtype, piece.b, h, start, STREAMED, there, call.width);
            load_rows(streamed2, stride, stream2, call.dtype, piece.b, h, start, STREAMED, there,
                      call.value_width);
            const float* from = query_rows + 2 * (int64_t(head) * call.queries + first);
            for (int i = threadIdx.x; KEYS && i < 2 * STREAMED; i += blockDim.x)
                statistics[i] = i < 2 * there ? from[i] : 0.0f;
            __syncthreads();
            float s[N], dp[N];
            dot_products(s, owned1 + owned * stride, streamed1 + lane * stride, stride, call.width);
            dot_products(dp, owned2 + owned * stride, streamed2 + lane * stride, stride, call.value_width);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const int column = lane + 8 * i, other = first + column;
                if (KEYS) lse = statistics[2 * column], delta = statistics[2 * column + 1];
                float x = s[i] * call.scale, slope = 1.0f;
                if (call.softcap > 0.0f) {
                    float t = tanhf(x / call.softcap);
                    x = call.softcap * t, slope = fmaf(-t, t, 1.0f);
                }
                bool visible = sight.visible(KEYS ? other : row, KEYS ? row : other);
                float p = visible ? expf(x - lse) : 0.0f;
                probabilities[column * WEIGHTS + owned] = p;
                slopes[column * WEIGHTS + owned] = visible ? p * (dp[i] - delta) * slope : 0.0f;
            }
            __syncwarp();                                                // a warp reads what it has written
            const int four = threadIdx.x / 32 * 4;
            add_rows(out1, slopes + four, WEIGHTS, streamed1, stride, STREAMED, call.width);
            if (KEYS)
                add_rows(out2, probabilities + four, WEIGHTS, streamed2, stride, STREAMED, call.value_width);
        }
    }
    const int four = threadIdx.x / 32 * 4;
    const int place = owned_start + four, stored = rows - piece.row - four;
    store_rows(KEYS ? call.dk : call.dq, call.dtype, piece.b, piece.head, place, stored, call.width, out1,
               call.scale);
    if (KEYS)
        store_rows(call.dv, call.dtype, piece.b, piece.head, place, stored, call.value_width, out2, 1.0f);
}

template <int OWNED, int STREAMED> int64_t float_shared_bytes(const Backward& call) {
    int64_t stride = tile_stride(call.width > call.value_width ? call.width : call.value_width);
    return 4 * (2 * (OWNED + STREAMED) * stride + 2 * STREAMED * (OWNED + 4) + 2 * STREAMED);
}

template <int OWNED, int STREAMED, bool KEYS> int launch(const Backward& call, nn_stream stream) {
    const int64_t bytes = float_shared_bytes<OWNED, STREAMED>(call);
    const int64_t tiles = ceil_div(KEYS ? call.keys : call.queries, OWNED);
    const int64_t blocks = tiles * call.batch * (KEYS ? call.groups : call.heads);
    NN_REQUIRE(blocks <= MAX_GRID_X, "batch, heads, queries, keys: %lld blocks; at most 2^31 - 1",
               (long long)blocks);
    auto kernel = attention_backward_float<OWNED, STREAMED, KEYS>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), int(bytes)));
    kernel<<<unsigned(blocks), 8 * OWNED, bytes, native(stream)>>>(call, int(tiles));
    return launched("attention_backward_float");
}

int launch_float(const Backward& call, bool keys, const Device& device, nn_stream stream) {
    if (float_shared_bytes<32, 32>(call) <= device.shared_bytes)
        return keys ? launch<32, 32, true>(call, stream) : launch<32, 32, false>(call, stream);
    return keys ? launch<16, 8, true>(call, stream) : launch<16, 8, false>(call, stream);
}

}  // namespace nn::backward
