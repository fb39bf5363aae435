// Sums and products of arrays: of two alike, of every row with one row, with a number, and one array's values
// added to another's.  bfloat16 is computed in float32 and rounded once.
#include "kernels/stream.h"

namespace nn::NN_LEVEL {

struct Plus {
    static Vec of(Vec a, Vec b) { return a + b; }
};
struct Times {
    static Vec of(Vec a, Vec b) { return a * b; }
};

template <class Both, class T>
static inline bool alike(const Call& call) {
    const auto y = flat<T>(call, 0);
    const auto a = flat<const T>(call, 1), b = flat<const T>(call, 2);
    fill(y, 3 * sizeof(T), [&](int64_t i, auto n) { return Both::of(get(a + i, n), get(b + i, n)); });
    return true;
}

template <class Both, class T>
static inline bool with_row(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const auto row = flat<const T>(call, 2);
    parallel_for(x.rows, (double)x.cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            registers(x.cols, [&](int64_t i, auto n) {
                put(y[r] + i, n, Both::of(get(x[r] + i, n), get(row + i, n)));
            });
    });
    return true;
}

template <class T>
static bool add(const Call& call) {
    return alike<Plus, T>(call);
}
NN_KERNEL("add(a[...], b[...]) -> y[...]", add, float, bf16)

template <class T>
static bool mul(const Call& call) {
    return alike<Times, T>(call);
}
NN_KERNEL("mul(a[...], b[...]) -> y[...]", mul, float, bf16)

template <class T>
static bool add_row(const Call& call) {
    return with_row<Plus, T>(call);
}
NN_KERNEL("add_row(x[...,D], row[D]) -> y[...,D]", add_row, float, bf16)

template <class T>
static bool mul_row(const Call& call) {
    return with_row<Times, T>(call);
}
NN_KERNEL("mul_row(x[...,D], row[D]) -> y[...,D]", mul_row, float, bf16)

template <class T>
static bool scale(const Call& call) {
    const auto y = flat<T>(call, 0);
    const auto x = flat<const T>(call, 1);
    const float factor = (float)number(call, 0);
    fill(y, 2 * sizeof(T), [&](int64_t i, auto n) { return get(x + i, n) * factor; });
    return true;
}
NN_KERNEL("scale(x[...], factor) -> y[...]", scale, float, bf16)

template <class T>
static bool accumulate(const Call& call) {
    const auto total = flat<float>(call, 0);
    const auto x = flat<const T>(call, 1);
    elements(x.size, 2 * sizeof(float) + sizeof(T),
             [&](int64_t i, auto n) { put(total + i, n, get(total + i, n) + get(x + i, n)); });
    return true;
}
NN_KERNEL("accumulate(&total[...]:float, x[...])", accumulate, float, bf16)

}  // namespace nn::NN_LEVEL
