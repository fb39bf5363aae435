// Sums over rows.  One partial sum per fixed block of rows, added in order; within a block four rows at a time,
// so that the partial sums, in the first-level cache, are read and written a quarter as often.
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

template <class T>
static bool column_sum(const Call& call) {
    const auto s = flat<float>(call, 0);
    const auto x = rows<const T>(call, 1);
    const int64_t cols = x.cols, blocks = block_count(x.rows);
    const Scratch<float> partial(blocks * cols);
    for_blocks(x.rows, (double)cols * sizeof(T), [&](int64_t block, int64_t begin, int64_t end) {
        float* const own = partial + block * cols;
        memset(own, 0, (size_t)cols * sizeof(float));
        int64_t r = begin;
        for (; r + 4 <= end; r += 4)
            registers(cols, [&](int64_t i, auto n) {
                const Vec four = (get(x[r] + i, n) + get(x[r + 1] + i, n)) +
                                 (get(x[r + 2] + i, n) + get(x[r + 3] + i, n));
                put(own + i, n, get(own + i, n) + four);
            });
        for (; r < end; ++r)
            registers(cols, [&](int64_t i, auto n) { put(own + i, n, get(own + i, n) + get(x[r] + i, n)); });
    });
    elements(cols, (double)(blocks + 1) * sizeof(float), [&](int64_t i, auto n) {
        Vec total = {};
        for (int64_t b = 0; b < blocks; ++b) total += get(partial + (b * cols + i), n);
        put(s + i, n, total);
    });
    return true;
}
NN_KERNEL("column_sum(x[R,D]) -> s[D]:float", column_sum, float, bf16)

}  // namespace nn::NN_LEVEL
