// nn_attention_backward: what is checked, which kernels a call takes, and the two that only move rows.
//
// rows   Δ by a thread per query -> 8 lanes per query with 16-byte loads, lse prepared for the others (used)
// sum    one thread per four neighbouring results, splits in order (used)
#include "nn/attention_backward.h"

#include <algorithm>

#include "backward.cuh"
#include "check.h"
#include "device/pack.cuh"
#include "device/reduce.cuh"

namespace nn::backward {

constexpr int LANES = 8, ROWS = 256 / LANES;             // per query; queries per block

// Δ of this query, in every one of its lanes
template <class T>
__device__ __forceinline__ float delta_of(const T* o, const T* d_o, int width, bool packs) {
    float sum = 0.0f;
    const int lane = threadIdx.x % LANES;
    if (packs) {
        for (int c = lane * PACK<T>; c < width; c += LANES * PACK<T>) {
            auto a = load_pack<PACK<T>>(o + c), b = load_pack<PACK<T>>(d_o + c);
#pragma unroll
            for (int i = 0; i < PACK<T>; i++) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
        }
    } else {
        for (int c = lane; c < width; c += LANES) sum = fmaf(to_float(o[c]), to_float(d_o[c]), sum);
    }
    return warp_reduce<Sum, LANES>(sum);
}

// call.rows = (factor · lse, Δ); a query that sees nothing gets +inf, and so the probability 0 for every key
template <class T>
__global__ void __launch_bounds__(256)
    attention_backward_rows(const Backward call, float factor, bool packs) {
    const int64_t all = int64_t(call.batch) * call.heads * call.queries;
    const int64_t n = int64_t(blockIdx.x) * ROWS + threadIdx.x / LANES, place = n < all ? n : all - 1;
    const int i = place % call.queries, h = place / call.queries % call.heads;
    const int b = place / call.queries / call.heads;
    const Sequence sequence(call, b);
    const bool there = n < all && i < sequence.queries;
    const int64_t row = int64_t(sequence.query_start) + i;
    float delta = delta_of(head_of<const T>(call.o, b, h, row), head_of<const T>(call.d_o, b, h, row),
                           there ? call.value_width : 0, packs);
    if (!there || threadIdx.x % LANES != 0) return;
    float lse = call.lse[b * call.lse_batch + h * call.lse_head + row];
    call.rows[n] = float2{lse == -INFINITY ? INFINITY : lse * factor, delta};
}

// dK, dV = Σ over splits of call.partial
template <class T> __global__ void __launch_bounds__(256) attention_backward_sum(const Backward call) {
    const int columns = call.width + call.value_width;
    const int64_t all = int64_t(call.batch) * call.groups * call.keys * columns;
    const int64_t n = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (n >= all) return;
    const int c = n % columns, j = n / columns % call.keys, h = n / columns / call.keys % call.groups;
    const int b = n / columns / call.keys / call.groups;
    const Sequence sequence(call, b);
    if (j >= sequence.key_rows) return;
    float sums[4] = {};
    for (int split = 0; split < call.splits; split++) {
        const Pack<float, 4> x = load_pack<4>(call.partial + split * all + n);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] += x[i];
    }
    const View& view = c < call.width ? call.dk : call.dv;
    T* to = head_of<T>(view, b, h, sequence.key_start + j) + (c < call.width ? c : c - call.width);
    store_global(to, packed<T, 4>(sums));
}

// A few keys of many query heads (or rows) leave most of the device idle: then several blocks share the
// queries of a block of keys, and each leaves a partial sum.  How many is chosen from the shapes.
constexpr int64_t FEW_BLOCKS = 128, MOST_OWNED = 128, LEAST_STREAMED = 16, STEPS_PER_SPLIT = 8;

struct Plan {
    bool mma;
    int splits;
    int64_t rows_bytes, partial_bytes;
};

int64_t rows_bytes(int64_t batch, int64_t heads, int64_t queries) {
    return ceil_div(batch * heads * queries * int64_t(sizeof(float2)), 256) * 256;
}

