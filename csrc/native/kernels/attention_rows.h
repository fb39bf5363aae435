// Attention of few queries over many keys, as in decoding: bound by reading k and v once.
//
// Keys are cut into fixed blocks, whatever the threads; every (row of the batch, key head, block) gives a
// partial result for the query heads of its group: maximum m, sum l of 2^(s - m), and sum o of 2^(s - m) v.
// They are then put together in the blocks' order:  M = max m,  o = sum 2^(m - M) o / sum 2^(m - M) l.
#pragma once
#include "kernels/attention_math.h"

namespace nn::NN_LEVEL {

constexpr int64_t keys_per_part = 64;
constexpr int queries_at_once = 4;  // that share what is read of a key

template <class T>
struct FewQueries {
    Heads<T> o;
    float* lse;  // [B,H,T], dense, or null
    Heads<const T> q, k, v;
    Ints lengths;  // keys that a row of the batch has; without data: all
    Sight sight;
    Mask mask;
    float scale;

    int64_t rows_per_group() const { return q.heads / k.heads * q.length; }
    int64_t keys(int64_t b) const {
        const int64_t n = lengths.data ? lengths[b] : k.length;
        return n < k.length ? n : k.length;
    }
    int64_t position(int64_t b, int64_t t) const {
        return (lengths.data ? lengths[b] : k.length) - q.length + t;
    }
};

struct Part {  // of one row of queries
    float m, l;
};

// Rows [first, last) of k or v as floats: where they lie, or converted.
static inline const float* as_floats(const float* x, int64_t stride, int64_t first, int64_t, int64_t, float*,
                                     int64_t& step) {
    step = stride;
    return x + first * stride;
}
static inline const float* as_floats(const bf16* x, int64_t stride, int64_t first, int64_t last, int64_t size,
                                     float* to, int64_t& step) {
    step = padded(size);
    for (int64_t j = first; j < last; ++j)
        registers(size, [&](int64_t i, auto n) {
            put(to + (j - first) * step + i, n, get(x + j * stride + i, n));
        });
    return to;
}

// s[r][j] = q[r] k[j] for R rows of queries and j < count; rows of q are padded with zeros
template <int R>
static inline void scores(float* s, const float* q, const float* k, int64_t step, int64_t count,
                          int64_t size) {
    const int64_t q_step = padded(size);
    for (int64_t j = 0; j < count; j += width) {
        Vec sums[R][width];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) {
            const float* const row = k + (j + i < count ? j + i : count - 1) * step;
            Vec sum[R] = {};
            registers(size, [&](int64_t d, auto n) {
                const Vec key = get(row + d, n);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) sum[r] += load(q + r * q_step + d) * key;
            });
            for (int r = 0; r < R; ++r) sums[r][i] = sum[r];
        }
        for (int r = 0; r < R; ++r) store(s + r * keys_per_part + j, sums_of(sums[r]));
    }
}

// In place: 2^(s - m) of the scores that are seen, 0 for the others up to a whole register.
static inline Part softmax_part(float* s, int64_t count, const uint8_t* keep, int64_t keep_step) {
    if (keep)
        for (int64_t j = 0; j < count; ++j) s[j] = keep[j * keep_step] ? s[j] : minus_infinity;
    Vec most = set(minus_infinity), total = {};
    registers(count, [&](int64_t j, auto n) {
        const Vec x = first_lanes(load(s + j), n, set(minus_infinity));
        store(s + j, x);
        most = max(x, most);
    });
    const float m = largest(most), base = m == minus_infinity ? 0.0f : m;
    registers(count, [&](int64_t j, auto) {
        const Vec p = power_of_two(load(s + j) - base);
        store(s + j, p);
        total += p;
    });
    return {m, sum(total)};
}

