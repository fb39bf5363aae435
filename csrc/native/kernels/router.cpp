// The router of a mixture of experts: top-k, its losses, the noise on its inputs.
//     p = softmax(z), the k largest of z (ties: lowest index), w = p_sel / sum p_sel
//     balance   a E sum_e load_e mean p_e;   z-loss   b mean lse^2
//     jitter    y = x (1 - e + 2 e u), u by Philox 4x32-10 (Salmon et al. 2011) as nn/random.py lays it out
#include "kernels/indices.h"
#include "kernels/row_math.h"

namespace nn::NN_LEVEL {

constexpr double exp_bytes = 6;

// The k largest, by falling value, then rising index.  `values` holds no NaN before, and NaN at those chosen
// after.
static inline void choose_largest(int64_t* chosen, float* values, int64_t count, int64_t k) {
    for (int64_t i = 0; i < k; ++i) {
        int64_t best = -1;
        for (int64_t e = 0; e < count; ++e)
            if (values[e] == values[e] && (best < 0 || values[e] > values[best])) best = e;
        chosen[i] = best;
        values[best] = NAN;
    }
}

template <class T>
static inline void softmax_row(float* y, const T* x, int64_t cols) {
    const float most = finite_max(row_max(cols, [&](int64_t i, auto n) { return get(x + i, n); }));
    const float total = row_sum(cols, [&](int64_t i, auto n) {
        Vec e = exp(get(x + i, n) - most);
        if ((int64_t)n != width) e = first_lanes(e, n, Vec{});
        put(y + i, n, e);
        return e;
    });
    const float scale = total == 0.0f ? 1.0f : total;
    registers(cols, [&](int64_t i, auto n) { put(y + i, n, get(y + i, n) / scale); });
}

template <class T>
static bool router_topk(const Call& call) {
    const auto weights = rows<float>(call, 0), probs = rows<float>(call, 2);
    const auto experts = rows<int64_t>(call, 1);
    const auto logits = rows<const T>(call, 3);
    const bool renormalize = number(call, 1) != 0.0;
    const int64_t k = weights.cols, count = logits.cols;
    if (k > count) return false;
    const double bytes = (double)count * (exp_bytes + 8 + 2 * (double)k);
    parallel_for(logits.rows, bytes, [&](int64_t begin, int64_t end) {
        const Scratch<float> values(count);
        for (int64_t r = begin; r < end; ++r) {
            softmax_row(probs[r], logits[r], count);
            registers(count, [&](int64_t i, auto n) {
                const Vec z = get(logits[r] + i, n);
                put(values + i, n, z == z ? z : set(-INFINITY));
            });
            choose_largest(experts[r], values.data, count, k);
            float total = 0.0f;
            for (int64_t i = 0; i < k; ++i) total += weights[r][i] = probs[r][experts[r][i]];
            if (renormalize)
                for (int64_t i = 0; i < k; ++i) weights[r][i] /= total;
        }
    });
    return true;
}
NN_KERNEL(
    "router_topk(logits[N,E], k; renormalize=True) -> weights[N,K]:float, experts[N,K]:int, "
    "probs[N,E]:float",
    router_topk, float, bf16)

template <class T>
static bool router_topk_backward(const Call& call) {
    const auto dlogits = rows<T>(call, 0);
    const auto dweights = rows<const T>(call, 1), weights = rows<const T>(call, 2);
    const Array& experts = call.array[3];
    const auto probs = rows<const T>(call, 4);
    const bool renormalize = number(call, 0) != 0.0;
    const int64_t k = weights.cols, count = probs.cols;
    parallel_for(probs.rows, (double)(count + 2 * k) * 8, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            float mean = 0.0f;
            for (int64_t i = 0; i < k; ++i) mean += weights[r][i] * dweights[r][i];
            registers(count, [&](int64_t i, auto n) {
                put(dlogits[r] + i, n, renormalize ? Vec{} : -(get(probs[r] + i, n) * mean));
            });
            const Ints chosen = int_row(experts, r);
            for (int64_t i = 0; i < k; ++i) {
                const float slope = renormalize ? dweights[r][i] - mean : dweights[r][i];
                if ((uint64_t)chosen[i] < (uint64_t)count) dlogits[r][chosen[i]] += weights[r][i] * slope;
            }
        }
    });
    return true;
}
NN_KERNEL(
    "router_topk_backward(dweights[N,K], weights[N,K], experts[N,K]:int, probs[N,E]; renormalize=True) "
    "-> dlogits[N,E]",
    router_topk_backward, float)

