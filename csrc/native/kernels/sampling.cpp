// The k largest of each row, equal ones by the lowest index: one pass with the k best so far in a heap whose
// root is the worst of them.  Few elements get past the root: of n in random order k ln(n/k).
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

template <class T>
static inline void row_top_k(int64_t* ids, const T* z, int64_t count, Found* heap, int64_t k) {
    for (int64_t at = 0; at < k; ++at) heap[at] = {get(z + at, (int64_t)1)[0], at};
    for (int64_t at = k / 2; at-- > 0;) sift(heap, at, k, worse);
    const auto look = [&](int64_t i) {
        const float value = get(z + i, (int64_t)1)[0];
        if (!(value > heap[0].value)) return;
        heap[0] = {value, i};
        sift(heap, 0, k, worse);
    };
    int64_t i = k;
    for (; i + together <= count; i += together) {
        Vec most = set(heap[0].value);
        for (int64_t part = 0; part < together; part += width) most = max(get(z + i + part, All{}), most);
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

template <class T>
static bool top_k(const Call& call) {
    const Array& ids = call.array[0];
    const auto z = rows<const T>(call, 1);
    const int64_t k = ids.shape[1];
    if (k > z.cols) return false;
    parallel_for(z.rows, (double)z.cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        const Scratch<Found> heap(k);
        for (int64_t r = begin; k > 0 && r < end; ++r)
            row_top_k(static_cast<int64_t*>(ids.data) + r * ids.stride[0], z[r], z.cols, heap.data, k);
    });
    return true;
}
NN_KERNEL("top_k(z[B,V], k) -> ids[B,K]:int", top_k, float, bf16)

}  // namespace nn::NN_LEVEL