// o[r][i] = sum of p[r][j] v[j][i] for R rows
template <int R>
static inline void weighted_sum(float* o, const float* p, const float* v, int64_t step, int64_t count,
                                int64_t size) {
    constexpr int many = 4;
    const int64_t o_step = padded(size);
    int64_t i = 0;
    for (; i + many * width <= size; i += many * width) {
        Vec even[R][many] = {}, odd[R][many] = {};
        int64_t j = 0;
        for (; j + 2 <= count; j += 2)
#pragma GCC unroll 4
            for (int c = 0; c < many; ++c) {
                const float* const at = v + j * step + i + c * width;
                const Vec first = load(at), second = load(at + step);
#pragma GCC unroll 2
                for (int r = 0; r < R; ++r) {
                    even[r][c] += p[r * keys_per_part + j] * first;
                    odd[r][c] += p[r * keys_per_part + j + 1] * second;
                }
            }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < many; ++c) {
                if (j < count)
                    even[r][c] += p[r * keys_per_part + j] * load(v + j * step + i + c * width);
                store(o + r * o_step + i + c * width, even[r][c] + odd[r][c]);
            }
    }
    for (int r = 0; r < R; ++r)
        registers(size - i, [&](int64_t rest, auto n) {
            Vec total = {};
            for (int64_t j = 0; j < count; ++j)
                total += p[r * keys_per_part + j] * get(v + j * step + i + rest, n);
            store(o + r * o_step + i + rest, total);
        });
}

template <int R>
struct Count {
    static constexpr int value = R;
};

// body(r, Count<n>) over rows [r, last): n <= R of them at once where they may go together
template <int R, class F>
static inline void in_groups(int64_t r, int64_t last, bool together, const F& body) {
    if (together || R == 1)
        for (; r + R <= last; r += R) body(r, Count<R>{});
    if constexpr (R > 1) in_groups<R - 1>(r, last, together, body);
}

// Rows [first, last) come from memory while something else is done.
template <class T>
static inline void ask_for_rows(const T* x, int64_t stride, int64_t first, int64_t last, int64_t size) {
    for (int64_t j = first; j < last; ++j)
        for (int64_t i = 0; i < size; i += (int64_t)(64 / sizeof(T))) __builtin_prefetch(x + j * stride + i);
}

// One block of keys for all queries of a group.
template <class T>
static inline void attend_part(const FewQueries<T>& a, int64_t b, int64_t g, int64_t first, float* o,
                               Part* parts, const Scratch<float>& own) {
    const int64_t rows_here = a.rows_per_group(), size = padded(a.q.width), value_size = padded(a.v.width);
    const int64_t end = first + keys_per_part < a.keys(b) ? first + keys_per_part : a.keys(b);
    const int64_t repeat = a.q.heads / a.k.heads;
    float *const q = own.data, *const s = q + queries_at_once * size,
                 *const block = s + rows_here * keys_per_part;
    int64_t k_step, v_step;
    ask_for_rows(a.k.head(b, g), a.k.stride, first, end, a.k.width);
    ask_for_rows(a.v.head(b, g), a.v.stride, first, end, a.v.width);
    const float* const k = as_floats(a.k.head(b, g), a.k.stride, first, end, a.k.width, block, k_step);
    const auto seen = [&](int64_t r, int64_t& low, int64_t& high) {
        const int64_t position = a.position(b, r % a.q.length);
        low = a.sight.low(position), high = a.sight.high(position);
        low = low > first ? low : first, high = high < end ? high : end;
    };
    const bool alike = a.q.length == 1;  // all rows see the same keys
    in_groups<queries_at_once>((int64_t)0, rows_here, alike, [&](int64_t from, auto count) {
        int64_t low, high;
        seen(from, low, high);
        for (int64_t r = from; r < from + count.value; ++r) {
            parts[r] = {minus_infinity, 0.0f};
            const T* const row = a.q.row(b, g * repeat + r / a.q.length, r % a.q.length);
            float* const to = q + (r - from) * size;
            registers(a.q.width, [&](int64_t i, auto n) { store(to + i, get(row + i, n) * a.scale); });
        }
        if (low >= high) return;
        scores<count.value>(s + from * keys_per_part, q, k + (low - first) * k_step, k_step, high - low,
                            a.q.width);
        for (int64_t r = from; r < from + count.value; ++r) {
            const int64_t h = g * repeat + r / a.q.length, t = r % a.q.length;
            const uint8_t* const keep = a.mask.data ? a.mask.row(b, h, t) + low * a.mask.stride[3] : nullptr;
            parts[r] = softmax_part(s + r * keys_per_part, high - low, keep, a.mask.stride[3]);
        }
    });
    const float* const v = as_floats(a.v.head(b, g), a.v.stride, first, end, a.v.width, block, v_step);
    in_groups<2>((int64_t)0, rows_here, alike, [&](int64_t r, auto count) {
        int64_t low, high;
        seen(r, low, high);
        if (low < high)
            weighted_sum<count.value>(o + r * value_size, s + r * keys_per_part, v + (low - first) * v_step,
                                      v_step, high - low, a.v.width);
    });
}