template <class T>
static bool moe_balance_loss(const Call& call) {
    const auto loss = flat<float>(call, 0), load = flat<float>(call, 1);
    const auto probs = rows<const T>(call, 2);
    const Array& experts = call.array[3];
    const int64_t tokens = probs.rows, count = probs.cols, blocks = block_count(tokens);
    const Scratch<float> sums(blocks * count);
    for_blocks(tokens, (double)count * 2 * sizeof(T), [&](int64_t block, int64_t begin, int64_t end) {
        float* const own = sums + block * count;
        for (int64_t e = 0; e < count; ++e) own[e] = 0.0f;
        for (int64_t r = begin; r < end; ++r)
            registers(count,
                      [&](int64_t i, auto n) { put(own + i, n, get(own + i, n) + get(probs[r] + i, n)); });
    });
    const Scratch<int64_t> pairs(count);
    for (int64_t e = 0; e < count; ++e) pairs[e] = 0;
    for (int64_t r = 0; r < tokens; ++r) {
        const Ints chosen = int_row(experts, r);
        for (int64_t i = 0; i < chosen.size; ++i)
            if ((uint64_t)chosen[i] < (uint64_t)count) ++pairs[chosen[i]];
    }
    const double each = tokens > 0 ? (double)tokens : 1.0;
    double total = 0.0;
    for (int64_t e = 0; e < count; ++e) {
        double mean = 0.0;
        for (int64_t block = 0; block < blocks; ++block) mean += (double)sums[block * count + e];
        const double share = (double)pairs[e] / (each * (double)experts.shape[1]);
        load[e] = (float)share;
        total += mean / each * share;
    }
    loss[0] = (float)(total * number(call, 0) * (double)count);
    return true;
}
NN_KERNEL("moe_balance_loss(probs[N,E], experts[N,K]:int, coefficient) -> loss[1]:float, load[E]:float",
          moe_balance_loss, float, bf16)

template <class T>
static bool moe_balance_loss_backward(const Call& call) {
    const auto dprobs = rows<float>(call, 0);
    const auto dloss = flat<const T>(call, 1), load = flat<const T>(call, 2);
    const double tokens = number(call, 0) > 1.0 ? number(call, 0) : 1.0;
    const float factor = (float)((double)dloss[0] * number(call, 1) * (double)load.size / tokens);
    parallel_for(dprobs.rows, (double)load.size * 4, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            registers(load.size,
                      [&](int64_t i, auto n) { put(dprobs[r] + i, n, get(load + i, n) * factor); });
    });
    return true;
}
NN_KERNEL("moe_balance_loss_backward(dloss[1], load[E], tokens, coefficient) -> dprobs[N,E]:float",
          moe_balance_loss_backward, float)

template <class T>
static bool moe_z_loss(const Call& call) {
    const auto loss = flat<float>(call, 0), lse = flat<float>(call, 1);
    const auto logits = rows<const T>(call, 2);
    parallel_for(logits.rows, (double)logits.cols * (exp_bytes + sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const auto value = [&](int64_t i, auto n) { return get(logits[r] + i, n); };
            const float most = row_max(logits.cols, value), below = finite_max(most);
            lse[r] = below + logf(row_exp_sum(logits.cols, below, value));
        }
    });
    double total = 0.0;
    for (int64_t r = 0; r < logits.rows; ++r) total += (double)lse[r] * (double)lse[r];
    loss[0] = (float)(total * number(call, 0) / (double)(logits.rows > 0 ? logits.rows : 1));
    return true;
}
NN_KERNEL("moe_z_loss(logits[N,E], coefficient) -> loss[1]:float, lse[N]:float", moe_z_loss, float, bf16)

