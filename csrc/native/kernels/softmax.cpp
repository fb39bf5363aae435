// Softmax and log-softmax over the last axis, each beside its backward.  A row of -inf gives 0 (-inf).
//     y = exp(x - max) / sum;            dx = y (dy - sum(dy y))
//     y = x - max - log sum exp(x - max);   dx = dy - exp(y) sum(dy)
#include "kernels/row_math.h"
#include "kernels/stream.h"

namespace nn::NN_LEVEL {

constexpr double exp_bytes = 6;

constexpr int64_t hot_cols = 8192;  // of a row of exponentials in the first-level cache or near it

// Exponentials are formed once and kept as float32: where a float32 result goes, or in memory of their own if
// that is half precision or written past the caches.  Where there is none, for long rows, they are formed
// twice.
template <bool past, class T>
static inline void softmax_row(T* y, const T* x, const T* next, int64_t cols, float* kept) {
    const float most = finite_max(row_max(cols, [&](int64_t i, auto n) { return get(x + i, n); }));
    const float total = row_sum(cols, [&](int64_t i, auto n) {
        fetch(next + i);
        Vec e = exp(get(x + i, n) - most);
        if ((int64_t)n != width) e = first_lanes(e, n, Vec{});
        if (kept) put(kept + i, n, e);
        return e;
    });
    const float scale = 1.0f / (total == 0.0f ? 1.0f : total);
    registers(cols, [&](int64_t i, auto n) {
        deliver<past>(y + i, n, (kept ? get(kept + i, n) : exp(get(x + i, n) - most)) * scale);
    });
}

static inline float* exponentials(float* y, float* own, int64_t, bool past) { return past ? own : y; }
static inline float* exponentials(bf16*, float* own, int64_t cols, bool) {
    return cols <= hot_cols ? own : nullptr;
}

template <class T>
static bool softmax(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const bool past = streams(y) && y.cols <= hot_cols;
    parallel_for(x.rows, (double)x.cols * (exp_bytes + 2 * sizeof(T)), [&](int64_t begin, int64_t end) {
        alignas(64) float hot[hot_cols];
        for (int64_t r = begin; r < end; ++r) {
            float* const kept = exponentials(y[r], hot, x.cols, past);
            past ? softmax_row<true>(y[r], x[r], coming(x, r), x.cols, kept)
                 : softmax_row<false>(y[r], x[r], coming(x, r), x.cols, kept);
        }
        stream_end();
    });
    return true;
}
NN_KERNEL("softmax(x[...,C]) -> y[...,C]", softmax, float, bf16)

template <bool past, class T>
static inline void softmax_row_backward(T* dx, const T* dy, const T* y, const T* next_dy, const T* next_y,
                                        int64_t cols) {
    const float dot = row_sum(cols, [&](int64_t i, auto n) { return get(dy + i, n) * get(y + i, n); });
    registers(cols, [&](int64_t i, auto n) {
        fetch(next_dy + i);
        fetch(next_y + i);
        deliver<past>(dx + i, n, get(y + i, n) * (get(dy + i, n) - dot));
    });
}

template <class T>
static bool softmax_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dy = rows<const T>(call, 1), y = rows<const T>(call, 2);
    const bool past = streams(dx);
    parallel_for(y.rows, (double)y.cols * 3 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            past ? softmax_row_backward<true>(dx[r], dy[r], y[r], coming(dy, r), coming(y, r), y.cols)
                 : softmax_row_backward<false>(dx[r], dy[r], y[r], coming(dy, r), coming(y, r), y.cols);
        stream_end();
    });
    return true;
}
NN_KERNEL("softmax_backward(dy[...,C], y[...,C]) -> dx[...,C]", softmax_backward, float, bf16)

template <class T>
static bool log_softmax(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    parallel_for(x.rows, (double)x.cols * (exp_bytes + 2 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const auto value = [&](int64_t i, auto n) { return get(x[r] + i, n); };
            const float most = finite_max(row_max(x.cols, value));
            const float total = row_exp_sum(x.cols, most, value);
            const float log_sum = logf(total == 0.0f ? 1.0f : total);
            registers(x.cols,
                      [&](int64_t i, auto n) { put(y[r] + i, n, get(x[r] + i, n) - most - log_sum); });
        }
    });
    return true;
}
NN_KERNEL("log_softmax(x[...,C]) -> y[...,C]", log_softmax, float, bf16)

template <class T>
static bool log_softmax_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dy = rows<const T>(call, 1), y = rows<const T>(call, 2);
    parallel_for(y.rows, (double)y.cols * (exp_bytes + 3 * sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float total = row_sum(y.cols, [&](int64_t i, auto n) { return get(dy[r] + i, n); });
            registers(y.cols, [&](int64_t i, auto n) {
                put(dx[r] + i, n, get(dy[r] + i, n) - exp(get(y[r] + i, n)) * total);
            });
        }
    });
    return true;
}
NN_KERNEL("log_softmax_backward(dy[...,C], y[...,C]) -> dx[...,C]", log_softmax_backward, float, bf16)

}  // namespace nn::NN_LEVEL
