// Operands whose rows are the axis of the sum: panels of columns, every chunk of rows a slice of each.
#pragma once
#include "kernels/grouped/groups.h"

namespace nn::NN_LEVEL {

// rows of a sum at a time, whole chunks: what is formed of them stays in the second cache
template <class P>
constexpr int64_t row_block = chunk_rows<P> * (chunk_rows<P> != 32                ? 5
                                               : sizeof(typename P::Element) == 2 ? 16
                                                                                  : 8);

template <class P, bool is_a>
struct PackedColumns {
    static constexpr int64_t size = is_a ? P::rows : P::cols;
    int64_t columns, count;  // count: panels
    Scratch<typename P::Unit> data;
    PackedColumns(const Groups& groups, int64_t width_of_rows)
        : columns(width_of_rows),
          count(panels(width_of_rows, size)),
          data(groups.chunks * P::units(chunk_rows<P>) * count * size) {}
    int64_t stride(const Group& group) const {  // of a panel
        return panels(group.rows, chunk_rows<P>) * P::units(chunk_rows<P>) * size;
    }
    // panel i from the group's row `first` on, where a chunk begins
    typename P::Unit* slice(const Group& group, int64_t i, int64_t first) const {
        return data + group.chunk * P::units(chunk_rows<P>) * count * size + i * stride(group) +
               P::units(first) * size;
    }
    // rows [first, first + here) of the group
    template <class T>
    void pack(const Group& group, int64_t first, int64_t here, const T* from, int64_t row,
              Extent& extent) const {
        for (int64_t i = 0; i < count; ++i)
            extent.add(P::template pack<is_a>(slice(group, i, first), Operand<T>{from, 1, row}, i * size,
                                              columns, here));
    }
};

}  // namespace nn::NN_LEVEL