// The parts of one row of queries together.
template <class T>
static inline void join_parts(const FewQueries<T>& a, int64_t b, int64_t h, int64_t t, const float* o,
                              const Part* parts, int64_t count, int64_t rows_here) {
    const int64_t value_size = padded(a.v.width);
    float most = minus_infinity, total = 0.0f;
    for (int64_t c = 0; c < count; ++c) {
        const float m = parts[c * rows_here].m;
        most = m != m || m > most ? m : most;
    }
    const auto factor = [&](int64_t c) {
        const float m = parts[c * rows_here].m;
        return m == minus_infinity ? 0.0f : m == most ? 1.0f : power_of_two(set(m - most))[0];
    };
    for (int64_t c = 0; c < count; ++c) total += factor(c) * parts[c * rows_here].l;
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    if (a.lse)
        a.lse[(b * a.q.heads + h) * a.q.length + t] =
            total == 0.0f ? minus_infinity : most * ln_2 + logf(total);
    T* const to = a.o.row(b, h, t);
    registers(a.v.width, [&](int64_t i, auto n) {
        Vec y = {};
        for (int64_t c = 0; c < count; ++c) {
            const float f = factor(c);
            if (parts[c * rows_here].l != 0.0f) y += f * load(o + c * rows_here * value_size + i);
        }
        put(to + i, n, y * inverse);
    });
}

template <class T>
static inline void attend_few(const FewQueries<T>& a) {
    int64_t longest = 0;
    for (int64_t b = 0; b < a.q.batch; ++b) longest = a.keys(b) > longest ? a.keys(b) : longest;
    const int64_t parts = (longest + keys_per_part - 1) / keys_per_part, groups = a.k.heads;
    const int64_t rows_here = a.rows_per_group(), value_size = padded(a.v.width);
    const int64_t size = padded(a.q.width), larger = size > value_size ? size : value_size;
    const Scratch<float> o(a.q.batch * groups * parts * rows_here * value_size);
    const Scratch<Part> found(a.q.batch * groups * parts * rows_here);
    const double work = (double)(rows_here + 4) * (double)keys_per_part * (double)(size + value_size);
    parallel_for(a.q.batch * groups * parts, work, [&](int64_t begin, int64_t end) {
        const Scratch<float> own(queries_at_once * size + (rows_here + larger) * keys_per_part);
        for (int64_t i = begin; i < end; ++i)
            attend_part(a, i / parts / groups, i / parts % groups, i % parts * keys_per_part,
                        o + i * rows_here * value_size, found + i * rows_here, own);
    });
    const int64_t in_batch = groups * rows_here;
    parallel_for(a.q.batch * in_batch, (double)(parts * value_size) * 4, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / in_batch, row = i % in_batch, g = row / rows_here, r = row % rows_here;
            const int64_t at = (b * groups + g) * parts * rows_here + r;
            join_parts(a, b, row / a.q.length, row % a.q.length, o + at * value_size, found + at, parts,
                       rows_here);
        }
    });
}

}  // namespace nn::NN_LEVEL
