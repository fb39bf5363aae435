// The attention backward on tensor cores: half precision, widths that are multiples of 8.
//
// Scores are computed with the owned rows as rows of the product.  Their accumulators are then, packed, the A
// operand of dS B1 and P B2 (device/mma.cuh), so neither P nor dS ever leaves the registers.  A warp owns 16
// or 32 rows and shares the streamed tiles, which come in two stages by cp.async, with the other warps.
//
// P and dS through shared memory, dQ by atomics -> one kernel for dK, dV and one for dQ, P in registers
// -> chunks of 16 or 32 streamed rows, so that two 128-wide results fit beside them without spills (used)
#pragma once

#include "backward.cuh"
#include "device/async_copy.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/swizzle.cuh"

namespace nn::backward {

template <class T, int D> __device__ __forceinline__ T* chunk_of(T* tile, int row, int chunk) {
    return reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(tile) + swizzle<2 * D>(row, chunk));
}

template <class T, int D> __device__ __forceinline__ const T* chunk_of(const T* tile, int row, int chunk) {
    return chunk_of<T, D>(const_cast<T*>(tile), row, chunk);
}

// tile[rows][D] = from[valid][width], zeros beyond
template <class T, int D>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int64_t stride, int rows, int valid,
                                          int width) {
    for (int i = threadIdx.x; i < rows * (D / 8); i += blockDim.x) {
        int row = i / (D / 8), chunk = i % (D / 8);
        bool there = row < valid && 8 * chunk < width;
        copy_async<16>(chunk_of<T, D>(tile, row, chunk), there ? from + row * stride + 8 * chunk : from,
                       there ? 16 : 0);
    }
}

