// Attention forward without tensor cores: float32, and whatever the tensor-core kernels do not take.
//
// one thread per score -> 4 rows x 2 keys per thread from tiles in shared memory, 16-byte reads (used)
#include <algorithm>

#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "forward.h"
#include "problem.cuh"

namespace nn {

constexpr int FLOAT_ROWS = 32, FLOAT_KEYS = 32, FLOAT_THREADS = 128;      // 8 x 16 threads
constexpr int P_PITCH = FLOAT_KEYS + 4;          // rows 4 apart lie 16 banks apart

// How a tile lies in shared memory: an odd number of 16-byte chunks a row, so that 8 rows
// lie in different banks.
struct FloatTile {
    int chunks, pitch, slots;  // chunks of 4 numbers; pitch in numbers; slots: a power of two
    __host__ __device__ explicit FloatTile(int64_t width)
        : chunks(static_cast<int>(width + 3) / 4), slots(1) {
        pitch = 4 * (chunks | 1);
        while (slots < chunks) slots *= 2;
    }
};

struct FloatLayout {
    int64_t tiles;
    int pack;                                    // heads side by side, as in flash.cuh
    int keys;                                    // in a tile
    bool apart;                                  // K and V have places of their own
    bool packs;                                  // four numbers of q, k, v, o can be moved as one
};

// The row that a group of `slots` threads writes: neighbours take rows whose chunks lie in different banks.
__device__ __forceinline__ int spread(int group, const FloatTile& tile) {
    const int low = group % 8, turn = tile.slots == 2 ? 1 : tile.slots == 4 ? 2 : 0;
    return group - low + ((low << turn | low >> (3 - turn)) & 7);
}

// Four neighbouring numbers into shared memory; zeros for those beyond the width, and for a row outside.
template <class T>
__device__ __forceinline__ void load_chunk(float* to, const T* from, bool inside, int left, bool packs) {
    float x[4];
    load_floats(x, from, inside ? left : 0, inside && packs);
    store_shared(to, packed<float>(x));
}

// `rows` rows of a tile, of which the first `inside` are there.
template <class T>
__device__ __forceinline__ void load_rows(float* to, const FloatTile& tile, const T* from, int64_t stride,
                                          int rows, int inside, int width, bool packs) {
    const int chunk = threadIdx.x % tile.slots, step = FLOAT_THREADS / tile.slots;
    if (chunk >= tile.chunks) return;
    for (int i = threadIdx.x / tile.slots; i < rows; i += step) {
        const int row = spread(i, tile);
        load_chunk(to + row * tile.pitch + 4 * chunk, from + row * stride + 4 * chunk, row < inside,
                   width - 4 * chunk, packs);
    }
}

// WIDE: how many times 64 columns of V a thread's registers hold, four neighbours of each.
template <class T, int WIDE>
__global__ void __launch_bounds__(FLOAT_THREADS, WIDE == 1 ? 3 : 2)
    attention_forward_float(nn_attention a, FloatLayout layout) {
    extern __shared__ __align__(16) float numbers[];
    const FloatTile wide(a.width), value_wide(a.value_width);
    const int width = static_cast<int>(a.width), value_width = static_cast<int>(a.value_width);
    const int pack = layout.pack;
    const int64_t index = blockIdx.x / layout.tiles, sets = a.heads / pack;
    const int64_t b = index / sets, head = index % sets * pack, group = head / (a.heads / a.groups);
    const Sequence seq = sequence(a, b);
    const Reach see = reach(a, seq);
    const int64_t tile = a.causal ? layout.tiles - 1 - blockIdx.x % layout.tiles : blockIdx.x % layout.tiles;
    const int row0 = static_cast<int>(tile) * FLOAT_ROWS, rows = seq.queries * pack;
    if (row0 >= rows) return;
    const int inside = min(rows - row0, FLOAT_ROWS);
    const int first = see.lo(row0 / pack) / layout.keys * layout.keys;
    const int last = see.hi((row0 + inside - 1) / pack);

    float* q = numbers;
    float* k = q + FLOAT_ROWS * wide.pitch;
    float* v = layout.apart ? k + layout.keys * wide.pitch : k;
    float* p = (layout.apart ? v + layout.keys * value_wide.pitch
                             : k + layout.keys * max(wide.pitch, value_wide.pitch));
    const T* from_q = static_cast<const T*>(a.q) + start(a, a.q_strides, b, head, seq.first_query);
    const T* from_k = static_cast<const T*>(a.k) + start(a, a.k_strides, b, group, seq.first_key);
    const T* from_v = static_cast<const T*>(a.v) + start(a, a.v_strides, b, group, seq.first_key);
    const int chunk = threadIdx.x % wide.slots;
    for (int i = threadIdx.x / wide.slots; i < FLOAT_ROWS && chunk < wide.chunks;
         i += FLOAT_THREADS / wide.slots) {
        const int row = spread(i, wide), r = row0 + row;
        load_chunk(q + row * wide.pitch + 4 * chunk,
                   from_q + r / pack * a.q_strides[2] + r % pack * a.q_strides[1] + 4 * chunk, row < inside,
                   width - 4 * chunk, layout.packs);
    }

    const int tx = threadIdx.x % 16, mine = threadIdx.x / 16 * 4;                // rows mine ... mine + 3
    const int warp_first = row0 + threadIdx.x / 32 * 8, warp_last = min(warp_first + 8, rows) - 1;
    const bool working = warp_first < rows;
    const int low = see.lo(min(warp_first, rows - 1) / pack), high = see.hi(max(warp_last, 0) / pack);
    const int all_from = see.lo(max(warp_last, 0) / pack), all_to = see.hi(min(warp_first, rows - 1) / pack);
    float o[4][WIDE][4] = {}, largest[4], sum[4] = {};
#pragma unroll
    for (int r = 0; r < 4; r++) largest[r] = -INFINITE;

    for (int j0 = first; j0 < last; j0 += layout.keys) {
        const bool needed = working && j0 < high && j0 + layout.keys > low;
        const int here = min(last - j0, layout.keys);
        __syncthreads();
        load_rows(k, wide, from_k + j0 * a.k_strides[2], a.k_strides[2], layout.keys, here, width,
                  layout.packs);
        if (layout.apart)
            load_rows(v, value_wide, from_v + j0 * a.v_strides[2], a.v_strides[2], layout.keys, here,
                      value_width, layout.packs);
        __syncthreads();
        if (needed) {
            const int near = tx, far = tx + 16 < layout.keys ? tx + 16 : tx;     // the keys of this thread
            float s[4][2] = {};
#pragma unroll 2
            for (int c = 0; c < wide.chunks; c++) {
                const Pack<float, 4> kn = load_pack<4>(k + near * wide.pitch + 4 * c);
                const Pack<float, 4> kf = load_pack<4>(k + far * wide.pitch + 4 * c);
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const Pack<float, 4> x = load_pack<4>(q + (mine + r) * wide.pitch + 4 * c);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        s[r][0] = fmaf(x[e], kn[e], s[r][0]);
                        s[r][1] = fmaf(x[e], kf[e], s[r][1]);
                    }
                }
            }
            // half a tile: the second key of a thread is the first one again, and must be hidden
            const bool edge = layout.keys < FLOAT_KEYS || j0 < all_from || j0 + FLOAT_KEYS > all_to || a.mask;
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int e = 0; e < 2; e++)
                    s[r][e] = (a.softcap > 0.0f ? a.softcap * tanhf(s[r][e] * a.scale / a.softcap)
                                                : s[r][e] * a.scale) * LOG2_E;
                if (edge) {
                    const int row = min(row0 + mine + r, rows - 1), query = row / pack;
                    const int lo = see.lo(query), hi = min(see.hi(query), j0 + layout.keys);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int j = j0 + tx + 16 * e;
                        bool visible = j >= lo && j < hi;
                        if (visible && a.mask)
                            visible = a.mask[b * a.mask_strides[0] + (head + row % pack) * a.mask_strides[1] +
                                             query * a.mask_strides[2] + j * a.mask_strides[3]];
                        if (!visible) s[r][e] = -INFINITE;
                    }
                }
                const float before = largest[r];
                const float now = fmaxf(before, warp_reduce<Max, 16>(fmaxf(s[r][0], s[r][1])));
                const float top = now == -INFINITE ? 0.0f : now;
                const float factor = before == now ? 1.0f : before == -INFINITE ? 0.0f : exp2f(before - top);
                largest[r] = now;
                s[r][0] = exp2f(s[r][0] - top), s[r][1] = exp2f(s[r][1] - top);
                sum[r] = fmaf(sum[r], factor, s[r][0] + s[r][1]);
                p[(mine + r) * P_PITCH + tx] = s[r][0], p[(mine + r) * P_PITCH + tx + 16] = s[r][1];
                if (factor != 1.0f) {
#pragma unroll
                    for (int w = 0; w < WIDE; w++)
#pragma unroll
                        for (int e = 0; e < 4; e++) o[r][w][e] *= factor;
                }
            }
            __syncwarp();
        }
        if (!layout.apart) {
            __syncthreads();
            load_rows(v, value_wide, from_v + j0 * a.v_strides[2], a.v_strides[2], layout.keys, here,
                      value_width, layout.packs);
            __syncthreads();
        }
        if (needed && 4 * tx < value_width) {
            for (int j = 0; j < layout.keys; j += 4) {
                Pack<float, 4> weight[4];
#pragma unroll
                for (int r = 0; r < 4; r++) weight[r] = load_pack<4>(p + (mine + r) * P_PITCH + j);
#pragma unroll
                for (int w = 0; w < WIDE; w++) {
                    if (64 * w + 4 * tx >= value_width) break;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const Pack<float, 4> x =
                            load_pack<4>(v + (j + i) * value_wide.pitch + 64 * w + 4 * tx);
#pragma unroll
                        for (int r = 0; r < 4; r++)
#pragma unroll
                            for (int e = 0; e < 4; e++) o[r][w][e] = fmaf(weight[r][i], x[e], o[r][w][e]);
                    }
                }
            }
        }
        __syncwarp();                                            // P has been read
    }

    T* to = static_cast<T*>(a.o) + start(a, a.o_strides, b, head, seq.first_query);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const float total = warp_reduce<Sum, 16>(sum[r]), inverse = total == 0.0f ? 0.0f : 1.0f / total;
        const int row = row0 + mine + r;
        if (row >= rows) continue;
        const int64_t query = row / pack, at = head + row % pack;
        if (tx == 0)
            a.lse[lse_start(a, b, at, seq.first_query) + query] =
                total == 0.0f ? -INFINITE
                              : fmaf(largest[r] == -INFINITE ? 0.0f : largest[r], LN_2, logf(total));
        T* line = to + query * a.o_strides[2] + row % pack * a.o_strides[1];
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
            const int column = 64 * w + 4 * tx;
            Pack<T, 4> x;
