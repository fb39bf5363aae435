// What softmax and cross-entropy share: a row's maximum, and the sum of exponentials below it.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// Maximum of value(i, n) over a row; NaN counts as largest; -inf for an empty row.
template <class F>
static inline float row_max(int64_t count, const F& value) {
    const Vec lowest = set(-INFINITY);
    Vec most = lowest;
    registers(count, [&](int64_t i, auto n) {
        const Vec v = value(i, n);
        const Vec own = (int64_t)n == width ? v : first_lanes(v, n, lowest);
        most = own != own ? own : (most != most ? most : max(most, own));
    });
    return largest(most);
}

// x - 0 where the maximum is -inf, so that no row gives -inf + inf = NaN.
static inline float finite_max(float most) { return most == -INFINITY ? 0.0f : most; }

// Σ exp(value − most)
template <class F>
static inline float row_exp_sum(int64_t count, float most, const F& value) {
    return row_sum(count, [&](int64_t i, auto n) {
        const Vec e = exp(value(i, n) - most);
        return (int64_t)n == width ? e : first_lanes(e, n, Vec{});
    });
}

}  // namespace nn::NN_LEVEL
