// LayerNorm (Ba et al. 2016):  s = (var(x) + eps)^-1/2,  xh = (x - mean) s,  y = w xh + b.
// Backward, with a = dy w:  dx = s (a - mean(a) - xh mean(a xh)),  dw = sum over rows of dy xh,  db = of dy.
//
// One thread per range of rows; a row is read three times, twice from the first-level cache (the variance in a
// pass of its own: E[x^2] - E[x]^2 cancels).  dw, db: partial sums per fixed block of rows, added in order.
#include "kernels/stream.h"

namespace nn::NN_LEVEL {

template <class T>
static bool layer_norm(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto means = rows<float>(call, 1), rstds = rows<float>(call, 2);
    const auto x = rows<const T>(call, 3);
    const auto weight = flat<const T>(call, 4), bias = flat<const T>(call, 5);
    const double eps = number(call, 0);
    const int64_t cols = x.cols;
    const float count = (float)(cols ? cols : 1);
    parallel_for(x.rows, (double)cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const T *const row = x[r], *const next = coming(x, r);
            const float mean = row_sum(cols, [&](int64_t i, auto n) { return get(row + i, n); }) / count;
            const float squares = row_sum(cols, [&](int64_t i, auto n) {
                const Vec d = get(row + i, n) - mean;
                return (int64_t)n == width ? d * d : first_lanes(d * d, n, Vec{});
            });
            const float rstd = 1.0f / sqrtf(squares / count + (float)eps);
            registers(cols, [&](int64_t i, auto n) {
                fetch(next + i);
                put(y[r] + i, n, (get(row + i, n) - mean) * rstd * get(weight + i, n) + get(bias + i, n));
            });
            *means[r] = mean, *rstds[r] = rstd;
        }
    });
    return true;
}
NN_KERNEL("layer_norm(x[R,D], weight[D], bias[D], eps) -> y[R,D], mean[R,1]:float, rstd[R,1]:float",
          layer_norm, float, bf16)

// One row: dx, and dy xh and dy added to dweight and dbias.
template <class T>
static inline void layer_row_backward(T* dx, float* dweight, float* dbias, const T* dy, const T* x,
                                      const T* next_dy, const T* next_x, const T* weight, float mean,
                                      float rstd, int64_t cols) {
    const float count = (float)(cols ? cols : 1);
    const float direct =
        row_sum(cols, [&](int64_t i, auto n) { return get(dy + i, n) * get(weight + i, n); }) / count;
    const float along = row_sum(cols, [&](int64_t i, auto n) {
                            const Vec a = get(dy + i, n) * get(weight + i, n);
                            return a * ((get(x + i, n) - mean) * rstd);  // a is 0 beyond n
                        }) / count;
    registers(cols, [&](int64_t i, auto n) {
        fetch(next_dy + i);
        fetch(next_x + i);
        const Vec g = get(dy + i, n), normed = (get(x + i, n) - mean) * rstd;
        put(dweight + i, n, get(dweight + i, n) + g * normed);
        put(dbias + i, n, get(dbias + i, n) + g);
        put(dx + i, n, (apart(g * get(weight + i, n)) - direct - normed * along) * rstd);
    });
}

template <class T>
static bool layer_norm_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dweight = flat<float>(call, 1), dbias = flat<float>(call, 2);
    const auto dy = rows<const T>(call, 3), x = rows<const T>(call, 4);
    const auto weight = flat<const T>(call, 5);
    const auto mean = rows<const float>(call, 6), rstd = rows<const float>(call, 7);
    const int64_t cols = x.cols, blocks = block_count(x.rows);
    const Scratch<float> partial(blocks * 2 * cols);
    for_blocks(x.rows, (double)cols * 3 * sizeof(T), [&](int64_t block, int64_t begin, int64_t end) {
        float* const own = partial + block * 2 * cols;
        memset(own, 0, (size_t)cols * 2 * sizeof(float));
        for (int64_t r = begin; r < end; ++r)
            layer_row_backward(dx[r], own, own + cols, dy[r], x[r], coming(dy, r), coming(x, r), weight.data,
                               *mean[r], *rstd[r], cols);
    });
    const auto add_up = [&](const float* part, float* result) {
        elements(cols, (double)(blocks + 1) * sizeof(float), [&](int64_t i, auto n) {
            Vec total = {};
            for (int64_t b = 0; b < blocks; ++b) total += get(part + (b * 2 * cols + i), n);
            put(result + i, n, total);
        });
    };
    add_up(partial.data, dweight.data);
    add_up(partial.data + cols, dbias.data);
    return true;
}
NN_KERNEL(
    "layer_norm_backward(dy[R,D], x[R,D], weight[D], mean[R,1]:float, rstd[R,1]:float) -> dx[R,D], "
    "dweight[D]:float, dbias[D]:float",
    layer_norm_backward, float, bf16)

}  // namespace nn::NN_LEVEL