// s = owned rows · streamed rows first ... first + 8N - 1
template <class T, int D, int M, int N>
__device__ __forceinline__ void products(float (&s)[M][N][4], const T* owned, const T* streamed, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) s[i / (4 * N)][i / 4 % N][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            ldmatrix_x4(a[m], chunk_of<T, D>(owned, 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            const int row = first + 8 * n + lane % 8 + lane / 16 * 8;
            ldmatrix_x4(b, chunk_of<T, D>(streamed, row, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16<T>(s[m][n], a[m], b[0], b[1]);
                mma_16x8x16<T>(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// out += a · streamed rows first ... first + 8N - 1, columns from 8 * chunk on
template <class T, int D, int M, int N, int COLUMNS>
__device__ __forceinline__ void accumulate(float (&out)[M][COLUMNS][4], const float (&a)[M][N][4],
                                           const T* streamed, int first, int chunk) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t packed[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                packed[m][i] = pack_halves<T>(a[m][k + i / 2][i % 2 * 2], a[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            ldmatrix_x4_trans(b, chunk_of<T, D>(streamed, first + 8 * k + lane % 16, chunk + n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16<T>(out[m][n], packed[m], b[0], b[1]);
                mma_16x8x16<T>(out[m][n + 1], packed[m], b[2], b[3]);
            }
        }
    }
}

// 2^x, relative error 2^-22; below 2^-126 it is 0
__device__ __forceinline__ float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// How scores become probabilities: p = 2^(factor x − lse), x the score or tanh(inner · score).
struct Exponent {
    float factor, inner;
    bool capped;                                                         // inner may be 0, as scale may
    __device__ Exponent(const Backward& call)
        : factor(LOG2_OF_E * (call.softcap > 0.0f ? call.softcap : call.scale)),
          inner(call.scale / call.softcap), capped(call.softcap > 0.0f) {}
};

// s: scores -> P.  dp: dP -> dS.  (lse, Δ) belong to columns, if the keys are owned, otherwise to rows.
template <bool KEYS, bool CAPPED, int M, int N>
__device__ __forceinline__ void differentiate(float (&s)[M][N][4], float (&dp)[M][N][4],
                                              const float2* columns, const float2 (&rows)[M][2],
                                              const Exponent& exponent) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        Pack<float2, 2> two{};
        if (KEYS) two = load_pack<2>(columns + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float lse = !KEYS ? rows[m][i / 2].x : two[i % 2].x;
                float delta = !KEYS ? rows[m][i / 2].y : two[i % 2].y;
                float x = CAPPED ? tanhf(s[m][n][i] * exponent.inner) : s[m][n][i];
                float p = exp2_flushed(fmaf(x, exponent.factor, -lse)), ds = p * (dp[m][n][i] - delta);
                s[m][n][i] = p;
                dp[m][n][i] = CAPPED ? ds * fmaf(-x, x, 1.0f) : ds;
            }
    }
}

// P = dS = 0 where the key is not visible; what was computed there may be anything, NaN included.
template <bool KEYS, int M, int N>
__device__ __forceinline__ void hide(float (&s)[M][N][4], float (&dp)[M][N][4], const Sight& sight, int row,
                                     int column) {
    row += threadIdx.x % 32 / 4, column += threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + 16 * m + i / 2 * 8, c = column + 8 * n + i % 2;
                if (!sight.visible(KEYS ? c : r, KEYS ? r : c)) s[m][n][i] = dp[m][n][i] = 0.0f;
            }
}

// A warp's rows of a result, through its own rows of `staging`, to out[valid][width] in 16-byte pieces.
template <class T, int D, int M, int COLUMNS>
__device__ __forceinline__ void store_rows(T* out, int64_t stride, int valid, int width, T* staging,
                                           const float (&x)[M][COLUMNS][4], float scale) {
    const int lane = threadIdx.x % 32;
    __syncwarp();                                                        // the rows were operands till here
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                T* to = chunk_of<T, D>(staging, 16 * m + lane / 4 + 4 * i, n) + lane % 4 * 2;
                *reinterpret_cast<uint32_t*>(to) = pack_halves<T>(x[m][n][i] * scale, x[m][n][i + 1] * scale);
            }
    __syncwarp();
    for (int i = lane; i < 16 * M * COLUMNS; i += 32) {
        int row = i / COLUMNS, chunk = i % COLUMNS;
        if (row < valid && 8 * chunk < width)
            store_global(out + row * stride + 8 * chunk, load_pack<8>(chunk_of<T, D>(staging, row, chunk)));
    }
}

// The same in float to out[valid][stride], for the sum over splits.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_partial(float* out, int stride, int valid, int width,
                                              const float (&x)[M][COLUMNS][4], float scale) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                int r = row + 16 * m + 4 * i, c = column + 8 * n;
                if (r < valid && c < width)
                    store_global(out + int64_t(r) * stride + c,
                                 Pack<float, 2>{x[m][n][i] * scale, x[m][n][i + 1] * scale});
            }
}

