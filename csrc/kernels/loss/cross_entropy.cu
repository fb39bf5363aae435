// Cross-entropy over rows of logits.
//
// forward    maximum, then sum: two reads -> both at once, the sum rescaled per 16 bytes: one read (used)
// backward   one read and one write from the saved log-sum-exp, in place where asked for (used)
//
// A row is taken by one warp if it is short, by a block otherwise.  Rows of odd length begin anywhere: a
// row's first elements up to a multiple of 16 bytes, and its last, go one by one.
#include "check.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "nn/loss.h"

namespace nn {

constexpr int LOSS_THREADS = 512;
constexpr float NOT_A_NUMBER = __builtin_nanf("");

__device__ __forceinline__ int64_t target_of(const nn_cross_entropy& call, int64_t row) {
    return call.target_dtype == NN_INT32 ? static_cast<const int32_t*>(call.targets)[row]
                                         : static_cast<const int64_t*>(call.targets)[row];
}

// Over the threads of a row: blockDim.x of them, a warp or the block.
template <class Op> __device__ __forceinline__ float row_reduce(float x, float* scratch) {
    return blockDim.x == 32 ? warp_reduce<Op>(x) : block_reduce<Op>(x, scratch);
}

// Elements before the first multiple of 16 bytes, and whole packs of N after them.
template <int N, class T>
__device__ __forceinline__ void split(int64_t& head, int64_t& packs, const T* row, int64_t count) {
    head = int64_t((16 - (reinterpret_cast<uintptr_t>(row) & 15)) & 15) / int64_t(sizeof(T));
    if (head > count) head = count;
    packs = (count - head) / N;
}

// Maximum, sum of exp(z - maximum), and sum of z, of what a thread has seen.
struct Seen {
    float top = -__builtin_huge_valf(), exponentials = 0.0f, total = 0.0f;

    template <int N> __device__ __forceinline__ void add(float (&z)[N], float softcap) {
        float now = top;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (softcap != 0.0f) z[i] = softcap * tanhf(z[i] / softcap);
            now = fmaxf(now, z[i]);                              // a NaN comes through the exponentials
        }
        const float base = now == -__builtin_huge_valf() ? 0.0f : now;
        float more = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) more += expf(z[i] - base), total += z[i];
        exponentials = exponentials * expf(top - base) + more;
        top = now;
    }
};

template <class T>
__global__ void __launch_bounds__(LOSS_THREADS) cross_entropy_forward(const nn_cross_entropy call) {
    constexpr int N = PACK<T>;
    __shared__ float scratch[32];
    const int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, count = call.vocabulary;
    if (r >= call.rows) return;                                  // a whole warp: several rows have one each
    const T* row = static_cast<const T*>(call.logits) + r * call.stride;
    int64_t head, packs;
    split<N>(head, packs, row, count);
    Seen seen;
#pragma unroll 2
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
        const Pack<T, N> pack = load_global<N>(row + head + p * N);
        float z[N];
#pragma unroll
        for (int i = 0; i < N; ++i) z[i] = to_float(pack[i]);
        seen.add(z, call.softcap);
    }
    const int64_t single = count - packs * N;                    // before and after the packs
    for (int64_t i = threadIdx.x; i < single; i += blockDim.x) {
        float z[1] = {to_float(row[i < head ? i : i + packs * N])};
        seen.add(z, call.softcap);
    }
    const float top = row_reduce<Max>(seen.top, scratch), base = top == -__builtin_huge_valf() ? 0.0f : top;
    const float log_sum = logf(row_reduce<Sum>(seen.exponentials * expf(seen.top - base), scratch));
    const float total = call.label_smoothing != 0.0f ? row_reduce<Sum>(seen.total, scratch) : 0.0f;
    if (threadIdx.x) return;
    const float lse = log_sum + base;
    call.lse[r] = lse;
    const int64_t target = target_of(call, r);
    float loss = 0.0f;
    if (target != call.ignore_index) {
        loss = NOT_A_NUMBER;
        if (target >= 0 && target < count) {
            float z = to_float(row[target]);
            if (call.softcap != 0.0f) z = call.softcap * tanhf(z / call.softcap);
            // differences from the maximum: a large maximum costs no digits
            loss = log_sum + (1.0f - call.label_smoothing) * (base - z);
            if (call.label_smoothing != 0.0f) loss += call.label_smoothing * (base - total / count);
            if (call.z_loss != 0.0f) loss += call.z_loss * lse * lse;
        }
    }
    call.loss[r] = loss;
}

