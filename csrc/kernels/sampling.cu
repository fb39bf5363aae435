// The next token of each row of logits.
//
// sort the row -> dual pivots, a random number of passes -> histograms of digits: the exact threshold in a
// few passes whatever the values; the first digit is spread over the usual range of logits, so that a
// shared-memory counter is seldom wanted by a whole warp, and where it is, the warp adds up first (used)
//
// One block per row.  Sums are of integers: no order of them matters, and the token is the CPU's.
#include "device/arguments.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/philox.cuh"
#include "device/reduce.cuh"
#include "nn/sampling.h"

namespace nn {

constexpr int MAX_SAMPLE_THREADS = 1024, BINS = 1024, BIN_BITS = 10, IN_FLIGHT = 4;
constexpr int64_t MAX_VOCABULARY = 262144;
constexpr uint32_t SATURATED = 0xffffffffu;

// ---- one row ----------------------------------------------------------------------------------------------

// The logits of a row as the draw sees them.
template <class T> struct Row {
    const T* logits;
    const uint32_t* seen;            // one bit per id of the history; null: no penalty
    uint32_t size;
    float penalty, top, temperature;

    __device__ __forceinline__ float penalised(uint32_t i, T logit) const {
        const float x = to_float(logit);
        if (!seen || !(seen[i / 32] >> (i % 32) & 1)) return x;
        return x < 0.0f ? x * penalty : x / penalty;
    }
    __device__ __forceinline__ float scaled(uint32_t i, T logit) const {
        return (penalised(i, logit) - top) / temperature;
    }
};

// round(exp(z) 2^32) for z <= 0; below -22.9 that is 0.
__device__ __forceinline__ uint64_t weight_of(float z) {
    return z < -22.9f ? 0 : __double2ull_rn(exp(double(z)) * 4294967296.0);
}

// The chosen set's end: tokens in order of (key, id) up to and including this pair.  Keys rise as likelihood
// falls.
struct Cut {
    uint32_t key, id;
    __device__ __forceinline__ bool keeps(uint32_t k, uint32_t i) const {
        return k < key || (k == key && i <= id);
    }
};

// f(i, values[i], valid) for every i of begin ... end - 1, by `threads` threads, of which this is `thread`; a
// warp's lanes come together, the idle ones with valid = false.
template <class V, class F>
__device__ __forceinline__ void each(const V* values, uint32_t begin, uint32_t end, uint32_t thread,
                                     uint32_t threads, F f) {
    for (uint32_t base = begin; base < end; base += threads * IN_FLIGHT) {
        V some[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const uint32_t i = base + j * threads + thread;
            some[j] = values[i < end ? i : begin];
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            const uint32_t i = base + j * threads + thread;
            f(i, some[j], i < end);
        }
    }
}

// ---- histograms -------------------------------------------------------------------------------------------

// Counters of 64 bits in two words: hardware adds to words at once, to double words by trying again and
// again.
struct Histogram {
    uint32_t low[BINS], high[BINS];
    uint64_t before, inside;         // what find() found
    uint32_t bin;

    __device__ __forceinline__ void clear() {
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) low[i] = high[i] = 0;
        __syncthreads();
    }
    __device__ __forceinline__ void add_one(uint32_t bin, uint64_t amount) {
        const uint32_t part = uint32_t(amount), old = atomicAdd(low + bin, part);
        const uint32_t carried = uint32_t(amount >> 32) + (old + part < old);
        if (carried) atomicAdd(high + bin, carried);
    }
    // By whole warps: where all lanes want one bin, one of them adds for all.
    __device__ __forceinline__ void add(uint32_t bin, uint64_t amount, bool valid) {
        const unsigned voters = __ballot_sync(ALL_LANES, valid);
        if (!voters) return;
        const int leader = __ffs(voters) - 1;
        const uint32_t first = __shfl_sync(ALL_LANES, bin, leader);
        if (__all_sync(ALL_LANES, !valid || bin == first)) {
            if (!valid) amount = 0;
#pragma unroll
            for (int offset = 16; offset > 0; offset /= 2)
                amount += __shfl_xor_sync(ALL_LANES, amount, offset);
            if (int(threadIdx.x % 32) == leader) add_one(first, amount);
        } else if (valid) {
            add_one(bin, amount);
        }
    }
    // The first bin up to which there are at least `need`.
    __device__ __forceinline__ void find(uint64_t need) {
        __syncthreads();
        if (threadIdx.x < 32) {
            uint64_t sum = 0;
            for (int base = 0; base < BINS; base += 32) {
                const uint64_t own = uint64_t(high[base + threadIdx.x]) << 32 | low[base + threadIdx.x];
                uint64_t running = own;
#pragma unroll
                for (int offset = 1; offset < 32; offset *= 2) {
                    const uint64_t left = __shfl_up_sync(ALL_LANES, running, offset);
                    if (int(threadIdx.x) >= offset) running += left;
                }
                const unsigned reached = __ballot_sync(ALL_LANES, sum + running >= need);
                if (reached) {
                    if (int(threadIdx.x) == __ffs(reached) - 1)
                        bin = base + threadIdx.x, before = sum + running - own, inside = own;
                    break;
                }
                sum += __shfl_sync(ALL_LANES, running, 31);
            }
        }
        __syncthreads();
    }
};