template <class T, int D, bool KEYS>
__global__ void __launch_bounds__(32 * BackwardTile<D, KEYS>::MAX_WARPS, 1)
    attention_backward_mma(const Backward call, int tiles, int stages) {
    if constexpr (tensor_cores<T>) {
        using Tile = BackwardTile<D, KEYS>;
        constexpr int M = Tile::MMA_ROWS, N = Tile::CHUNK / 8, STREAMED = Tile::STREAMED;
        constexpr int C = Tile::COLUMNS / 8, STAGE = 2 * STREAMED * D;
        const int owned_rows = Tile::WARP_ROWS * (blockDim.x / 32);
        extern __shared__ __align__(128) uint8_t shared_memory[];
        T* owned1 = reinterpret_cast<T*>(shared_memory);                 // K or Q
        T* owned2 = owned1 + owned_rows * D;                             // V or dO
        T* streamed = owned2 + owned_rows * D;                           // Q, dO or K, V; by stage
        float2* statistics = reinterpret_cast<float2*>(streamed + stages * STAGE);       // (lse, Δ) by stage

        const int repeat = call.heads / call.groups;
        const Piece piece(blockIdx.x, tiles, owned_rows, Tile::PARTS, KEYS ? call.splits : 1,
                          KEYS ? call.groups : call.heads, !KEYS);
        const Sequence sequence(call, piece.b);
        const int rows = KEYS ? sequence.key_rows : sequence.queries;
        if (piece.row >= rows) return;
        const int query_head = KEYS ? piece.head * repeat : piece.head;
        const int key_head = KEYS ? piece.head : query_head / repeat;
        Sight sight(call, sequence, piece.b, query_head);
        const Tiles seen(sight, KEYS, piece.row, piece.row + owned_rows, STREAMED);
        const int64_t all = int64_t(seen.count) * (KEYS ? repeat : 1);
        const int64_t begin = KEYS ? all * piece.split / call.splits : 0;
        int64_t left = (KEYS ? all * (piece.split + 1) / call.splits : all) - begin;
        int head = KEYS && left > 0 ? begin / seen.count : 0, tile = begin - int64_t(head) * seen.count;

        // Streamed rows from tile `tile` of query head `head` of the group
        auto load = [&](int head, int tile, int stage) {
            const int first = (seen.first + tile) * STREAMED, h = KEYS ? query_head + head : key_head;
            const int start = first + (KEYS ? sequence.query_start : sequence.key_start);
            const View &one = KEYS ? call.q : call.k, &two = KEYS ? call.d_o : call.v;
            const int valid = (KEYS ? sequence.queries : sequence.keys) - first;
            T* to = streamed + stage * STAGE;
            load_tile<T, D>(to, head_of<T>(one, piece.b, h, start), one.row, STREAMED, valid, call.width);
            load_tile<T, D>(to + STREAMED * D, head_of<T>(two, piece.b, h, start), two.row, STREAMED, valid,
                            call.value_width);
            if constexpr (KEYS) {
                const float2* from = call.rows + (int64_t(piece.b) * call.heads + h) * call.queries + first;
                for (int i = threadIdx.x; i < STREAMED; i += blockDim.x)
                    copy_async<8>(statistics + stage * STREAMED + i, from + min(i, valid - 1));
            }
        };
        if (left > 0) {
            const View &one = KEYS ? call.k : call.q, &two = KEYS ? call.v : call.d_o;
            const int start = piece.row + (KEYS ? sequence.key_start : sequence.query_start);
            const int valid = (KEYS ? sequence.keys : rows) - piece.row;
            load_tile<T, D>(owned1, head_of<T>(one, piece.b, piece.head, start), one.row, owned_rows, valid,
                            call.width);
            load_tile<T, D>(owned2, head_of<T>(two, piece.b, piece.head, start), two.row, owned_rows, valid,
                            call.value_width);
            load(head, tile, 0);
        }
        copy_async_commit();

        const int warp_row = threadIdx.x / 32 * Tile::WARP_ROWS, row = piece.row + warp_row;
        float2 row_statistics[M][2] = {};
        if constexpr (!KEYS)
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                int r = row + 8 * i + threadIdx.x % 32 / 4;
                int64_t first = (int64_t(piece.b) * call.heads + query_head) * call.queries;
                if (r < rows) row_statistics[i / 2][i % 2] = call.rows[first + r];
            }
        owned1 += warp_row * D, owned2 += warp_row * D;
        const Exponent exponent(call);
        float out1[M][C][4] = {}, out2[M][KEYS ? C : 1][4] = {};         // dK, dV; or dQ

        for (int stage = 0; left > 0; left--) {
            copy_async_wait<0>();
            __syncthreads();
            const int first = (seen.first + tile) * STREAMED;
            const T *one = streamed + stage * STAGE, *two = one + STREAMED * D;
            if (KEYS && call.mask)
                sight.mask = call.mask + piece.b * call.mask_batch + (query_head + head) * call.mask_head;
            if (++tile == seen.count) tile = 0, head++;
            if (stages == 2 && left > 1) load(head, tile, stage ^ 1);    // all have left it at the barrier
            copy_async_commit();
#pragma unroll 1
            for (int c = 0; c < STREAMED; c += Tile::CHUNK) {
                const int i0 = KEYS ? first + c : row, i1 = i0 + (KEYS ? Tile::CHUNK : Tile::WARP_ROWS);
                const int j0 = KEYS ? row : first + c, j1 = j0 + (KEYS ? Tile::WARP_ROWS : Tile::CHUNK);
                if (sight.none(i0, i1, j0, j1)) continue;
                float s[M][N][4], dp[M][N][4];
                products<T, D>(s, owned1, one, c);
                products<T, D>(dp, owned2, two, c);
                const float2* columns = statistics + stage * STREAMED + c;
                if (exponent.capped)
                    differentiate<KEYS, true>(s, dp, columns, row_statistics, exponent);
                else
                    differentiate<KEYS, false>(s, dp, columns, row_statistics, exponent);
                if (!sight.all(i0, i1, j0, j1)) hide<KEYS>(s, dp, sight, KEYS ? j0 : i0, KEYS ? i0 : j0);
                if constexpr (KEYS) accumulate<T, D>(out2, s, two, c, piece.part * C);
                accumulate<T, D>(out1, dp, one, c, piece.part * C);
            }
            if (stages == 2) {
                stage ^= 1;
            } else if (left > 1) {
                __syncthreads();
                load(head, tile, 0);
            }
        }

        const int valid = rows - row, column = piece.part * Tile::COLUMNS;
        copy_async_wait<0>();
        if (KEYS && call.splits > 1) {
            const int stride = call.width + call.value_width;
            int64_t place = (int64_t(piece.split) * call.batch + piece.b) * call.groups + piece.head;
            float* to = call.partial + (place * call.keys + row) * stride + column;
            store_partial(to, stride, valid, call.width - column, out1, call.scale);
            if constexpr (KEYS)
                store_partial(to + call.width, stride, valid, call.value_width - column, out2, 1.0f);
            return;
        }
        const View& view = KEYS ? call.dk : call.dq;
        const int start = row + (KEYS ? sequence.key_start : sequence.query_start);
        T* to = head_of<T>(view, piece.b, piece.head, start) + column;
        store_rows<T, D>(to, view.row, valid, call.width - column, owned1, out1, call.scale);
        if constexpr (KEYS) {
            to = head_of<T>(call.dv, piece.b, piece.head, start) + column;
            store_rows<T, D>(to, call.dv.row, valid, call.value_width - column, owned2,
                             out2, 1.0f);
        }
    }
}

