// Rows to experts and back: the order that groups (token, choice) pairs by expert, and the copies and sums
// along it.  row r holds pair order[r] = token K + choice; pair p stands in row inverse[p].
//     dispatch  xs[r] = x[order[r] / K];                 backward  dx[n] = sum_k dxs[inverse[n,k]]
//     combine   y[n] = sum_k w[n,k] ys[inverse[n,k]];    backward  dys[r] = w dy[n],  dw[n,k] = dy[n] . ys[r]
#include "kernels/indices.h"

namespace nn::NN_LEVEL {

// A counting sort, stable; expert E of E is where dropped pairs go.
template <class T>
static bool expert_order(const Call& call) {
    const auto order = flat<int64_t>(call, 0), inverse = flat<int64_t>(call, 1);
    const auto offsets = flat<int64_t>(call, 2);
    const Array& experts = call.array[3];
    const int64_t count = offsets.size - 1, choices = experts.shape[1];
    for (int64_t n = 0; n < experts.shape[0]; ++n)
        if (!all_below(int_row(experts, n), count + 1)) return false;
    const Scratch<int64_t> next(count + 2);
    for (int64_t e = 0; e < count + 2; ++e) next[e] = 0;
    for (int64_t n = 0; n < experts.shape[0]; ++n) {
        const Ints chosen = int_row(experts, n);
        for (int64_t i = 0; i < choices; ++i) ++next[chosen[i] + 1];
    }
    for (int64_t e = 0; e < count + 1; ++e) next[e + 1] += next[e];
    for (int64_t e = 0; e < count + 1; ++e) offsets[e] = next[e];
    for (int64_t n = 0; n < experts.shape[0]; ++n) {
        const Ints chosen = int_row(experts, n);
        for (int64_t i = 0; i < choices; ++i) {
            const int64_t row = next[chosen[i]]++;
            order[row] = n * choices + i;
            inverse[n * choices + i] = row;
        }
    }
    return true;
}
NN_KERNEL("expert_order(experts[N,K]:int, num_experts) -> order[M]:int, inverse[M]:int, offsets[E+1]:int",
          expert_order, float)

template <class T>
static bool moe_dispatch(const Call& call) {
    const auto xs = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const Ints order = ints(call, 2);
    const int64_t choices = (int64_t)number(call, 0);
    if (choices < 1 || !all_below(order, x.rows * choices)) return false;
    parallel_for(xs.rows, (double)xs.cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            memcpy(xs[r], x[order[r] / choices], (size_t)xs.cols * sizeof(T));
    });
    return true;
}
NN_KERNEL("moe_dispatch(x[N,D], order[M]:int, choices) -> xs[M,D]", moe_dispatch, float, bf16)

// y = sum_k weight(k) x[row of k], in the order of the choices
template <class T, class F>
static inline void sum_of_rows(T* y, const Rows<const T>& x, const Ints& inverse, int64_t first,
                               int64_t choices, const F& weight) {
    registers(x.cols, [&](int64_t i, auto n) {
        Vec sum = {};
        for (int64_t k = 0; k < choices; ++k) sum += weight(k) * get(x[inverse[first + k]] + i, n);
        put(y + i, n, sum);
    });
}

template <class T>
static bool moe_dispatch_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dxs = rows<const T>(call, 1);
    const Ints inverse = ints(call, 2);
    const int64_t choices = (int64_t)number(call, 0);
    if (choices < 1 || dx.rows * choices != inverse.size || !all_below(inverse, dxs.rows)) return false;
    parallel_for(dx.rows, (double)(dx.cols * (choices + 1)) * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            sum_of_rows(dx[r], dxs, inverse, r * choices, choices, [](int64_t) { return 1.0f; });
    });
    return true;
}
NN_KERNEL("moe_dispatch_backward(dxs[M,D], inverse[M]:int, choices) -> dx[N,D]", moe_dispatch_backward, float,
          bf16)

template <class T>
static bool moe_combine(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto ys = rows<const T>(call, 1);
    const auto weights = rows<const float>(call, 2);
    const Ints inverse = ints(call, 3);
    const int64_t choices = weights.cols;
    if (weights.rows * choices != inverse.size || !all_below(inverse, ys.rows)) return false;
    parallel_for(y.rows, (double)(y.cols * (choices + 1)) * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            sum_of_rows(y[r], ys, inverse, r * choices, choices, [&](int64_t k) { return weights[r][k]; });
    });
    return true;
}
NN_KERNEL("moe_combine(ys[M,D], weights[N,K]:float, inverse[M]:int) -> y[N,D]", moe_combine, float, bf16)

template <class T>
static bool moe_combine_backward(const Call& call) {
    const auto dys = rows<T>(call, 0);
    const auto dweights = rows<float>(call, 1);
    const auto dy = rows<const T>(call, 2), ys = rows<const T>(call, 3);
    const auto weights = rows<const float>(call, 4);
    const Ints order = ints(call, 5), inverse = ints(call, 6);
    const int64_t choices = weights.cols;
    if (weights.rows * choices != inverse.size || !inverse_of_each_other(order, inverse)) return false;
    parallel_for(dy.rows, (double)(dy.cols * (2 * choices + 1)) * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            for (int64_t k = 0; k < choices; ++k) {
                const int64_t r = inverse[n * choices + k];
                const float weight = weights[n][k];
                dweights[n][k] = row_sum(dy.cols, [&](int64_t i, auto here) {
                    const Vec g = get(dy[n] + i, here);
                    put(dys[r] + i, here, g * weight);
                    return g * get(ys[r] + i, here);
                });
            }
    });
    return true;
}
NN_KERNEL(
    "moe_combine_backward(dy[N,D], ys[M,D], weights[N,K]:float, order[M]:int, inverse[M]:int) "
    "-> dys[M,D], dweights[N,K]:float",
    moe_combine_backward, float, bf16)

}  // namespace nn::NN_LEVEL
