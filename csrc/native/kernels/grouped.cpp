// Linear maps of all experts at once, on rows grouped by expert, and the same with the gather before it and
// SwiGLU behind it in one pass (kernels/grouped/groups.h).  Few rows and no need of equal bits: gemv.h over
// all experts in one loop, so that decoding reads the chosen experts' weights once and waits once.
#include "kernels/gemv.h"
#include "kernels/grouped/groups.h"

namespace nn::NN_LEVEL {

static inline int64_t most_rows(const Ints& offsets) {
    int64_t most = 0;
    for (int64_t e = 1; e < offsets.size; ++e)
        if (offsets[e] - offsets[e - 1] > most) most = offsets[e] - offsets[e - 1];
    return most;
}

static inline bool one_by_one(const Ints& offsets, bool batch_invariant) {
    return !batch_invariant && most_rows(offsets) <= gemv_rows;
}

// body(group, first, here): groups of outputs of every expert that has rows
template <class F>
static inline void for_outputs(const Groups& groups, int64_t outputs, double bytes, const F& body) {
    const int64_t each = panels(outputs, gemv_outputs);
    parallel_for(groups.count * each, bytes * gemv_outputs, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i % each * gemv_outputs, left = outputs - first;
            body(groups[i / each], first, left < gemv_outputs ? left : gemv_outputs);
        }
    });
}

template <class T>
static inline void some_dots(float* y, const T* x, const T* weight, int64_t stride, int64_t k,
                             int64_t count) {
    if (count == gemv_outputs)
        dots<gemv_outputs>(y, x, weight, stride, k);
    else
        for (int64_t o = 0; o < count; ++o) dots<1>(y + o, x, weight + o * stride, stride, k);
}

template <class T>
static inline T rounded(float x) {
    T y;
    put(&y, (int64_t)1, set(x));
    return y;
}

// ---- grouped_linear ----

template <class T>
static inline void linear_by_rows(const Rows<T>& y, const Rows<const T>& x, const Experts<T>& weight,
                                  const Groups& groups) {
    for_outputs(groups, weight.outputs, (double)weight.inputs * sizeof(T),
                [&](const Group& group, int64_t first, int64_t here) {
                    for (int64_t r = group.first; r < group.first + group.rows; ++r) {
                        float sums[gemv_outputs];
                        some_dots(sums, x[r], weight[group.expert] + first * weight.row, weight.row,
                                  weight.inputs, here);
                        for (int64_t o = 0; o < here; ++o) y[r][first + o] = rounded<T>(sums[o]);
                    }
                });
}

template <class P, class T>
static inline bool linear_by_panels(const Rows<T>& y, const Rows<const T>& x, const Experts<T>& weight,
                                    const Ints& offsets) {
    const Groups groups(offsets, chunk_rows<P>);
    const int64_t k = weight.inputs;
    const PackedRows<P> a(groups, k);
    const Target<T> target(y);
    Extent left, right;
    for_chunks(groups, chunk_rows<P>, (double)(chunk_rows<P> * k) * 2 * sizeof(T),
               [&](const Group& group, int64_t first, int64_t here) {
                   a.pack(group, first, here, Operand<T>{x[group.first + first], x.stride, 1}, 0, k, left);
               });
    multiply_groups<P, 1>(
        groups, a, weight.outputs, k, [&](int64_t e) { return Operand<T>{weight[e], weight.row, 1}; }, right,
        [&](int64_t row, int64_t column, auto n, const Sums<P>* sums, int64_t i, int v) {
            put_to(target, target.to[row] + column, n, sums[0][i][v]);
        });
    return left.fits(right, k);
}

template <class T>
static bool grouped_linear(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const Experts<T> weight(call.array[2]);
    const Ints offsets = ints(call, 3);
    if (!are_offsets(offsets, x.rows)) return false;
    clear_rows(y, offsets[weight.count]);
    if (y.rows == 0 || y.cols == 0) return true;
    if (one_by_one(offsets, number(call, 0) != 0.0)) {
        linear_by_rows(y, x, weight, Groups(offsets, gemv_rows));
        return true;
    }
    if (linear_by_panels<typename Choice<T>::Panels>(y, x, weight, offsets) || Choice<T>::exact) return true;
    if constexpr (!Choice<T>::exact) linear_by_panels<FloatPanels>(y, x, weight, offsets);
    return true;
}
NN_KERNEL("grouped_linear(x[M,I], weight[E,O,I], offsets[E+1]:int; batch_invariant=True) -> y[M,O]",
          grouped_linear, float, bf16)

