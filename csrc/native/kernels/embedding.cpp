// Rows picked by index, and rows added up by index: an embedding and its gradient.
#include "kernels/indices.h"

namespace nn::NN_LEVEL {

template <class T>
static bool embedding(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto weight = rows<const T>(call, 1);
    const auto ids = ints(call, 2);
    if (!all_below(ids, weight.rows)) return false;
    parallel_for(ids.size, 2.0 * (double)y.cols * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) memcpy(y[n], weight[ids[n]], (size_t)y.cols * sizeof(T));
    });
    return true;
}
NN_KERNEL("embedding(weight[V,D], ids[N]:int) -> y[N,D]", embedding, float, bf16)

// Which n name each row, in increasing n: those of row r are order[first[r]] ... order[first[r + 1] - 1].
// A counting sort.
struct ByRow {
    Scratch<int64_t> first, order;
    ByRow(const Ints& index, int64_t rows) : first(rows + 2), order(index.size) {
        memset(first.data, 0, (size_t)(rows + 2) * sizeof(int64_t));
        for (int64_t n = 0; n < index.size; ++n) ++first[index[n] + 2];
        for (int64_t r = 2; r < rows + 2; ++r) first[r] += first[r - 1];
        for (int64_t n = 0; n < index.size; ++n) order[first[index[n] + 1]++] = n;
    }
};

// to[cols] = to + the sum of these rows of the source, in order
template <class T>
static inline void add_rows(float* to, const Rows<const T>& source, const int64_t* begin,
                            const int64_t* end) {
    registers(source.cols, [&](int64_t i, auto n) {
        Vec total = get(to + i, n);
        for (const int64_t* row = begin; row < end; ++row) total += get(source[*row] + i, n);
        put(to + i, n, total);
    });
}

template <class T>
static bool scatter_add(const Call& call) {
    const auto out = rows<float>(call, 0);
    const auto source = rows<const T>(call, 1);
    const auto index = ints(call, 2);
    if (!all_below(index, out.rows)) return false;
    const ByRow by(index, out.rows);
    const double per_row = 1.0 + (double)index.size / (double)(out.rows + 1);
    const double bytes = (double)out.cols * sizeof(float) * per_row;
    parallel_for(out.rows, bytes, [&](int64_t begin, int64_t end) {
        memset(out[begin], 0, (size_t)((end - begin) * out.cols) * sizeof(float));
        for (int64_t r = begin; r < end; ++r)
            add_rows(out[r], source, by.order + by.first[r], by.order + by.first[r + 1]);
    });
    return true;
}
NN_KERNEL("scatter_add(source[N,D], index[N]:int, rows) -> out[rows,D]:float", scatter_add, float, bf16)

}  // namespace nn::NN_LEVEL