template <class T>
static bool moe_z_loss_backward(const Call& call) {
    const auto dlogits = rows<float>(call, 0);
    const auto dloss = flat<const float>(call, 1), lse = flat<const float>(call, 3);
    const auto logits = rows<const T>(call, 2);
    const double each = logits.rows > 0 ? (double)logits.rows : 1.0;
    const float factor = (float)(2.0 * (double)dloss[0] * number(call, 0) / each);
    parallel_for(logits.rows, (double)logits.cols * (exp_bytes + 8), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            softmax_row(dlogits[r], logits[r], logits.cols);
            const float slope = factor * lse[r];
            registers(logits.cols,
                      [&](int64_t i, auto n) { put(dlogits[r] + i, n, get(dlogits[r] + i, n) * slope); });
        }
    });
    return true;
}
NN_KERNEL("moe_z_loss_backward(dloss[1]:float, logits[N,E], lse[N]:float, coefficient) -> dlogits[N,E]:float",
          moe_z_loss_backward, float, bf16)

// ---- jitter ----

struct Stream {  // the counter's key and stream words
    uint32_t key[2], word[3];
};

constexpr int blocks_at_once = 16;  // of Philox: four numbers each

// out[4 i + w]: word w of block first + i, as a multiple of 2^-24 in [0, 1)
static inline void philox(float* out, const Stream& stream, uint32_t first) {
    uint32_t c0[blocks_at_once], c1[blocks_at_once], c2[blocks_at_once], c3[blocks_at_once];
    for (uint32_t i = 0; i < blocks_at_once; ++i)
        c0[i] = first + i, c1[i] = stream.word[0], c2[i] = stream.word[1], c3[i] = stream.word[2];
    uint32_t k0 = stream.key[0], k1 = stream.key[1];
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u)
        for (int i = 0; i < blocks_at_once; ++i) {
            const uint64_t p0 = (uint64_t)c0[i] * 0xd2511f53u, p1 = (uint64_t)c2[i] * 0xcd9e8d57u;
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
    for (int i = 0; i < blocks_at_once; ++i) {
        const uint32_t word[4] = {c0[i], c1[i], c2[i], c3[i]};
        for (int w = 0; w < 4; ++w) out[4 * i + w] = (float)(int32_t)(word[w] >> 8) * 0x1p-24f;
    }
}

// Rounded here: a product that is added to something is not contracted, so that the bits are the reference's.
static inline Vec rounded(Vec x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

template <class T>
static bool jitter(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const Ints counter = ints(call, 2);
    const double epsilon = number(call, 0);
    const float base = (float)(1.0 - epsilon), span = (float)(2.0 * epsilon);
    const uint64_t key = (uint64_t)counter[0];
    const Stream stream = {{(uint32_t)key, (uint32_t)(key >> 32)},
                           {(uint32_t)counter[1], (uint32_t)counter[2], (uint32_t)counter[3]}};
    constexpr int64_t step = 4 * blocks_at_once;
    const int64_t count = y.rows * y.cols, steps = (count + step - 1) / step;
    if (counter.is_short || count >= (int64_t)1 << 34) return false;
    parallel_for(steps, step * 16, [&](int64_t begin, int64_t end) {
        float drawn[step];
        for (int64_t s = begin; s < end; ++s) {
            philox(drawn, stream, (uint32_t)(s * blocks_at_once));
            const int64_t stop = (s + 1) * step < count ? (s + 1) * step : count;
            for (int64_t at = s * step; at < stop;) {  // pieces of rows
                const int64_t r = at / y.cols, first = at - r * y.cols;
                const int64_t here = stop - at < y.cols - first ? stop - at : y.cols - first;
                registers(here, [&](int64_t i, auto n) {
                    const Vec u = get(drawn + (at - s * step + i), n);
                    put(y[r] + first + i, n, get(x[r] + first + i, n) * rounded(base + rounded(u * span)));
                });
                at += here;
            }
        }
    });
    return true;
}
NN_KERNEL("jitter(x[N,D], counter[4]:int; epsilon) -> y[N,D]", jitter, float, bf16)

}  // namespace nn::NN_LEVEL
