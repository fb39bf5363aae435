// What attention's two directions share: a block of queries, lying in lanes, and its scores with a block of
// keys.
//
// Queries lie along the lanes of registers and keys (or channels) down the rows of every block, so that
// maxima, sums and factors are registers of their own queries and nothing is added across lanes.
#pragma once
#include "kernels/attention_pack.h"

namespace nn::NN_LEVEL {

template <class T>
struct Problem {
    Heads<const T> q, k, v;
    Sight sight;
    Mask mask;
    float scale;  // above 0

    int64_t repeat() const { return q.heads / k.heads; }
    int64_t position(int64_t t) const { return k.length - q.length + t; }
};

// The first arguments of both directions; false: for the reference.
template <class T>
static inline bool take_problem(Problem<T>& p, const Call& call, int q, int mask) {
    p.q = heads<const T>(call, q), p.k = heads<const T>(call, q + 1), p.v = heads<const T>(call, q + 2);
    p.scale = (float)number(call, 0);
    const double window = number(call, 2);  // positions are 32-bit lanes: a larger one sees as much
    p.sight = {p.k.length, window < INT32_MAX ? (int64_t)window : INT32_MAX, number(call, 1) != 0};
    const int64_t sizes[4] = {p.q.batch, p.q.heads, p.q.length, p.k.length};
    return p.k.heads > 0 && p.q.heads % p.k.heads == 0 && p.scale > 0 && p.sight.window >= 0 &&
           take_mask(p.mask, call.array[mask], sizes);
}

// Queries t .. t + count of one head, and the keys that any of them sees.
struct QueryBlock {
    int64_t b, h, g, t, count, vecs, low, high;
};

template <class E, class T>
static inline QueryBlock query_block(const Problem<T>& p, int64_t b, int64_t h, int64_t index) {
    constexpr int64_t most = Shape<E>::vecs * width;
    const int64_t t = index * most, left = p.q.length - t, count = left < most ? left : most;
    const int64_t low = p.sight.low(p.position(t)), high = p.sight.high(p.position(t + count - 1));
    constexpr int64_t even = Shape<E>::whole > 1 ? 2 * width : width;  // tiles want pairs of registers
    return {
        b,   h, h / p.repeat(), t, count, round_up(count, even) / width, low / Shape<E>::keys * Shape<E>::keys,
        high};
}

template <class E, class T>
static inline int64_t query_blocks(const Problem<T>& p) {
    constexpr int64_t most = Shape<E>::vecs * width;
    return (p.q.length + most - 1) / most;
}

static inline Int lanes_from(int64_t first) {
    Int lane;
    for (int i = 0; i < width; ++i) lane[i] = i;
    return lane + (int32_t)first;
}

static inline void hide_masked(float* s, int64_t ld, const Mask& mask, const QueryBlock& block, int64_t key,
                               int64_t count) {
    for (int64_t lane = 0; lane < block.count; ++lane) {
        const uint8_t* const keep = mask.row(block.b, block.h, block.t + lane) + key * mask.stride[3];
        for (int64_t j = 0; j < count; ++j)
            if (!keep[j * mask.stride[3]]) s[j * ld + lane] = minus_infinity;
    }
}

// Scores s[key][query] of keys key .. key + count: -inf where a query does not see the key.
template <class T>
static inline void hide(float* s, const Problem<T>& p, const QueryBlock& block, int64_t key, int64_t count) {
    const int64_t ld = block.vecs * width, first = p.position(block.t), last = first + block.count - 1;
    const Sight& sight = p.sight;
    const bool late = sight.causal && key + count - 1 > first;
    const bool early = sight.window && key <= last - sight.window;
    const bool beyond = sight.window && !sight.causal && key + count - 1 >= first + sight.window;
    if (late || early || beyond)
        for (int64_t v = 0; v < block.vecs; ++v) {
            const Int position = lanes_from(first + v * width);
            const int32_t back = sight.window ? (int32_t)sight.window : INT32_MAX;
            const int32_t ahead = sight.causal ? 1 : back;
            for (int64_t j = 0; j < count; ++j) {
                float* const at = s + j * ld + v * width;
                const Int behind = position - (int32_t)(key + j);
                store(at, pick((behind < back) & (behind > -ahead), load(at), set(minus_infinity)));
            }
        }
    if (p.mask.data) hide_masked(s, ld, p.mask, block, key, count);
}

// to's rows = the columns of from[channels][lanes], times factor[lane]
template <class T>
static inline void lanes_to_rows(T* to, int64_t stride, const float* from, int64_t vecs, int64_t count,
                                 int64_t channels, const Vec* factor) {
    for (int64_t v = 0; v < vecs; ++v)
        for (int64_t c = 0; c < channels; c += width) {
            const int64_t n = channels - c < width ? channels - c : width;
            Bits x[width];
            for (int i = 0; i < width; ++i)
                x[i] = i < n ? bits_of(load(from + (c + i) * vecs * width + v * width) * factor[v]) : Bits{};
            transpose(x);
            for (int i = 0; i < width && v * width + i < count; ++i) {
                T* const at = to + (v * width + i) * stride + c;
                n == width ? store(at, (Vec)x[i]) : store(at, (Vec)x[i], n);
            }
        }
}

// The upper halves of two registers in one of pairs, rounded to nearest.
static inline Bits round_pair(Vec low, Vec high) {
    return ((bits_of(low) + 0x8000u) >> 16) | ((bits_of(high) + 0x8000u) & 0xffff0000u);
}

// A register of p[key][query] of the keys j and j + 1, the last of which may lack the second, as the right
// operand of a product over keys: float32 a key per row, or rounded, in pairs.
static inline void put_keys(float* to, int64_t ld, int64_t j, Vec p, Vec next) {
    store(to + j * ld, p);
    store(to + (j + 1) * ld, next);
}
static inline void put_last_key(float* to, int64_t ld, int64_t j, Vec p) { store(to + j * ld, p); }
static inline void put_keys(uint32_t* to, int64_t ld, int64_t j, Vec p, Vec next) {
    const Bits x = round_pair(p, next);
    memcpy(to + j / 2 * ld, &x, sizeof x);
}
static inline void put_last_key(uint32_t* to, int64_t ld, int64_t j, Vec p) { put_keys(to, ld, j, p, Vec{}); }

// Zeros from key `count` on, as far as tiles read.
static inline void pad_keys(float*, int64_t, int64_t) {}
static inline void pad_keys(uint32_t* to, int64_t ld, int64_t count) {
    for (int64_t u = (count + 1) / 2; u < units<bf16>(count); ++u) memset(to + u * ld, 0, sizeof(Vec));
}

}  // namespace nn::NN_LEVEL