#pragma unroll
            for (int e = 0; e < 4; e++) x[e] = from_float<T>(o[r][w][e] * inverse);
            if (layout.packs && column < value_width) {
                store_global(line + column, x);
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (column + e < value_width) line[column + e] = x[e];
            }
        }
    }
}

namespace {

int shared_bytes(const nn_attention& a, int keys, bool apart) {
    const FloatTile wide(a.width), value_wide(a.value_width);
    const int both = apart ? wide.pitch + value_wide.pitch : std::max(wide.pitch, value_wide.pitch);
    return 4 * (FLOAT_ROWS * wide.pitch + keys * both + FLOAT_ROWS * P_PITCH);
}

bool in_packs(const nn_attention& a) {
    const size_t bytes = 4 * static_cast<size_t>(dtype_bytes(a.dtype));
    bool even = a.width % 4 == 0 && a.value_width % 4 == 0;
    for (int i = 0; i < 3; i++)
        even = even && a.q_strides[i] % 4 == 0 && a.k_strides[i] % 4 == 0 && a.v_strides[i] % 4 == 0 &&
               a.o_strides[i] % 4 == 0;
    return even && aligned(a.q, bytes) && aligned(a.k, bytes) && aligned(a.v, bytes) && aligned(a.o, bytes);
}

template <class T, int WIDE> int launch(const nn_attention& a, const Device& device, cudaStream_t stream) {
    FloatLayout layout{0, heads_in_tile(a, FLOAT_ROWS), FLOAT_KEYS, true, in_packs(a)};
    if (shared_bytes(a, layout.keys, true) > device.shared_bytes)
        layout.keys = FLOAT_KEYS / 2, layout.apart = false;
    layout.tiles = ceil_div(a.queries * layout.pack, FLOAT_ROWS);
    const int64_t blocks = layout.tiles * (a.heads / layout.pack) * a.batch;
    NN_REQUIRE(blocks <= MAX_GRID_X, "queries, heads, batch: %lld blocks are more than 2^31 - 1",
               (long long)blocks);
    const int bytes = shared_bytes(a, layout.keys, layout.apart);
    auto kernel = attention_forward_float<T, WIDE>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes));
    kernel<<<static_cast<unsigned>(blocks), FLOAT_THREADS, bytes, stream>>>(a, layout);
    return launched("attention_forward_float");
}

}  // namespace

int launch_forward_float(const nn_attention& a, const Device& device, cudaStream_t stream) {
    const bool narrow = a.value_width <= 64;
    NN_FOR_FLOATING(a.dtype, T,
                    return narrow ? launch<T, 1>(a, device, stream) : launch<T, 4>(a, device, stream));
    return NN_OK;
}

}  // namespace nn
