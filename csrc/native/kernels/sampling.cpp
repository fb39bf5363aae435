// The k largest of each row, equal ones by the lowest index: one pass with the k best so far in a heap whose
// root is the worst of them.  Few elements get past the root: of n in random order k ln(n/k).
#include "kernels/largest.h"

namespace nn::NN_LEVEL {

template <class T>
static bool top_k(const Call& call) {
    const Array& ids = call.array[0];
    const auto z = rows<const T>(call, 1);
    const int64_t k = ids.shape[1];
    if (k > z.cols) return false;
    parallel_for(z.rows, (double)z.cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        const Scratch<Found> heap(k);
        for (int64_t r = begin; k > 0 && r < end; ++r)
            row_top_k(static_cast<int64_t*>(ids.data) + r * ids.stride[0], z.cols, heap.data, k,
                      [&](int64_t i, auto n) { return get(z[r] + i, n); });
    });
    return true;
}
NN_KERNEL("top_k(z[B,V], k) -> ids[B,K]:int", top_k, float, bf16)

}  // namespace nn::NN_LEVEL
