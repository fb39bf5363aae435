// Cross-entropy over rows of logits.
// With z' = c tanh(z/c) (softcap c), L = log sum exp z', smoothing e, z-loss q:
//     loss = L - (1-e) z'_y - e/V sum z' + q L^2
//     dz' = softmax(z')(1 + 2 q L) - (1-e) 1[j = y] - e/V,   dz = dz' (1 - (z'/c)^2)
// Rows whose target is ignore_index have loss 0 and gradient 0; a target outside 0 ... V-1 is for the
// reference to refuse.
#include "kernels/loss_math.h"

namespace nn::NN_LEVEL {

template <class T>
static bool cross_entropy(const Call& call) {
    const auto loss = flat<float>(call, 0), lse = flat<float>(call, 1);
    const auto logits = rows<const T>(call, 2);
    const auto targets = ints(call, 3);
    const LossOptions o = loss_options(call);
    const int64_t cols = logits.cols;
    if (cols == 0 || !targets_fit(targets, cols, o.ignore_index)) return false;
    parallel_for(logits.rows, (double)cols * (exp_bytes + 2 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const T* const row = logits[r];
            const auto value = [&](int64_t i, auto n) { return capped(get(row + i, n), o.softcap); };
            const float most = finite_max(row_max(cols, value));
            const float l = lse[r] = logf(row_exp_sum(cols, most, value)) + most;
            if (targets[r] == o.ignore_index) {
                loss[r] = 0.0f;
                continue;
            }
            const float sum = o.smoothing != 0.0f ? row_sum(cols, value) : 0.0f;
            loss[r] = row_loss(l, one(row, targets[r], o.softcap), sum, cols, o);
        }
    });
    return true;
}
NN_KERNEL(
    "cross_entropy(logits[R,V], targets[R]:int; ignore_index=-100, label_smoothing=0, z_loss=0, softcap=0) "
    "-> "
    "loss[R]:float, lse[R]:float",
    cross_entropy, float, bf16)

template <class T>
static inline void row_backward(T* d, const T* row, int64_t cols, int64_t target, float lse, float upstream,
                                const LossOptions& o) {
    const float share = o.smoothing / (float)cols;
    const auto at = [&](int64_t i, auto n, float own) {
        const Vec z = capped(get(row + i, n), o.softcap);
        return through_cap(slope(z, lse, upstream, o, share) + own, z, o.softcap);
    };
    registers(cols, [&](int64_t i, auto n) { put(d + i, n, at(i, n, 0.0f)); });
    put(d + target, (int64_t)1, at(target, (int64_t)1, (o.smoothing - 1.0f) * upstream));
}

template <class T>
static bool cross_entropy_backward(const Call& call) {
    const auto dlogits = rows<T>(call, 0);
    const auto dloss = flat<const float>(call, 1);
    const auto logits = rows<const T>(call, 2);
    const auto targets = ints(call, 3);
    const auto lse = flat<const float>(call, 4);
    const LossOptions o = loss_options(call);
    const int64_t cols = logits.cols;
    if (!targets_fit(targets, cols, o.ignore_index)) return false;
    parallel_for(logits.rows, (double)cols * (exp_bytes + 2 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            if (targets[r] == o.ignore_index)
                memset(dlogits[r], 0, (size_t)cols * sizeof(T));
            else
                row_backward(dlogits[r], logits[r], cols, targets[r], lse[r], dloss[r], o);
    });
    return true;
}
NN_KERNEL(
    "cross_entropy_backward(dloss[R]:float, logits[R,V], targets[R]:int, lse[R]:float; ignore_index=-100, "
    "label_smoothing=0, z_loss=0, softcap=0) -> dlogits[R,V]",
    cross_entropy_backward, float, bf16)

}  // namespace nn::NN_LEVEL