// What a gradient takes from its row.
struct Row {
    float lse, scale, shift, target_shift, softcap;
    int64_t target;

    __device__ __forceinline__ float gradient(float z, int64_t i) const {
        if (softcap != 0.0f) z = softcap * tanhf(z / softcap);
        float dz = expf(z - lse) * scale - shift;
        if (i == target) dz += target_shift;
        if (softcap != 0.0f) dz *= 1.0f - (z / softcap) * (z / softcap);
        return dz;
    }
};

// Read by one lane of a warp for all.
__device__ __forceinline__ Row row_of(const nn_cross_entropy& call, int64_t r) {
    float lse = 0.0f, up = 1.0f;
    long long target = 0;
    if (threadIdx.x % 32 == 0) {
        lse = call.lse[r], target = target_of(call, r);
        if (call.dloss) up = call.dloss[r];
    }
    lse = __shfl_sync(ALL_LANES, lse, 0), up = __shfl_sync(ALL_LANES, up, 0);
    target = __shfl_sync(ALL_LANES, target, 0);
    if (target < 0 || target >= call.vocabulary) up = NOT_A_NUMBER;
    return {lse, up * (1.0f + 2.0f * call.z_loss * lse), up * (call.label_smoothing / call.vocabulary),
            up * (call.label_smoothing - 1.0f), call.softcap, target};
}

template <class T, class G, int N>
__device__ __forceinline__ void put_pack(G* out, const Pack<T, N>& pack, const Row& row, int64_t at) {
    Pack<G, N> made;
#pragma unroll
    for (int i = 0; i < N; ++i) made[i] = from_float<G>(row.gradient(to_float(pack[i]), at + i));
    store_global(out + at, made);
}

template <class T, class G>
__global__ void __launch_bounds__(LOSS_THREADS) cross_entropy_backward(const nn_cross_entropy call) {
    constexpr int N = PACK<T>;
    const int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y, count = call.vocabulary;
    const int64_t step = blockDim.x;
    if (r >= call.rows) return;
    const T* in = static_cast<const T*>(call.logits) + r * call.stride;
    G* out = static_cast<G*>(call.dlogits) + r * call.gradient_stride;
    int64_t head, packs;
    split<N>(head, packs, in, count);
    if (reinterpret_cast<uintptr_t>(out + head) % (sizeof(G) * N)) head = count, packs = 0;
    const int64_t single = count - packs * N;
    const Row row = row_of(call, r);
    if (row.target == call.ignore_index) {
        Pack<G, N> zero;
#pragma unroll
        for (int i = 0; i < N; ++i) zero[i] = from_float<G>(0.0f);
        for (int64_t p = threadIdx.x; p < packs; p += step) store_global(out + head + p * N, zero);
        for (int64_t i = threadIdx.x; i < single; i += step) out[i < head ? i : i + packs * N] = zero[0];
        return;
    }
    int64_t p = threadIdx.x;
    for (; p + step < packs; p += 2 * step) {                    // two packs on their way at a time
        const Pack<T, N> first = load_global<N>(in + head + p * N);
        const Pack<T, N> second = load_global<N>(in + head + (p + step) * N);
        put_pack(out, first, row, head + p * N);
        put_pack(out, second, row, head + (p + step) * N);
    }
    if (p < packs) put_pack(out, load_global<N>(in + head + p * N), row, head + p * N);
    for (int64_t i = threadIdx.x; i < single; i += step) {
        const int64_t at = i < head ? i : i + packs * N;
        out[at] = from_float<G>(row.gradient(to_float(in[at]), at));
    }
}

// A warp for a short row, a block for a long one.
static dim3 threads_of(int64_t vocabulary) {
    return vocabulary <= 1024 ? dim3(32, 4) : vocabulary <= 8192 ? dim3(128) : dim3(LOSS_THREADS);
}

