// Softmax and top-k of a router's logits, and their backward.
//
// a sort per token -> one thread per token -> 8 ... 32 lanes per token, logits in registers as integers in
// the order of the numbers, k times the largest of the lanes' largest (used up to 1,024 experts and k = 64)
// -> beyond: a block per token that looks k times for the largest logit behind the last one (used)
#include "device/arguments.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/reduce.cuh"
#include "nn/router.h"

namespace nn {

constexpr int ROUTER_THREADS = 128, ROUTER_MAX_EXPERTS = 1024, ROUTER_MAX_K = 64;

struct Router {
    float *weights, *probs;
    void* experts;
    int64_t tokens, num_experts, k;
    bool renormalize, wide;              // wide: experts are int64
};

__device__ __forceinline__ void put_expert(const Router& a, int64_t at, int64_t expert) {
    if (a.wide) static_cast<int64_t*>(a.experts)[at] = expert;
    else static_cast<int32_t*>(a.experts)[at] = static_cast<int32_t>(expert);
}

// Integers in the order of the numbers: equal for 0 and -0; 1 for NaN, below -inf; never 0, which is
// "nothing".
__device__ __forceinline__ unsigned ordered(float x) {
    if (x != x) return 1;
    const int bits = __float_as_int(x + 0.0f);
    return bits < 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(unsigned key) {
    if (key == 1) return __int_as_float(0x7fffffff);
    return __int_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Candidate {
    unsigned key;
    int64_t expert;
};

// The larger one; of equals the lower expert
template <class Index>
__device__ __forceinline__ bool beats(unsigned key, Index expert, unsigned other, Index other_expert) {
    return key > other || (key == other && expert < other_expert);
}

struct Largest {                         // NaN loses: it reaches the sum by itself
    static constexpr float identity = -__builtin_huge_valf();
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

__device__ __forceinline__ float finite_or_zero(float x) { return x == Largest::identity ? 0.0f : x; }
__device__ __forceinline__ float quotient(float a, float b) { return b == 0.0f ? 0.0f : a / b; }

// `width` lanes per token, P logits per lane: experts lane, lane + width, ...
template <class T, int P>
__global__ void __launch_bounds__(ROUTER_THREADS) router_topk(Router a, const T* logits, int width) {
    const int lane = threadIdx.x % width, group = threadIdx.x / width, groups = ROUTER_THREADS / width;
    const int experts = static_cast<int>(a.num_experts), k = static_cast<int>(a.k);
    const int64_t stride = int64_t{gridDim.x} * groups;
    for (int64_t first = int64_t{blockIdx.x} * groups; first < a.tokens; first += stride) {
        const int64_t token = first + group, begin = token * experts + lane;
        // what is left to this lane: experts 0, width, ...
        const int end = token < a.tokens ? experts - lane : 0;
        T raw[P];
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * width < end) raw[p] = logits[begin + p * width];
        unsigned keys[P];
        float largest = Largest::identity, sum = 0.0f;
#pragma unroll
        for (int p = 0; p < P; ++p) {
            const float x = p * width < end ? to_float(raw[p]) : Largest::identity;
            keys[p] = p * width < end ? ordered(x) : 0;
            largest = fmaxf(largest, x);
        }
        largest = finite_or_zero(lanes_reduce<Largest>(largest, width));
#pragma unroll
        for (int p = 0; p < P; ++p)
            if (p * width < end) sum += exp_fast(to_float(raw[p]) - largest);
        sum = lanes_reduce<Sum>(sum, width);
        if (a.probs) {
            const float scale = quotient(1.0f, sum);
#pragma unroll
            for (int p = 0; p < P; ++p)
                if (p * width < end)
                    a.probs[begin + p * width] = exp_fast(to_float(raw[p]) - largest) * scale;
        }
        float chosen = 0.0f, early = 0.0f, late = 0.0f;          // of round `lane`, of round `lane + width`
        int early_expert = 0, late_expert = 0;
        for (int round = 0; round < k; ++round) {
            unsigned best = 0;
            int at = 0;
#pragma unroll
            for (int p = 0; p < P; ++p)
                if (keys[p] > best) best = keys[p], at = p;
            unsigned key = best;
            int expert = at * width + lane;
            for (int offset = width / 2; offset > 0; offset /= 2) {
                const unsigned other = __shfl_xor_sync(ALL_LANES, key, offset);
                const int other_expert = __shfl_xor_sync(ALL_LANES, expert, offset);
                if (beats(other, other_expert, key, expert)) key = other, expert = other_expert;
            }
            if (expert % width == lane) {
#pragma unroll
                for (int p = 0; p < P; ++p) keys[p] = p == expert / width ? 0 : keys[p];
            }
            const float e = exp_fast(unordered(key) - largest);
            chosen += e;
            if (round == lane) early = e, early_expert = expert;
            if (round == lane + width) late = e, late_expert = expert;
        }
        const float total = a.renormalize && sum == sum ? chosen : sum;      // NaN wherever it is
        if (token >= a.tokens) continue;
        if (lane < k) {
            a.weights[token * k + lane] = quotient(early, total);
            put_expert(a, token * k + lane, early_expert);
        }
        if (lane + width < k) {
            a.weights[token * k + lane + width] = quotient(late, total);
            put_expert(a, token * k + lane + width, late_expert);
        }
    }
}

__device__ __forceinline__ Candidate block_best(Candidate mine, Candidate* scratch) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const Candidate other{__shfl_xor_sync(ALL_LANES, mine.key, offset),
                              __shfl_xor_sync(ALL_LANES, mine.expert, offset)};
        if (beats(other.key, other.expert, mine.key, mine.expert)) mine = other;
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = scratch[0];
    for (int i = 1; i < ROUTER_THREADS / 32; ++i)
        if (beats(scratch[i].key, scratch[i].expert, mine.key, mine.expert)) mine = scratch[i];
    __syncthreads();
    return mine;
}

// A block per token, any number of experts, any k; weights holds exponentials until their sum is known
template <class T>
__global__ void __launch_bounds__(ROUTER_THREADS, 2) router_topk_general(Router a, const T* logits) {
    __shared__ float scratch[32];
    __shared__ Candidate candidates[ROUTER_THREADS / 32];
    for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
        const T* row = logits + token * a.num_experts;
        float largest = Largest::identity, sum = 0.0f;
        for (int64_t e = threadIdx.x; e < a.num_experts; e += ROUTER_THREADS)
            largest = fmaxf(largest, to_float(row[e]));
        largest = finite_or_zero(block_reduce<Largest>(largest, scratch));
        for (int64_t e = threadIdx.x; e < a.num_experts; e += ROUTER_THREADS)
            sum += exp_fast(to_float(row[e]) - largest);
        sum = block_reduce<Sum>(sum, scratch);
        if (a.probs) {
            const float scale = quotient(1.0f, sum);
            for (int64_t e = threadIdx.x; e < a.num_experts; e += ROUTER_THREADS)
                a.probs[token * a.num_experts + e] = exp_fast(to_float(row[e]) - largest) * scale;
        }
        Candidate last{0xffffffffu, -1};
        float chosen = 0.0f;
        for (int64_t round = 0; round < a.k; ++round) {
            Candidate best{0, a.num_experts};
            for (int64_t e = threadIdx.x; e < a.num_experts; e += ROUTER_THREADS) {
                const unsigned key = ordered(to_float(row[e]));
                const bool open = beats(last.key, last.expert, key, e);        // not chosen yet
                if (open && beats(key, e, best.key, best.expert)) best = {key, e};
            }
            last = block_best(best, candidates);
            const float e = exp_fast(unordered(last.key) - largest);
            chosen += e;
            if (threadIdx.x == 0) {
                a.weights[token * a.k + round] = e;
                put_expert(a, token * a.k + round, last.expert);
            }
        }
        __syncthreads();
        const float total = a.renormalize && sum == sum ? chosen : sum;      // NaN wherever it is
        for (int64_t round = threadIdx.x; round < a.k; round += ROUTER_THREADS)
            a.weights[token * a.k + round] = quotient(a.weights[token * a.k + round], total);
    }
}

__device__ __forceinline__ int64_t get_expert(const void* experts, int64_t at, bool wide) {
    return wide ? static_cast<const int64_t*>(experts)[at] : static_cast<const int32_t*>(experts)[at];
}

// `width` lanes per token; a lane holds one choice at a time and offers it to all
__global__ void __launch_bounds__(ROUTER_THREADS)
    router_topk_backward(float* dlogits, const float* dweights, const float* weights, const void* experts,
                         const float* probs, int64_t tokens, int64_t num_experts, int64_t k,
                             bool renormalize, bool wide,
                         int width) {
    const int lane = threadIdx.x % width, group = threadIdx.x / width, groups = ROUTER_THREADS / width;
    for (int64_t first = int64_t{blockIdx.x} * groups; first < tokens; first += int64_t{gridDim.x} * groups) {
        const int64_t token = first + group, choices = token * k;
        const bool active = token < tokens;
        float mean = 0.0f;
        for (int64_t i = lane; i < k; i += width)
            if (active) mean += weights[choices + i] * dweights[choices + i];
        mean = lanes_reduce<Sum>(mean, width);
        for (int64_t start = 0; start < num_experts; start += width) {
            const int64_t e = start + lane;
            const bool mine = active && e < num_experts;
            float gradient = mine && !renormalize ? -probs[token * num_experts + e] * mean : 0.0f;
            for (int64_t base = 0; base < k; base += width) {
                const bool holds = active && base + lane < k;
                const int64_t at = choices + base + lane;
                const int64_t expert = holds ? get_expert(experts, at, wide) : -1;
                const float slope = holds ? weights[at] * (dweights[at] - (renormalize ? mean : 0.0f)) : 0.0f;
                const int count = static_cast<int>(k - base < width ? k - base : width);
                for (int i = 0; i < count; ++i) {
                    const int64_t chosen = __shfl_sync(ALL_LANES, expert, i, width);
                    const float value = __shfl_sync(ALL_LANES, slope, i, width);
                    if (chosen == e) gradient += value;
                }
            }
            if (mine) dlogits[token * num_experts + e] = gradient;
        }
    }
}

static int lanes_for(int64_t experts) { return experts <= 8 ? 8 : experts <= 16 ? 16 : 32; }

static unsigned router_grid(int64_t tokens, int64_t per_block) {
    const int64_t blocks = ceil_div(tokens, per_block);
    return static_cast<unsigned>(blocks < MAX_GRID_X ? blocks : MAX_GRID_X);
}

template <class T> static int launch_router(const Router& a, const T* logits, nn_stream stream) {
    if (a.num_experts > ROUTER_MAX_EXPERTS || a.k > ROUTER_MAX_K) {
        router_topk_general<T><<<router_grid(a.tokens, 1), ROUTER_THREADS, 0, native(stream)>>>(a, logits);
        return launched("router_topk_general");
    }
    const int width = lanes_for(a.num_experts);
    auto kernel = a.num_experts <= 2 * width ? router_topk<T, 2>
                : a.num_experts <= 8 * width ? router_topk<T, 8> : router_topk<T, 32>;
    kernel<<<router_grid(a.tokens, ROUTER_THREADS / width), ROUTER_THREADS, 0, native(stream)>>>(a, logits,
                                                                                                 width);
    return launched("router_topk");
}

static int check_routing(int64_t tokens, int64_t num_experts, int64_t k, int32_t renormalize,
                         int32_t experts_dtype) {
    NN_TRY(check_count("tokens", tokens));
    NN_REQUIRE(num_experts > 0 && num_experts <= 2147483647, "num_experts: %lld is not in 1 ... 2^31 - 1",
               (long long)num_experts);
    NN_REQUIRE(tokens <= MAX_ELEMENTS / num_experts, "tokens: %lld times num_experts %lld is over 2^60",
               (long long)tokens, (long long)num_experts);
    NN_REQUIRE(k > 0 && k <= num_experts, "k: %lld is not in 1 ... num_experts = %lld", (long long)k,
               (long long)num_experts);
    NN_REQUIRE(renormalize == 0 || renormalize == 1, "renormalize: %d is neither 0 nor 1", (int)renormalize);
    return check_index("experts_dtype", experts_dtype);
}

}  // namespace nn

