// Rotary embedding (Su et al. 2021): pairs (a, b) of a row's first 2r channels turned by its angle,
//     a' = a cos - b sin,  b' = b cos + a sin,
// half-split pairs (i, i + r) or interleaved ones (2i, 2i + 1); the gradient is the turn back.
// One row at a time, rows over threads; a row's tables are read once per head from the first-level cache.
#include "kernels/heads.h"

namespace nn::NN_LEVEL {

struct Turn {
    int64_t half;
    bool interleaved, inverse;
};

template <class T>
static inline void turn_halves(T* y, const T* x, const float* cos, const float* sin, int64_t half,
                               float sign) {
    registers(half, [&](int64_t i, auto n) {
        const Vec a = get(x + i, n), b = get(x + half + i, n), c = get(cos + i, n),
                  s = get(sin + i, n) * sign;
        put(y + i, n, a * c - b * s);
        put(y + half + i, n, b * c + a * s);
    });
}

#ifdef __clang__
static inline Vec pick_lanes(Vec x, Int from) {
    Vec y;
    for (int i = 0; i < width; ++i) y[i] = x[from[i]];
    return y;
}
#else
static inline Vec pick_lanes(Vec x, Int from) { return __builtin_shuffle(x, from); }
#endif

template <class T>
static inline void turn_pairs(T* y, const T* x, const float* cos, const float* sin, int64_t half,
                              float sign) {
    Int neighbour, pair;
    Vec signs;
    for (int i = 0; i < width; ++i) neighbour[i] = i ^ 1, pair[i] = i / 2, signs[i] = i % 2 ? sign : -sign;
    registers(2 * half, [&](int64_t i, auto n) {
        const int64_t pairs = ((int64_t)n + 1) / 2;
        const Vec z = get(x + i, n), c = pick_lanes(load(cos + i / 2, pairs), pair),
                  s = pick_lanes(load(sin + i / 2, pairs), pair);
        put(y + i, n, z * c + pick_lanes(z, neighbour) * s * signs);
    });
}

template <class T>
static inline void turn_row(T* y, const T* x, const float* cos, const float* sin, int64_t size,
                            const Turn& turn) {
    const float sign = turn.inverse ? -1.0f : 1.0f;
    if (turn.interleaved)
        turn_pairs(y, x, cos, sin, turn.half, sign);
    else
        turn_halves(y, x, cos, sin, turn.half, sign);
    const int64_t turned = 2 * turn.half;
    if (turned < size) memcpy(y + turned, x + turned, (size_t)(size - turned) * sizeof(T));
}

// Every row of x, with the row of the tables that table(b, t) names.
template <class T, class Table>
static inline void turn_all(const Heads<T>& y, const Heads<const T>& x, const Turn& turn,
                            const Table& table) {
    const int64_t per_batch = x.heads * x.length;
    parallel_for(x.batch * per_batch, (double)x.width * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t b = r / per_batch, h = r % per_batch / x.length, t = r % x.length;
            const float *cos, *sin;
            table(b, t, cos, sin);
            turn_row(y.row(b, h, t), x.row(b, h, t), cos, sin, x.width, turn);
        }
    });
}

template <class T>
static bool rope(const Call& call) {
    const auto y = heads<T>(call, 0);
    const auto x = heads<const T>(call, 1);
    const Array &cos = call.array[2], &sin = call.array[3];
    const Turn turn{cos.shape[2], number(call, 0) != 0, number(call, 1) != 0};
    const bool own = cos.shape[0] != 1;  // tables per row of the batch
    if (2 * turn.half > x.width || (own && cos.shape[0] != x.batch)) return false;
    turn_all(y, x, turn, [&](int64_t b, int64_t t, const float*& c, const float*& s) {
        const int64_t of = own ? b : 0;
        c = static_cast<const float*>(cos.data) + of * cos.stride[0] + t * cos.stride[1];
        s = static_cast<const float*>(sin.data) + of * sin.stride[0] + t * sin.stride[1];
    });
    return true;
}
NN_KERNEL(
    "rope(x[B,H,T,D], cos[...,T,r]:float, sin[...,T,r]:float; interleaved=False, inverse=False) -> "
    "y[B,H,T,D]",
    rope, float, bf16)

template <class T>
static bool rope_at(const Call& call) {
    const auto y = heads<T>(call, 0);
    const auto x = heads<const T>(call, 1);
    const auto cos = rows<const float>(call, 2), sin = rows<const float>(call, 3);
    const auto positions = ints(call, 4);
    const Turn turn{cos.cols, number(call, 0) != 0, false};
    if (2 * turn.half > x.width) return false;
    for (int64_t b = 0; b < x.batch; ++b)
        if (positions[b] < 0 || positions[b] + x.length > cos.rows) return false;
    turn_all(y, x, turn, [&](int64_t b, int64_t t, const float*& c, const float*& s) {
        const int64_t row = positions[b] + t;
        c = cos[row], s = sin[row];
    });
    return true;
}
NN_KERNEL(
    "rope_at(x[B,H,T,D], cos[P,r]:float, sin[P,r]:float, positions[B]:int; interleaved=False) -> y[B,H,T,D]",
    rope_at, float, bf16)

}  // namespace nn::NN_LEVEL
