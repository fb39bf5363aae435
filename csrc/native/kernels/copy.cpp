// Arrays laid out densely: what a reshape of a permuted array needs.
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

template <class T>
static bool contiguous(const Call& call) {
    const auto y = rows4<T>(call, 0);
    const auto x = rows4<const T>(call, 1);
    const int64_t heads = x.size[1], length = x.size[2], cols = x.size[3];
    parallel_for(x.size[0] * heads * length, (double)cols * 2 * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const T* from = x(r / (heads * length), r / length % heads, r % length);
            __builtin_memcpy(y.data + r * cols, from, (size_t)cols * sizeof(T));
        }
    });
    return true;
}
NN_KERNEL("contiguous(x[B,H,T,D]) -> y[B,H,T,D]", contiguous, float, bf16)

}  // namespace nn::NN_LEVEL
