// What softmax and cross-entropy share: a row's maximum, and the sum of exponentials below it.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// Maximum of value(i, n) over a row, of which NaN is left out: the sum of exponentials below it will be NaN.
// -inf for an empty row.
template <class F>
static inline float row_max(int64_t count, const F& value) {
    const Vec lowest = set(-INFINITY);
    Vec chain[4] = {lowest, lowest, lowest, lowest};
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width)
        for (int c = 0; c < 4; ++c) chain[c] = max(value(i + c * width, All{}), chain[c]);
    for (; i + width <= count; i += width) chain[0] = max(value(i, All{}), chain[0]);
    if (i < count) chain[1] = max(first_lanes(value(i, count - i), count - i, lowest), chain[1]);
    return largest(max(max(chain[0], chain[1]), max(chain[2], chain[3])));
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