Plan plan_of(const Backward& call, bool mma, const Device& device) {
    Plan plan{mma, 1, rows_bytes(call.batch, call.heads, call.queries), 0};
    if (!mma || call.batch == 0 || call.keys == 0) return plan;
    with_bucket(call, [&](auto bucket) {
        using Tile = BackwardTile<decltype(bucket)::value, true>;
        const int warps = warps_for<Tile>(call.keys, device.capability < 80 ? 1 : 2, device);
        const int64_t tiles = ceil_div(call.keys, Tile::WARP_ROWS * warps);
        const int64_t owned = int64_t(call.batch) * call.groups * tiles;
        const int64_t steps = call.heads / call.groups * ceil_div(call.queries, Tile::STREAMED);
        plan.splits = int(std::max<int64_t>(1, std::min(FEW_BLOCKS / owned, steps / STEPS_PER_SPLIT)));
        return NN_OK;
    });
    if (plan.splits > 1)
        plan.partial_bytes = 4 * int64_t(plan.splits) * call.batch * call.groups * call.keys
                           * (call.width + call.value_width);
    return plan;
}

View view_of(const void* data, const int64_t (&strides)[3], bool packed) {
    return {const_cast<void*>(data), packed ? 0 : strides[0], strides[1], strides[2]};
}

Backward call_of(const nn_attention& a, const nn_attention_gradients& g) {
    const bool packed = a.cu_queries, windowed = a.window > 0 && a.window < FAR;
    Backward call{};
    call.q = view_of(a.q, a.q_strides, packed), call.k = view_of(a.k, a.k_strides, packed);
    call.v = view_of(a.v, a.v_strides, packed), call.o = view_of(a.o, a.o_strides, packed);
    call.d_o = view_of(g.d_o, g.d_o_strides, packed), call.dq = view_of(g.dq, g.dq_strides, packed);
    call.dk = view_of(g.dk, g.dk_strides, packed), call.dv = view_of(g.dv, g.dv_strides, packed);
    call.lse = a.lse, call.lse_batch = packed ? 0 : a.lse_strides[0], call.lse_head = a.lse_strides[1];
    call.mask = a.mask, call.mask_batch = a.mask_strides[0], call.mask_head = a.mask_strides[1];
    call.mask_row = a.mask_strides[2], call.mask_column = a.mask_strides[3];
    call.cu_queries = a.cu_queries, call.cu_keys = a.cu_keys, call.key_lengths = a.key_lengths;
    call.batch = int(a.batch), call.heads = int(a.heads), call.groups = int(a.groups);
    call.queries = int(a.queries), call.keys = int(a.keys);
    call.width = int(a.width), call.value_width = int(a.value_width);
    call.behind = windowed ? int(a.window) - 1 : FAR;
    call.ahead = a.causal ? 0 : windowed ? int(a.window) - 1 : FAR;
    call.scale = a.scale, call.softcap = a.softcap, call.dtype = a.dtype;
    return call;
}

bool in_chunks(const View& view, int64_t elements) {
    return aligned(view.data, 16) && view.batch % elements == 0 && view.head % elements == 0 &&
           view.row % elements == 0;
}

bool tensor_core_path(const Backward& call, const Device& device) {
    for (const View* view : {&call.q, &call.k, &call.v, &call.d_o, &call.dq, &call.dk, &call.dv})
        if (!in_chunks(*view, 8)) return false;
    return call.width % 8 == 0 && call.value_width % 8 == 0 &&
           ((call.dtype == NN_FLOAT16 && device.capability >= 75) ||
            (call.dtype == NN_BFLOAT16 && device.capability >= 80));
}

// The call as the kernels see it, checked, without a workspace.
int read(Backward* to, const nn_attention* attention, const nn_attention_gradients* gradients) {
    nn_attention a;
    nn_attention_gradients g;
    NN_TRY(read_call(&a, attention, "attention"));
    NN_TRY(copy_call(&g, gradients, "gradients", "attention_gradients"));
    NN_REQUIRE(a.queries <= MAX_LENGTH && a.keys <= MAX_LENGTH, "queries: %lld, keys: %lld; at most 2^29",
               (long long)a.queries, (long long)a.keys);
    const bool rows = a.batch && a.heads && a.queries, keys = a.batch && a.keys;
    NN_REQUIRE(!rows || (g.d_o && g.dq), "d_o or dq: a null pointer");
    NN_REQUIRE(!keys || (g.dk && g.dv), "dk or dv: a null pointer");
    const size_t bytes = size_t(dtype_bytes(a.dtype));
    NN_REQUIRE(aligned(g.d_o, bytes) && aligned(g.dq, bytes) && aligned(g.dk, bytes) && aligned(g.dv, bytes),
               "d_o, dq, dk or dv: not aligned to %d bytes, the size of a number", int(bytes));
    *to = call_of(a, g);
    return NN_OK;
}

