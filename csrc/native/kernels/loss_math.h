// What cross-entropy of logits in memory and of logits that are formed on the way share: its options, and
// the terms of loss and gradient (cross_entropy.cpp has the formulas).
#pragma once
#include "kernels/row_math.h"

namespace nn::NN_LEVEL {

constexpr double exp_bytes = 6;

struct LossOptions {
    int64_t ignore_index;
    float smoothing, z_loss, softcap;
};

// The numbers of a call, from the one called ignore_index on
static inline LossOptions loss_options(const Call& call, int first = 0) {
    return {(int64_t)number(call, first), (float)number(call, first + 1), (float)number(call, first + 2),
            (float)number(call, first + 3)};
}

static inline Vec capped(Vec z, float softcap) { return softcap != 0.0f ? softcap * tanh(z / softcap) : z; }

static inline bool targets_fit(const Ints& targets, int64_t vocabulary, int64_t ignored) {
    for (int64_t r = 0; r < targets.size; ++r)
        if (targets[r] != ignored && (targets[r] < 0 || targets[r] >= vocabulary)) return false;
    return true;
}

// One logit as the reference sees it
template <class T>
static inline float one(const T* row, int64_t i, float softcap) {
    return sum(first_lanes(capped(load(row + i, 1), softcap), 1, Vec{}));
}

// dz' at registers [i, i + n), without the target's own term
static inline Vec slope(Vec z, float lse, float upstream, const LossOptions& o, float share) {
    return (exp(z - lse) * (1.0f + 2.0f * o.z_loss * lse) - share) * upstream;
}

static inline Vec through_cap(Vec d, Vec z, float softcap) {
    const Vec t = z / softcap;
    return softcap != 0.0f ? d * (1.0f - t * t) : d;
}

// From the log-sum-exp, the target's own logit and, with smoothing, the sum of all.
static inline float row_loss(float lse, float own, float sum, int64_t cols, const LossOptions& o) {
    float loss = lse - (1.0f - o.smoothing) * own;
    if (o.smoothing != 0.0f) loss -= o.smoothing / (float)cols * sum;
    if (o.z_loss != 0.0f) loss += o.z_loss * lse * lse;
    return loss;
}

}  // namespace nn::NN_LEVEL
