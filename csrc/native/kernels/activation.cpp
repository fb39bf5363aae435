// SiLU and SwiGLU (Shazeer 2020), each beside its derivative; in one pass, any layout of rows.
//     silu(x) = x s(x), s = sigmoid;   silu' = s (1 + x (1 - s))
//     swiglu(gate, up) = silu(gate) up;   dgate = dy up silu'(gate),   dup = dy silu(gate)
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

constexpr double exp_bytes = 8;  // of time, for one exponential and a division

static inline Vec silu_slope(Vec x, Vec s) { return s * (1.0f + x * (1.0f - s)); }

template <class T>
static bool silu(const Call& call) {
    const auto y = flat<T>(call, 0);
    const auto x = flat<const T>(call, 1);
    elements(x.size, exp_bytes + 2 * sizeof(T), [&](int64_t i, auto n) {
        const Vec v = get(x + i, n);
        put(y + i, n, v * sigmoid(v));
    });
    return true;
}
NN_KERNEL("silu(x[...]) -> y[...]", silu, float, bf16)

template <class T>
static bool silu_backward(const Call& call) {
    const auto dx = flat<T>(call, 0);
    const auto dy = flat<const T>(call, 1), x = flat<const T>(call, 2);
    elements(x.size, exp_bytes + 3 * sizeof(T), [&](int64_t i, auto n) {
        const Vec v = get(x + i, n);
        put(dx + i, n, get(dy + i, n) * silu_slope(v, sigmoid(v)));
    });
    return true;
}
NN_KERNEL("silu_backward(dy[...], x[...]) -> dx[...]", silu_backward, float, bf16)

template <class T>
static inline void swiglu_row(T* y, const T* gate, const T* up, int64_t count) {
    registers(count, [&](int64_t i, auto n) {
        const Vec g = get(gate + i, n);
        put(y + i, n, g * sigmoid(g) * get(up + i, n));
    });
}

template <class T>
static inline void swiglu_row_backward(T* dgate, T* dup, const T* dy, const T* gate, const T* up,
                                       int64_t count) {
    registers(count, [&](int64_t i, auto n) {
        const Vec g = get(gate + i, n), s = sigmoid(g), d = get(dy + i, n), u = get(up + i, n);
        put(dgate + i, n, d * u * silu_slope(g, s));
        put(dup + i, n, d * (g * s));
    });
}

template <class T>
static bool swiglu(const Call& call) {
    const auto y = flat<T>(call, 0);
    const auto gate = flat<const T>(call, 1), up = flat<const T>(call, 2);
    parallel_for(y.size, exp_bytes + 3 * sizeof(T), [&](int64_t begin, int64_t end) {
        swiglu_row(y + begin, gate + begin, up + begin, end - begin);
    });
    return true;
}
NN_KERNEL("swiglu(gate[...], up[...]) -> y[...]", swiglu, float, bf16)

template <class T>
static bool swiglu_backward(const Call& call) {
    const auto dgate = flat<T>(call, 0), dup = flat<T>(call, 1);
    const auto dy = flat<const T>(call, 2), gate = flat<const T>(call, 3), up = flat<const T>(call, 4);
    parallel_for(dy.size, exp_bytes + 5 * sizeof(T), [&](int64_t begin, int64_t end) {
        swiglu_row_backward(dgate + begin, dup + begin, dy + begin, gate + begin, up + begin, end - begin);
    });
    return true;
}
NN_KERNEL("swiglu_backward(dy[...], gate[...], up[...]) -> dgate[...], dup[...]", swiglu_backward, float,
          bf16)

template <class T>
static bool swiglu_packed(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const int64_t half = y.cols;
    parallel_for(x.rows, (double)half * (exp_bytes + 3 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) swiglu_row(y[r], x[r], x[r] + half, half);
    });
    return true;
}
NN_KERNEL("swiglu_packed(x[R,C]) -> y[R,F]", swiglu_packed, float, bf16)

template <class T>
static bool swiglu_packed_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dy = rows<const T>(call, 1), x = rows<const T>(call, 2);
    const int64_t half = dy.cols;
    if (x.cols != 2 * half) return false;
    parallel_for(x.rows, (double)half * (exp_bytes + 5 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            swiglu_row_backward(dx[r], dx[r] + half, dy[r], x[r], x[r] + half, half);
    });
    return true;
}
NN_KERNEL("swiglu_packed_backward(dy[R,F], x[R,C]) -> dx[R,C]", swiglu_packed_backward, float, bf16)

}  // namespace nn::NN_LEVEL