template <class T> static int forward(const nn_cross_entropy& call, cudaStream_t stream) {
    const dim3 block = threads_of(call.vocabulary);
    cross_entropy_forward<T><<<unsigned(ceil_div(call.rows, block.y)), block, 0, stream>>>(call);
    return launched("cross_entropy_forward");
}

template <class T, class G> static int backward(const nn_cross_entropy& call, cudaStream_t stream) {
    const dim3 block = threads_of(call.vocabulary);
    cross_entropy_backward<T, G><<<unsigned(ceil_div(call.rows, block.y)), block, 0, stream>>>(call);
    return launched("cross_entropy_backward");
}

static int check(const nn_cross_entropy* call) {
    NN_REQUIRE(call && call->size == sizeof(nn_cross_entropy),
               "call: null, or its size is not sizeof(nn_cross_entropy)");
    NN_REQUIRE(call->rows >= 0 && call->rows <= MAX_GRID_X, "rows: %lld is not in 0 ... 2^31 - 1",
               (long long)call->rows);
    NN_REQUIRE(call->vocabulary > 0, "vocabulary: %lld is not positive", (long long)call->vocabulary);
    NN_REQUIRE(call->stride >= call->vocabulary || call->rows <= 1,
               "stride: %lld is below the vocabulary, %lld",
               (long long)call->stride, (long long)call->vocabulary);
    NN_TRY(check_elements("rows", call->rows, "vocabulary", call->vocabulary));
    NN_TRY(check_elements("rows", call->rows, "stride", call->rows > 1 ? call->stride : 0));
    NN_TRY(check_loss(call->label_smoothing, call->z_loss, call->softcap));
    NN_TRY(check_index("target_dtype", call->target_dtype));
    NN_TRY(check_floating("dtype", call->dtype));
    if (!call->rows) return NN_OK;
    NN_TRY(check_array(call->logits, "logits", call->dtype));
    NN_TRY(check_array(call->targets, "targets", call->target_dtype));
    NN_TRY(check_array(call->lse, "lse", NN_FLOAT32));
    return check_optional(call->dloss, "dloss", NN_FLOAT32);
}

}  // namespace nn

NN_API int nn_cross_entropy_forward(const nn_cross_entropy* call, nn_stream stream) {
    NN_TRY(nn::check(call));
    if (!call->rows) return NN_OK;
    NN_TRY(nn::check_array(call->loss, "loss", NN_FLOAT32));
    NN_FOR_FLOATING(call->dtype, T, return nn::forward<T>(*call, nn::native(stream)));
    return NN_OK;
}

NN_API int nn_cross_entropy_backward(const nn_cross_entropy* call, nn_stream stream) {
    NN_TRY(nn::check(call));
    if (!call->rows) return NN_OK;
    NN_TRY(nn::check_floating("gradient_dtype", call->gradient_dtype));
    NN_TRY(nn::check_array(call->dlogits, "dlogits", call->gradient_dtype));
    NN_TRY(nn::check_elements("rows", call->rows, "gradient_stride",
                              call->rows > 1 ? call->gradient_stride : 0));
    NN_REQUIRE(call->gradient_stride >= call->vocabulary || call->rows <= 1,
               "gradient_stride: %lld is below the vocabulary, %lld", (long long)call->gradient_stride,
               (long long)call->vocabulary);
    NN_REQUIRE(call->gradient_dtype == call->dtype || call->dtype == NN_FLOAT32,
               "gradient_dtype: %s for %s logits; expected the same", nn::dtype_name(call->gradient_dtype),
               nn::dtype_name(call->dtype));
    const bool alike = call->gradient_dtype == call->dtype && call->gradient_stride == call->stride;
    NN_REQUIRE(call->dlogits != call->logits || alike,
               "dlogits: in place, but of another dtype or stride than logits");
    cudaStream_t native = nn::native(stream);
    if (call->dtype == NN_FLOAT32)
        NN_FOR_FLOATING(call->gradient_dtype, G, return nn::backward<float, G>(*call, native));
    NN_FOR_FLOATING(call->dtype, T, return nn::backward<T, T>(*call, native));
    return NN_OK;
}
