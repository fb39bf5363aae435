// RMSNorm (Zhang & Sennrich 2019), also of x + residual:  r = (mean(x^2) + eps)^-1/2,  xh = x r,  y = w xh.
// Backward, with a = dy w:  dx = r (a - xh mean(a xh)) + dresidual,  dw = sum over rows of dy xh.
//
// One thread per range of rows; a row is read twice, the second time from the first-level cache.  dw: one
// partial sum per fixed block of rows, added in order.
#include "kernels/stream.h"

namespace nn::NN_LEVEL {

// xh is rounded to the storage type before the weight multiplies it, as in Llama.
template <class T>
static inline Vec rounded(Vec x) {
    return x;
}
template <>
inline Vec rounded<bf16>(Vec x) {
    return widen(narrow(x));
}

template <class T>
static inline float normalize(T* y, const T* x, const T* next, const T* weight, int64_t cols, double eps) {
    const float squares = row_sum(cols, [&](int64_t i, auto n) {
        const Vec v = get(x + i, n);
        return v * v;
    });
    const float rstd = 1.0f / sqrtf(squares / (float)(cols ? cols : 1) + (float)eps);
    registers(cols, [&](int64_t i, auto n) {
        fetch(next + i);
        put(y + i, n, rounded<T>(get(x + i, n) * rstd) * get(weight + i, n));
    });
    return rstd;
}

template <class T>
static bool rms_norm(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto rstd = rows<float>(call, 1);
    const auto x = rows<const T>(call, 2);
    const auto weight = flat<const T>(call, 3);
    const double eps = number(call, 0);
    parallel_for(x.rows, (double)x.cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            *rstd[r] = normalize(y[r], x[r], coming(x, r), weight.data, x.cols, eps);
    });
    return true;
}
NN_KERNEL("rms_norm(x[R,D], weight[D], eps) -> y[R,D], rstd[R,1]:float", rms_norm, float, bf16)

template <class T>
static bool rms_norm_residual(const Call& call) {
    const auto y = rows<T>(call, 0), total = rows<T>(call, 1);
    const auto rstd = rows<float>(call, 2);
    const auto x = rows<const T>(call, 3), residual = rows<const T>(call, 4);
    const auto weight = flat<const T>(call, 5);
    const double eps = number(call, 0);
    parallel_for(x.rows, (double)x.cols * 4 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const T* const next = coming(residual, r);
            registers(x.cols, [&](int64_t i, auto n) {
                fetch(next + i);
                put(total[r] + i, n, get(x[r] + i, n) + get(residual[r] + i, n));
            });
            *rstd[r] = normalize(y[r], (const T*)total[r], coming(x, r), weight.data, x.cols, eps);
        }
    });
    return true;
}
NN_KERNEL("rms_norm_residual(x[R,D], residual[R,D], weight[D], eps) -> y[R,D], sum[R,D], rstd[R,1]:float",
          rms_norm_residual, float, bf16)

// One row: dx, and dy xh added to dweight.
template <class T>
static inline void row_backward(T* dx, float* dweight, const T* dy, const T* x, const T* next_dy,
                                const T* next_x, const T* weight, float rstd, const T* dresidual,
                                int64_t cols) {
    const float mean =
        row_sum(cols, [&](int64_t i,
                          auto n) { return get(dy + i, n) * get(weight + i, n) * (get(x + i, n) * rstd); }) /
        (float)(cols ? cols : 1);
    registers(cols, [&](int64_t i, auto n) {
        fetch(next_dy + i);
        fetch(next_x + i);
        const Vec g = get(dy + i, n), normed = get(x + i, n) * rstd;
        put(dweight + i, n, get(dweight + i, n) + g * normed);
        Vec d = (g * get(weight + i, n) - normed * mean) * rstd;
        if (dresidual) d += get(dresidual + i, n);
        put(dx + i, n, d);
    });
}

template <class T>
static bool rms_norm_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dweight = flat<float>(call, 1);
    const auto dy = rows<const T>(call, 2), x = rows<const T>(call, 3);
    const auto weight = flat<const T>(call, 4);
    const auto rstd = rows<const float>(call, 5);
    const auto dresidual = rows<const T>(call, 6);
    const int64_t cols = x.cols, blocks = block_count(x.rows);
    const Scratch<float> partial(blocks * cols);
    for_blocks(x.rows, (double)cols * 4 * sizeof(T), [&](int64_t block, int64_t begin, int64_t end) {
        float* const own = partial + block * cols;
        memset(own, 0, (size_t)cols * sizeof(float));
        for (int64_t r = begin; r < end; ++r)
            row_backward(dx[r], own, dy[r], x[r], coming(dy, r), coming(x, r), weight.data, *rstd[r],
                         dresidual.data ? dresidual[r] : nullptr, cols);
    });
    elements(cols, (double)(blocks + 1) * sizeof(float), [&](int64_t i, auto n) {
        Vec total = {};
        for (int64_t b = 0; b < blocks; ++b) total += get(partial + (b * cols + i), n);
        put(dweight + i, n, total);
    });
    return true;
}
NN_KERNEL(
    "rms_norm_backward(dy[R,D], x[R,D], weight[D], rstd[R,1]:float; dresidual[R,D]=None) -> dx[R,D], "
    "dweight[D]:float",
    rms_norm_backward, float, bf16)

}  // namespace nn::NN_LEVEL
