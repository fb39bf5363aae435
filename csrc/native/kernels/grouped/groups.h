// Rows grouped by expert, cut into chunks of rows, and the product of every group with its expert's matrix:
//     c[r, :] = a[r, :] b_eT   for the rows r of expert e
// a has been packed, chunk by chunk; b is packed by the task that needs it, for all rows of its group.
#pragma once
#include "kernels/grouped/write.h"
#include "kernels/indices.h"

namespace nn::NN_LEVEL {

constexpr int64_t k_block = 512;  // of a sum at a time: a panel of a stays in the first cache
constexpr int most_panels = 8;    // of b in one task

template <class Panels>
constexpr int64_t chunk_rows = Panels::rows == 32 ? 32 : 48;  // of a, a multiple of every panel's

struct Group {
    int64_t expert, first, rows, chunk;  // its rows lie from `first` on; its chunks from `chunk` on
};

// The experts that have rows, in order.
struct Groups {
    Scratch<Group> group;
    int64_t count = 0, chunks = 0, rows = 0;
    Groups(const Ints& offsets, int64_t chunk_size) : group(offsets.size) {
        for (int64_t e = 0; e + 1 < offsets.size; ++e) {
            const int64_t here = offsets[e + 1] - offsets[e];
            if (here == 0) continue;
            group[count++] = {e, offsets[e], here, chunks};
            chunks += panels(here, chunk_size);
        }
        rows = offsets[offsets.size - 1];
    }
    const Group& operator[](int64_t i) const { return group[i]; }
    const Group& of_chunk(int64_t chunk) const {
        int64_t i = 0;
        while (i + 1 < count && group[i + 1].chunk <= chunk) ++i;
        return group[i];
    }
    const Group& of_row(int64_t row) const {
        int64_t i = 0;
        while (i + 1 < count && group[i + 1].first <= row) ++i;
        return group[i];
    }
};

// body(group, first, here): every chunk of every group, `first` rows into it, on all threads
template <class F>
static inline void for_chunks(const Groups& groups, int64_t size, double bytes, const F& body) {
    parallel_for(groups.chunks, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
            const Group& group = groups.of_chunk(c);
            const int64_t first = (c - group.chunk) * size, left = group.rows - first;
            body(group, first, left < size ? left : size);
        }
    });
}

// Panels of a task: few enough for the second cache, and for all threads to have some.
static inline int64_t panels_at_once(int64_t all, int64_t panel_bytes) {
    const int64_t fit = (1 << 20) / (panel_bytes + 1), even = all / (8 * threads());
    const int64_t most = fit < most_panels ? fit : most_panels;
    return even < most ? (even > 1 ? even : 1) : (most > 1 ? most : 1);
}

// sums[i] (+)= a times panel i of b, over the whole of k; a by blocks, so that it is read from the first
// cache
template <class P, class Meanwhile = Nothing>
static inline void multiply_panels(Sums<P>* sums, const typename P::Unit* a, const typename P::Unit* b,
                                   int64_t b_stride, int64_t count, int64_t k, bool add = false,
                                   Meanwhile&& meanwhile = {}) {
    for (int64_t start = 0; start < k || start == 0; start += k_block) {
        const int64_t here = k - start < k_block ? k - start : k_block, at = P::units(start);
        for (int64_t i = 0; i < count; ++i)
            P::multiply(sums[i], a + at * P::rows, b + i * b_stride + at * P::cols, here, add || start > 0,
                        meanwhile);
    }
}

template <class P>
static inline int64_t first_panel(const Group& group) {  // of its rows
    return group.chunk * (chunk_rows<P> / P::rows);
}

// Packed rows of all groups: a group's panels lie one after the other, from its first chunk on.
template <class P>
struct PackedRows {
    int64_t stride;  // of a panel
    Scratch<typename P::Unit> data;
    PackedRows(const Groups& groups, int64_t k)
        : stride(P::rows * P::units(k)), data(groups.chunks * (chunk_rows<P> / P::rows) * stride) {}
    typename P::Unit* panel(const Group& group, int64_t row) const {
        return data + (first_panel<P>(group) + row / P::rows) * stride;
    }
    // rows [first, first + here) of the group; they are rows `from_row`, ... of the operand
    void pack(const Group& group, int64_t first, int64_t here, const Operand<typename P::Element>& from,
              int64_t from_row, int64_t k, Extent& extent) const {
        for (int64_t r = 0; r < here; r += P::rows)
            extent.add(
                P::template pack<true>(panel(group, first + r), from, from_row + r, from_row + here, k));
    }
};

