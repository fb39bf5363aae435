// The next token of each row of logits.
//
// sort the row -> dual pivots, a random number of passes -> histograms of digits: the exact threshold in a
// few passes whatever the values; the first digit is spread over the usual range of logits, so that a
// shared-memory counter is seldom wanted by a whole warp, and where it is, the warp adds up first (used)
//
// One block per row.  Sums are of integers: no order of them matters, and the token is the CPU's.
#include "device/arguments.h"
#include "device/launch.h"
#include "device/philox.cuh"
#include "draw.cuh"
#include "nn/sampling.h"
#include "select.cuh"

namespace nn {

constexpr int MAX_SAMPLE_THREADS = 1024;
constexpr int64_t MAX_VOCABULARY = 262144;

// What does not change along a row.
struct Strategy {
    float temperature, penalty;
    double top_p;
    uint64_t min_weight;
    uint32_t top_k;
};

__device__ __forceinline__ void mark_history(uint32_t* seen, const nn_sample& call, int64_t b,
                                             uint32_t size) {
    const int64_t* ids = call.history + b * call.history_stride;
    int64_t length = call.lengths ? call.lengths[b] : call.history_stride;
    length = min(length, call.history_stride);
    for (uint32_t i = threadIdx.x; i < (size + 31) / 32; i += blockDim.x) seen[i] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < length; j += blockDim.x)
        if (ids[j] >= 0 && ids[j] < size) atomicOr(seen + ids[j] / 32, 1u << (ids[j] % 32));
    __syncthreads();
}

// The largest penalised logit, NaN if there is one, for all threads; of those equal to it, the lowest id.
template <class T>
__device__ __forceinline__ float largest(uint32_t& id, const Row<T>& row, float* scratch, uint32_t* lowest) {
    float top = -__builtin_huge_valf();
    uint32_t at = ~uint32_t(0);
    each(row.logits, 0, row.size, threadIdx.x, blockDim.x, [&](uint32_t i, T logit, bool valid) {
        const float x = valid ? row.penalised(i, logit) : -__builtin_huge_valf();
        if (x > top || x != x) top = x, at = i;
    });
    const float all = block_reduce<Max>(top, scratch);
    if (top != all) at = ~uint32_t(0);
    if (threadIdx.x == 0) *lowest = ~uint32_t(0);
    __syncthreads();
    if (at != ~uint32_t(0)) atomicMin(lowest, at);
    __syncthreads();
    id = *lowest;
    return all;
}

template <class T>
__global__ void __launch_bounds__(MAX_SAMPLE_THREADS)
sample_forward(const nn_sample call, const Strategy strategy, uint32_t* weights, int64_t weight_stride) {
    extern __shared__ uint32_t seen[];
    __shared__ Histogram histogram;
    __shared__ uint64_t sums[32];
    __shared__ float scratch[32];
    __shared__ uint32_t lowest;
    const int64_t b = blockIdx.x;
    const uint32_t size = uint32_t(call.vocabulary);
    Row<T> row{static_cast<const T*>(call.logits) + b * call.stride, nullptr, size, strategy.penalty, 0.0f,
               strategy.temperature};
    if (strategy.penalty != 1.0f) {
        mark_history(seen, call, b, size);
        row.seen = seen;
    }
    uint32_t token;
    row.top = largest(token, row, scratch, &lowest);
    const bool chosen = fabsf(row.top) <= 3.4028234663852886e38f;        // not NaN, not infinite
    if (!chosen || call.temperature == 0.0) {
        if (threadIdx.x == 0) {
            call.tokens[b] = chosen ? int64_t(token) : -1;
            if (call.flags) call.flags[b] = !chosen;
        }
        return;
    }
    Cut first{~uint32_t(0), ~uint32_t(0)}, nucleus = first;
    if (strategy.top_k) first = select(ByLogit<T>{row, row.logits}, size, strategy.top_k, histogram);
    weights += b * weight_stride;
    const bool filtered = strategy.top_p >= 1.0;                 // the sums below are final
    uint32_t length;
    segment_sums(sums, length, row.logits, 0, size, [&](uint32_t i, T logit, bool valid) -> uint64_t {
        if (!valid) return 0;
        const float z = row.scaled(i, logit);
        const uint64_t w = first.keeps(__float_as_uint(fabsf(z)), i) ? weight_of(z) : 0;
        weights[i] = uint32_t(w < SATURATED ? w : SATURATED);
        return filtered && w < strategy.min_weight ? 0 : w;
    });
    uint64_t total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) total += sums[w];
    const ByWeight<T> plain{row, weights, 0};
    const auto kept = [&](uint32_t i, uint32_t value) -> uint64_t {
        const uint64_t w = plain.weight(i, value);
        return w >= strategy.min_weight && nucleus.keeps(uint32_t(0) - uint32_t(w), i) ? w : 0;
    };
    const auto kept_or_zero = [&](uint32_t i, uint32_t value, bool valid) -> uint64_t {
        return valid ? kept(i, value) : 0;
    };
    if (!filtered) {
        const uint64_t need = uint64_t(ceil(strategy.top_p * double(total)));
        nucleus = select(ByWeight<T>{row, weights, (total - need) / size + 1}, size, need, histogram);
        segment_sums(sums, length, weights, 0, size, kept_or_zero);
        total = 0;
        for (uint32_t w = 0; w < blockDim.x / 32; ++w) total += sums[w];
    }
    const uint64_t key = call.keys[b * call.key_stride];
    const uint32_t stream_row = uint32_t(call.rows ? call.rows[b] : b);
    const uint32_t word = philox(key, 0, stream_row, uint32_t(call.steps[b * call.step_stride]), 0).at[0];
    uint64_t target = share(word, total);
    uint32_t begin = passing_segment(sums, target) * length, end = min(begin + length, size);
    segment_sums(sums, length, weights, begin, end, kept_or_zero);
    begin += passing_segment(sums, target) * length, end = min(begin + length, end);
    if (threadIdx.x < 32) {
        token = passing(begin, end, target, [&](uint32_t i) { return kept(i, weights[i]); });
        if (threadIdx.x == 0) {
            call.tokens[b] = token;
            if (call.flags) call.flags[b] = 0;
        }
    }
}