// ---- keys -------------------------------------------------------------------------------------------------

// Top-k: by scaled logit, which is at most 0.  Its bits without the sign rise as it falls.
template <class T> struct ByLogit {
    using Value = T;
    const Row<T>& row;
    const T* values;

    __device__ __forceinline__ bool key(uint32_t i, T value, uint32_t& key, uint64_t& amount) const {
        key = __float_as_uint(fabsf(row.scaled(i, value))), amount = 1;
        return true;
    }
    static __device__ __forceinline__ uint32_t bin(uint32_t key) {
        return uint32_t(fminf(__uint_as_float(key) * 32.0f, float(BINS - 1)));
    }
    static __device__ __forceinline__ void range(uint32_t bin, uint32_t& low, uint32_t& high) {
        low = __float_as_uint(float(bin) * 0.03125f);
        high = bin == BINS - 1 ? 0x7f800000u : __float_as_uint(float(bin + 1) * 0.03125f) - 1;
    }
};

// Top-p: by weight w in 1 ... 2^32, key 2^32 - w.  Bins: 32 to an octave.
template <class T> struct ByWeight {
    using Value = uint32_t;
    const Row<T>& row;
    const uint32_t* values;
    uint64_t least;                  // no lighter token can be needed

    __device__ __forceinline__ uint64_t weight(uint32_t i, uint32_t value) const {
        return value != SATURATED ? value : weight_of(row.scaled(i, row.logits[i]));
    }
    __device__ __forceinline__ bool key(uint32_t i, uint32_t value, uint32_t& key, uint64_t& amount) const {
        amount = weight(i, value), key = uint32_t(0) - uint32_t(amount);
        return amount >= least;
    }
    static constexpr uint32_t LAST = 28 * 32;                    // of 2^32, in order of rising weight
    static __device__ __forceinline__ uint32_t bin(uint32_t key) {
        const uint64_t w = (uint64_t(1) << 32) - key;
        const int octave = 63 - __clzll(int64_t(w));
        if (octave < 5) return LAST - uint32_t(w);
        return LAST - (uint32_t(octave - 4) << 5 | (uint32_t(w >> (octave - 5)) & 31));
    }
    static __device__ __forceinline__ void range(uint32_t bin, uint32_t& low, uint32_t& high) {
        const uint32_t rising = LAST - bin;
        const int shift = rising < 32 ? 0 : int(rising >> 5) - 1;
        const uint64_t lightest = uint64_t(rising < 32 ? rising : (rising & 31) | 32) << shift;
        const uint64_t heaviest = rising == LAST ? lightest : lightest + (uint64_t(1) << shift) - 1;
        low = uint32_t((uint64_t(1) << 32) - heaviest), high = uint32_t((uint64_t(1) << 32) - lightest);
    }
};

__device__ __forceinline__ int digit_shift(uint32_t span) {
    const int bits = 32 - __clz(int(span));
    return bits > BIN_BITS ? bits - BIN_BITS : 0;
}

