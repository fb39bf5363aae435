// The k largest of a row by a heap, for the kernels that choose tokens.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

struct Found {
    float value;
    int64_t index;
};
static inline bool worse(const Found& a, const Found& b) {
    return a.value < b.value || (a.value == b.value && a.index > b.index);
}
static inline bool later(const Found& a, const Found& b) { return a.index > b.index; }

constexpr int64_t together = 8 * width;  // elements looked at with one comparison

// Restores the heap below `at`: no element comes before(its parent).
template <class Before>
static inline void sift(Found* heap, int64_t at, int64_t count, const Before& before) {
    const Found moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child])) ++child;
        if (!before(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

// Ascending indices of the k <= count largest of value(i, n): n of them from i on.
template <class F>
static inline void row_top_k(int64_t* ids, int64_t count, Found* heap, int64_t k, const F& value) {
    const auto one_of = [&](int64_t i) { return value(i, (int64_t)1)[0]; };
    for (int64_t at = 0; at < k; ++at) heap[at] = {one_of(at), at};
    for (int64_t at = k / 2; at-- > 0;) sift(heap, at, k, worse);
    const auto look = [&](int64_t i) {
        const float found = one_of(i);
        if (!(found > heap[0].value)) return;
        heap[0] = {found, i};
        sift(heap, 0, k, worse);
    };
    int64_t i = k;
    for (; i + together <= count; i += together) {
        Vec most = set(heap[0].value);
        for (int64_t part = 0; part < together; part += width) most = max(value(i + part, All{}), most);
        if (largest(most) > heap[0].value)
            for (int64_t one = i; one < i + together; ++one) look(one);
    }
    for (; i < count; ++i) look(i);
    for (int64_t at = k / 2; at-- > 0;) sift(heap, at, k, later);  // the largest index first: it goes last
    for (int64_t last = k; last-- > 0;) {
        ids[last] = heap[0].index;
        heap[0] = heap[last];
        sift(heap, 0, last, later);
    }
}

}  // namespace nn::NN_LEVEL