template <class T>
static int launch_sample(const nn_sample& call, const Strategy& strategy, uint32_t* weights,
                         cudaStream_t stream) {
    const int64_t wanted = ceil_div(call.vocabulary, 4 * 32) * 32;
    const unsigned threads = unsigned(wanted < MAX_SAMPLE_THREADS ? wanted : MAX_SAMPLE_THREADS);
    const size_t bits = strategy.penalty != 1.0f ? size_t(ceil_div(call.vocabulary, 32)) * 4 : 0;
    sample_forward<T>
        <<<unsigned(call.batch), threads, bits, stream>>>(call, strategy, weights, call.vocabulary);
    return launched("sample_forward");
}

static int check(const nn_sample* call) {
    NN_REQUIRE(call && call->size == sizeof(nn_sample), "call: null, or its size is not sizeof(nn_sample)");
    NN_REQUIRE(call->batch >= 0 && call->batch <= MAX_GRID_X, "batch: %lld is not in 0 ... 2^31 - 1",
               (long long)call->batch);
    NN_REQUIRE(call->vocabulary > 0, "vocabulary: %lld is not positive", (long long)call->vocabulary);
    NN_SUPPORT(call->vocabulary <= MAX_VOCABULARY, "vocabulary: %lld is above %lld",
               (long long)call->vocabulary,
               (long long)MAX_VOCABULARY);
    NN_REQUIRE(call->stride >= call->vocabulary || call->batch <= 1,
               "stride: %lld is below the vocabulary, %lld",
               (long long)call->stride, (long long)call->vocabulary);
    NN_REQUIRE(call->temperature >= 0 && call->temperature <= 1e30, "temperature: %g is not in 0 ... 1e30",
               call->temperature);
    NN_REQUIRE(call->top_k >= 0, "top_k: %lld is negative", (long long)call->top_k);
    NN_REQUIRE(call->top_p > 0 && call->top_p <= 1, "top_p: %g is not in (0, 1]", call->top_p);
    NN_REQUIRE(call->min_p >= 0 && call->min_p <= 1, "min_p: %g is not in [0, 1]", call->min_p);
    NN_REQUIRE(call->repetition_penalty > 0, "repetition_penalty: %g is not positive",
               call->repetition_penalty);
    NN_REQUIRE((call->key_stride | call->step_stride | 1) == 1, "key_stride or step_stride: not 0 or 1");
    NN_TRY(check_elements("batch", call->batch, "history_stride", call->history_stride));
    NN_TRY(check_elements("batch", call->batch, "stride", call->batch > 1 ? call->stride : 0));
    NN_TRY(check_floating("dtype", call->dtype));
    if (!call->batch) return NN_OK;
    NN_TRY(check_array(call->tokens, "tokens", NN_INT64));
    NN_TRY(check_array(call->logits, "logits", call->dtype));
    NN_TRY(check_optional(call->flags, "flags", NN_INT32));
    NN_TRY(check_optional(call->history, "history", NN_INT64));
    NN_TRY(check_optional(call->lengths, "lengths", NN_INT64));
    NN_TRY(check_optional(call->keys, "keys", NN_INT64));
    NN_TRY(check_optional(call->rows, "rows", NN_INT64));
    NN_TRY(check_optional(call->steps, "steps", NN_INT64));
    NN_REQUIRE(call->temperature == 0 || (call->keys && call->steps),
               "keys or steps: a null pointer; they are in device memory");
    return NN_OK;
}

}  // namespace nn

NN_API int64_t nn_sample_workspace_size(int64_t batch, int64_t vocabulary, double temperature) {
    return temperature > 0 && batch > 0 && vocabulary > 0 ? 4 * batch * vocabulary : 0;
}

NN_API int nn_sample_forward(const nn_sample* call, void* workspace, int64_t workspace_bytes,
                             nn_stream stream) {
    NN_TRY(nn::check(call));
    if (!call->batch) return NN_OK;
    const int64_t needed = nn_sample_workspace_size(call->batch, call->vocabulary, call->temperature);
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, needed));
    nn::Strategy strategy{};
    // smallest number that no hardware flushes to 0
    const double tiny = 1.17549435082228751e-38;
    strategy.temperature = float(call->temperature > tiny ? call->temperature : tiny);
    strategy.penalty = call->history && call->history_stride ? float(call->repetition_penalty) : 1.0f;
    strategy.top_p = call->top_p;
    strategy.min_weight = uint64_t(__builtin_rint(call->min_p * 4294967296.0));
    strategy.top_k = uint32_t(call->top_k < call->vocabulary ? call->top_k : 0);
    uint32_t* weights = static_cast<uint32_t*>(workspace);
    NN_FOR_FLOATING(call->dtype, T, return nn::launch_sample<T>(*call, strategy, weights,
                                                                nn::native(stream)));
    return NN_OK;
}