// The end of the shortest prefix, in order of (key, id), that holds at least `need`.
template <class Keys> __device__ Cut select(const Keys& keys, uint32_t size, uint64_t need,
                                            Histogram& histogram) {
    const uint32_t all = ~uint32_t(0);
    uint32_t low = 0, high = all;
    // digits of keys, the first one spread
    for (bool first = true; first || low < high; first = false) {
        const int shift = first ? 0 : digit_shift(high - low);
        histogram.clear();
        each(keys.values, 0, size, threadIdx.x, blockDim.x,
             [&](uint32_t i, typename Keys::Value value, bool valid) {
            uint32_t key = 0;
            uint64_t amount = 0;
            valid = valid && keys.key(i, value, key, amount) && key >= low && key <= high;
            histogram.add(first ? Keys::bin(key) : (key - low) >> shift, amount, valid);
        });
        histogram.find(need);
        const uint64_t before = histogram.before, inside = histogram.inside;
        const uint32_t bin = histogram.bin;
        need -= before;
        if (first) {
            Keys::range(bin, low, high);
        } else {
            low += bin << shift;
            high = min(high, low + ((uint32_t(1) << shift) - 1));
        }
        if (inside == need) return {high, all};
    }
    // equal keys: digits of ids
    const uint32_t tied = low;
    low = 0, high = size - 1;
    while (low < high) {
        const int shift = digit_shift(high - low);
        histogram.clear();
        each(keys.values, 0, size, threadIdx.x, blockDim.x,
             [&](uint32_t i, typename Keys::Value value, bool valid) {
            uint32_t key = 0;
            uint64_t amount = 0;
            valid = valid && i >= low && i <= high && keys.key(i, value, key, amount) && key == tied;
            histogram.add((i - low) >> shift, amount, valid);
        });
        histogram.find(need);
        need -= histogram.before;
        low += histogram.bin << shift;
        high = min(high, low + ((uint32_t(1) << shift) - 1));
        if (histogram.inside == need) break;
    }
    return {tied, high};
}

// ---- the draw ---------------------------------------------------------------------------------------------

// Sums of weight(i, value, valid) over begin ... end - 1, cut into one segment per warp; *length: of a
// segment.
template <class V, class F>
__device__ __forceinline__ void segment_sums(uint64_t* sums, uint32_t& length, const V* values,
                                             uint32_t begin, uint32_t end, F weight) {
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    length = ((end - begin + warps - 1) / warps + 31) / 32 * 32;
    const uint32_t from = min(begin + warp * length, end), to = min(from + length, end);
    uint64_t sum = 0;
    each(values, from, to, lane, 32,
         [&](uint32_t i, V value, bool valid) { sum += weight(i, value, valid); });
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    __syncthreads();
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
}

// The segment in which the running total passes `target`; target becomes relative to it.
__device__ __forceinline__ uint32_t passing_segment(const uint64_t* sums, uint64_t& target) {
    uint32_t segment = 0;
    const uint32_t warps = blockDim.x / 32;
    for (; segment + 1 < warps && target >= sums[segment]; ++segment) target -= sums[segment];
    return segment;
}

// The first i of begin ... end - 1 at which the running total exceeds target; by one warp, for all its lanes.
template <class F>
__device__ __forceinline__ uint32_t passing(uint32_t begin, uint32_t end, uint64_t target, F weight) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = begin; base < end; base += 32) {
        uint64_t running = base + lane < end ? weight(base + lane) : 0;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const uint64_t left = __shfl_up_sync(ALL_LANES, running, offset);
            if (int(lane) >= offset) running += left;
        }
        const unsigned passed = __ballot_sync(ALL_LANES, running > target);
        if (passed) return base + __ffs(passed) - 1;
        target -= __shfl_sync(ALL_LANES, running, 31);
    }
    return end - 1;                                              // not reached: the target is below the total
}

// floor(word total / 2^32)
__device__ __forceinline__ uint64_t share(uint32_t word, uint64_t total) {
    return word * (total >> 32) + (word * (total & 0xffffffffu) >> 32);
}

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

__global__ void __launch_bounds__(256)
random_bits(uint32_t* out, const uint64_t* key, const int64_t* words, int64_t count) {
    const int64_t block = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (4 * block >= count) return;
    const Words drawn = philox(*key, uint32_t(block), uint32_t(words[0]), uint32_t(words[1]),
                               uint32_t(words[2]));
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (4 * block + i < count) out[4 * block + i] = drawn.at[i];
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

NN_API int nn_random_bits(uint32_t* out, const uint64_t* key, const int64_t* words, int64_t count,
                          nn_stream stream) {
    NN_REQUIRE(count >= 0 && count <= (int64_t(1) << 34), "count: %lld is not in 0 ... 2^34",
               (long long)count);
    if (!count) return NN_OK;
    NN_TRY(nn::check_array(out, "out", NN_UINT32));
    NN_TRY(nn::check_array(key, "key", NN_INT64));
    NN_TRY(nn::check_array(words, "words", NN_INT64));
    const unsigned blocks = unsigned(nn::ceil_div(count, 1024));
    nn::random_bits<<<blocks, 256, 0, nn::native(stream)>>>(out, key, words, count);
    return nn::launched("random_bits");
}