int launch_rows(const Backward& call, bool mma, nn_stream stream) {
    const int64_t blocks = ceil_div(int64_t(call.batch) * call.heads * call.queries, ROWS);
    NN_REQUIRE(blocks <= MAX_GRID_X, "batch, heads, queries: %lld blocks; at most 2^31 - 1",
               (long long)blocks);
    NN_FOR_FLOATING(call.dtype, T, {
        constexpr int N = PACK<T>;
        bool packs = in_chunks(call.o, N) && in_chunks(call.d_o, N) && call.value_width % N == 0;
        const float factor = mma ? LOG2_OF_E : 1.0f;
        attention_backward_rows<T><<<unsigned(blocks), 256, 0, native(stream)>>>(call, factor, packs);
    });
    return launched("attention_backward_rows");
}

int launch_sum(const Backward& call, nn_stream stream) {
    const int64_t numbers = int64_t(call.batch) * call.groups * call.keys * (call.width + call.value_width);
    const unsigned blocks = unsigned(ceil_div(numbers, 4 * 256));
    if (call.dtype == NN_FLOAT16) attention_backward_sum<half><<<blocks, 256, 0, native(stream)>>>(call);
    else attention_backward_sum<bfloat16><<<blocks, 256, 0, native(stream)>>>(call);
    return launched("attention_backward_sum");
}

int launch_side(const Backward& call, bool mma, bool keys, const Device& device, nn_stream stream) {
    if (!mma) return launch_float(call, keys, device, stream);
    return call.dtype == NN_FLOAT16 ? launch_mma<half>(call, keys, device, stream)
                                    : launch_mma<bfloat16>(call, keys, device, stream);
}

}  // namespace nn::backward

NN_API int64_t nn_attention_backward_workspace_size(int64_t batch, int64_t heads, int64_t groups,
                                                    int64_t queries, int64_t keys, int64_t width,
                                                    int64_t value_width) {
    using namespace nn::backward;
    const int64_t steps = heads / std::max<int64_t>(groups, 1) * nn::ceil_div(queries, LEAST_STREAMED);
    const int64_t splits = std::min(FEW_BLOCKS, steps / STEPS_PER_SPLIT);
    const int64_t rows = splits < 2 ? 0 : std::min(FEW_BLOCKS * MOST_OWNED, splits * batch * groups * keys);
    return rows_bytes(batch, heads, queries) + 4 * rows * (width + value_width);
}

NN_API int nn_attention_backward_path(const nn_attention* attention, const nn_attention_gradients* gradients,
                                      int32_t* path) {
    nn::backward::Backward call;
    NN_TRY(nn::backward::read(&call, attention, gradients));
    NN_REQUIRE(path, "path: a null pointer");
    nn::Device device;
    NN_TRY(nn::current_device(&device));
    *path = nn::backward::tensor_core_path(call, device);
    return NN_OK;
}

NN_API int nn_attention_backward(const nn_attention* attention, const nn_attention_gradients* gradients,
                                 void* workspace, int64_t workspace_bytes, nn_stream stream) {
    using namespace nn::backward;
    Backward call;
    NN_TRY(read(&call, attention, gradients));
    nn::Device device;
    NN_TRY(nn::current_device(&device));
    const Plan plan = plan_of(call, tensor_core_path(call, device), device);
    const int64_t bytes = plan.rows_bytes + plan.partial_bytes;
    if (workspace_bytes < bytes)
        return nn::fail(NN_ERROR_WORKSPACE, "workspace_bytes: %lld; this call needs %lld",
                        (long long)workspace_bytes, (long long)bytes);
    NN_REQUIRE(bytes == 0 || (workspace && nn::aligned(workspace, 16)),
               "workspace: null, or not aligned to 16 bytes");
    call.rows = static_cast<float2*>(workspace);
    call.partial = reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + plan.rows_bytes);
    call.splits = plan.splits;
    const bool rows = call.batch > 0 && call.heads > 0 && call.queries > 0;
    const bool keys = call.batch > 0 && call.keys > 0;
    if (rows) NN_TRY(launch_rows(call, plan.mma, stream));
    if (keys) NN_TRY(launch_side(call, plan.mma, true, device, stream));
    if (keys && call.splits > 1) NN_TRY(launch_sum(call, stream));
    if (rows) NN_TRY(launch_side(call, plan.mma, false, device, stream));
    return NN_OK;
}