// What has not been stored yet of the sums of a panel of rows: while tiles work on the next panel, some
// registers at every step (the gate's exponentials take as long as the products of a short k).
template <class P, int streams, class F>
struct Behind {
    const F* store;
    const Sums<P>* sums = nullptr;
    int64_t first = 0, rows = 0, column = 0, count = 0, cols = 0;  // where they go; panels; all columns
    int64_t row = 0, panel = 0, each = 0;

    void one() {
        for (int v = 0; v < 2; ++v) {
            const int64_t at = column + panel * P::cols + v * width;
            if (cols - at >= width)
                (*store)(first + row, at, All{}, sums + panel * streams, row, v);
            else if (cols - at > 0)
                (*store)(first + row, at, cols - at, sums + panel * streams, row, v);
        }
        if (++panel == count) panel = 0, ++row;
    }
    void begin(int64_t) const {}
    void some() {
        for (int64_t i = 0; i < each && row < rows; ++i) one();
    }
    void end() const {}
    void finish() {
        while (row < rows) one();
    }
};

// store(row, column, n, sums, i, v): n columns of a row, lanes of register v of row i of sums[0] to
// sums[streams - 1].  A panel of rows is multiplied with several panels of columns, each of them `streams`
// panels, whose columns are `cols` apart (gate and up).  b(expert) has streams * cols rows.
template <class P, int streams, class B, class F>
static inline void multiply_groups(const Groups& groups, const PackedRows<P>& a, int64_t cols, int64_t k,
                                   const B& b, Extent& extent, const F& store) {
    const int64_t across = panels(cols, P::cols), b_stride = P::cols * P::units(k);
    const int64_t block = panels_at_once(across * groups.count * streams, b_stride * 4) / streams;
    const int64_t at_once = block > 1 ? block : 1, blocks = panels(across, at_once);
    const double rows_each = (double)groups.rows / (double)(groups.count > 0 ? groups.count : 1);
    parallel_for(groups.count * blocks, rows_each * (double)(at_once * streams * P::cols) * (double)k / 8,
                 [&](int64_t begin, int64_t end) {
                     const typename P::Loop loop;
                     const Scratch<typename P::Unit> packed(at_once * streams * b_stride);
                     const Scratch<Sums<P>> sums(2 * most_panels);  // of two panels of rows in turn
                     for (int64_t task = begin; task < end; ++task) {
                         const Group& group = groups[task / blocks];
                         const int64_t left = task % blocks * at_once;
                         const int64_t here = across - left < at_once ? across - left : at_once;
                         const auto operand = b(group.expert);
                         for (int64_t i = 0; i < here * streams; ++i) {
                             const int64_t start = i % streams * cols;
                             extent.add(P::template pack<false>(packed + i * b_stride, operand,
                                                                start + (left + i / streams) * P::cols,
                                                                start + cols, k));
                         }
                         Behind<P, streams, F> behind = {&store};
                         const int64_t steps = here * streams * panels(k, 32);
                         for (int64_t r = 0; r < group.rows; r += P::rows) {
                             Sums<P>* const own = sums + r / P::rows % 2 * most_panels;
                             multiply_panels<P>(own, a.panel(group, r), packed.data, b_stride, here * streams,
                                                k, false, behind);
                             behind.finish();
                             const int64_t rows_here = group.rows - r < P::rows ? group.rows - r : P::rows;
                             behind = {&store, own, group.first + r, rows_here, left * P::cols, here, cols};
                             behind.each = panels(rows_here * here, steps > 0 ? steps : 1);
                         }
                         behind.finish();
                     }
                     fence();
                 });
}

template <class T>
static inline void clear_rows(const Rows<T>& x, int64_t first) {
    if (!x.data) return;
    for (int64_t r = first; r < x.rows; ++r) memset((void*)x[r], 0, (size_t)x.cols * sizeof(T));
}

template <class T>
struct Experts {  // weight[E,O,I]
    const T* data;
    int64_t count, outputs, inputs, stride, row;
    explicit Experts(const Array& a)
        : data(static_cast<const T*>(a.data)),
          count(a.shape[0]),
          outputs(a.shape[1]),
          inputs(a.shape[2]),
          stride(a.stride[0]),
          row(a.stride[1]) {}
    const T* operator[](int64_t e) const { return data + e * stride; }
};

}  // namespace nn::NN_LEVEL