NN_API int nn_router_topk_forward(float* weights, void* experts, float* probs, const void* logits,
                                  int64_t tokens, int64_t num_experts, int64_t k, int32_t renormalize,
                                  int32_t experts_dtype, int32_t dtype, nn_stream stream) {
    NN_TRY(nn::check_routing(tokens, num_experts, k, renormalize, experts_dtype));
    NN_TRY(nn::check_floating("dtype", dtype));
    if (tokens == 0) return NN_OK;
    NN_TRY(nn::check_array(weights, "weights", NN_FLOAT32));
    NN_TRY(nn::check_array(experts, "experts", experts_dtype));
    if (probs) NN_TRY(nn::check_array(probs, "probs", NN_FLOAT32));
    NN_TRY(nn::check_array(logits, "logits", dtype));
    const nn::Router a{weights, probs, experts, tokens, num_experts, k, renormalize == 1,
                       experts_dtype == NN_INT64};
    NN_FOR_FLOATING(dtype, T, return nn::launch_router<T>(a, static_cast<const T*>(logits), stream));
    return NN_OK;
}

NN_API int nn_router_topk_backward(float* dlogits, const float* dweights, const float* weights,
                                   const void* experts, const float* probs, int64_t tokens,
                                   int64_t num_experts, int64_t k, int32_t renormalize, int32_t experts_dtype,
                                   nn_stream stream) {
    NN_TRY(nn::check_routing(tokens, num_experts, k, renormalize, experts_dtype));
    if (tokens == 0) return NN_OK;
    NN_TRY(nn::check_array(dlogits, "dlogits", NN_FLOAT32));
    NN_TRY(nn::check_array(dweights, "dweights", NN_FLOAT32));
    NN_TRY(nn::check_array(weights, "weights", NN_FLOAT32));
    NN_TRY(nn::check_array(experts, "experts", experts_dtype));
    if (renormalize == 0) NN_TRY(nn::check_array(probs, "probs", NN_FLOAT32));
    const int width = nn::lanes_for(num_experts);
    nn::router_topk_backward<<<nn::router_grid(tokens, nn::ROUTER_THREADS / width), nn::ROUTER_THREADS, 0,
                               nn::native(stream)>>>(dlogits, dweights, weights, experts, probs, tokens,
                                                     num_experts,
                                                     k, renormalize == 1, experts_dtype == NN_INT64, width);
    return nn::launched("router_topk_backward");
}