// ---- gathered_swiglu ----

template <class T>
struct Gathered {
    Target<T> y, hidden;  // hidden's data is null where it is not kept
    Rows<const T> x;
    Experts<T> weight;
    Ints offsets, order;
    int64_t choices, half;

    // gate and up of some columns of row r
    template <class N>
    void put_both(int64_t r, int64_t column, N n, Vec gate, Vec up) const {
        if (hidden.to.data) {
            put_to(hidden, hidden.to[r] + column, n, gate);
            put_to(hidden, hidden.to[r] + half + column, n, up);
        }
        put_to(y, y.to[r] + column, n, gate * sigmoid(gate) * up);
    }
};

template <class T>
static inline void swiglu_by_rows(const Gathered<T>& all) {
    const Groups groups(all.offsets, gemv_rows);
    const int64_t k = all.weight.inputs, stride = all.weight.row;
    for_outputs(groups, all.half, 2.0 * (double)k * sizeof(T),
                [&](const Group& group, int64_t first, int64_t here) {
                    const T* const gate = all.weight[group.expert] + first * stride;
                    for (int64_t r = group.first; r < group.first + group.rows; ++r) {
                        const T* const x = all.x[all.order[r] / all.choices];
                        alignas(64) float sums[2][width > gemv_outputs ? width : gemv_outputs] = {};
                        some_dots(sums[0], x, gate, stride, k, here);
                        some_dots(sums[1], x, gate + all.half * stride, stride, k, here);
                        all.put_both(r, first, here, load(sums[0]), load(sums[1]));
                    }
                });
}

template <class P, class T>
static inline bool swiglu_by_panels(const Gathered<T>& all) {
    const Groups groups(all.offsets, chunk_rows<P>);
    const int64_t k = all.weight.inputs;
    const PackedRows<P> a(groups, k);
    Extent left, right;
    for_chunks(groups, chunk_rows<P>, (double)(chunk_rows<P> * k) * 2 * sizeof(T),
               [&](const Group& group, int64_t first, int64_t here) {
                   int64_t token[chunk_rows<P>];
                   for (int64_t i = 0; i < here; ++i)
                       token[i] = all.order[group.first + first + i] / all.choices;
                   a.pack(group, first, here, Operand<T>{all.x.data, all.x.stride, 1, token}, 0, k, left);
               });
    multiply_groups<P, 2>(
        groups, a, all.half, k, [&](int64_t e) { return Operand<T>{all.weight[e], all.weight.row, 1}; },
        right,
        [&](int64_t row, int64_t column, auto n, const Sums<P>* sums, int64_t i, int v) {
            all.put_both(row, column, n, sums[0][i][v], sums[1][i][v]);
        });
    return left.fits(right, k);
}

template <class T>
static bool gathered_swiglu(const Call& call) {
    const Gathered<T> all = {Target<T>(rows<T>(call, 0)),
                             Target<T>(call.array[1].data ? rows<T>(call, 1) : Rows<T>{}),
                             rows<const T>(call, 2),
                             Experts<T>(call.array[3]),
                             ints(call, 4),
                             ints(call, 5),
                             (int64_t)number(call, 0),
                             call.array[3].shape[1] / 2};
    if (all.choices < 1 || all.weight.outputs != 2 * all.y.to.cols ||
        !are_offsets(all.offsets, all.order.size) || !all_below(all.order, all.x.rows * all.choices))
        return false;
    clear_rows(all.y.to, all.offsets[all.weight.count]);
    clear_rows(all.hidden.to, all.offsets[all.weight.count]);
    if (all.y.to.rows == 0 || all.half == 0) return true;
    if (one_by_one(all.offsets, number(call, 1) != 0.0)) {
        swiglu_by_rows(all);
        return true;
    }
    if (swiglu_by_panels<typename Choice<T>::Panels>(all) || Choice<T>::exact) return true;
    if constexpr (!Choice<T>::exact) swiglu_by_panels<FloatPanels>(all);
    return true;
}
NN_KERNEL(
    "gathered_swiglu(x[N,I], weight[E,C,I], offsets[E+1]:int, order[M]:int, choices; batch_invariant=True, "
    "keep=True) -> y[M,F], hidden[M,C]?keep",
    gathered_swiglu, float, bf16)

}  // namespace nn::NN_LEVEL