template <class T, int D, bool KEYS>
int launch(const Backward& call, const Device& device, nn_stream stream) {
    using Tile = BackwardTile<D, KEYS>;
    const int stages = device.capability < 80 ? 1 : 2, rows = KEYS ? call.keys : call.queries;
    const int warps = warps_for<Tile>(rows, stages, device);
    const int64_t bytes = Tile::shared_bytes(warps, stages), tiles = ceil_div(rows, Tile::WARP_ROWS * warps);
    const int64_t heads = KEYS ? int64_t(call.groups) * call.splits * Tile::PARTS : call.heads;
    const int64_t blocks = tiles * call.batch * heads;
    NN_REQUIRE(blocks <= MAX_GRID_X, "batch, heads, queries, keys: %lld blocks; at most 2^31 - 1",
               (long long)blocks);
    auto kernel = attention_backward_mma<T, D, KEYS>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), int(bytes)));
    kernel<<<unsigned(blocks), 32 * warps, bytes, native(stream)>>>(call, int(tiles), stages);
    return launched("attention_backward_mma");
}

template <class T> int launch_mma(const Backward& call, bool keys, const Device& device, nn_stream stream) {
    return with_bucket(call, [&](auto bucket) {
        constexpr int D = decltype(bucket)::value;
        return keys ? launch<T, D, true>(call, device, stream) : launch<T, D, false>(call, device, stream);
    });
}

}  // namespace nn::backward
