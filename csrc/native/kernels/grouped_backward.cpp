// Gradients of the experts' linear maps, with the gather and SwiGLU around them in the same passes.
//     g[r]    = dy[r], or swiglu's gradient of it at hidden[r]
//     dx[r]   = g[r] W_e;   dx[n] = sum_k of it over the rows of token n, in the order of the choices
//     dW_e    = sum_r g[r]T x[r]
// 1. chunks of rows: g is formed once, and packed both ways; x is gathered and packed.  2. all products.  3.
// sums.
#include "kernels/grouped/groups.h"

namespace nn::NN_LEVEL {

// Operands whose rows are the axis of the sum: panels of columns, every chunk of rows a slice of each.
template <class P, bool is_a>
struct PackedColumns {
    static constexpr int64_t size = is_a ? P::rows : P::cols;
    int64_t count, columns;  // panels
    Scratch<typename P::Unit> data;
    PackedColumns(const Groups& groups, int64_t width_of_rows)
        : count(panels(width_of_rows, size)),
          columns(width_of_rows),
          data(groups.chunks * P::units(chunk_rows<P>) * count * size) {}
    int64_t stride(const Group& group) const {
        return panels(group.rows, chunk_rows<P>) * P::units(chunk_rows<P>) * size;
    }
    typename P::Unit* panel(const Group& group, int64_t i) const {
        return data + group.chunk * P::units(chunk_rows<P>) * count * size + i * stride(group);
    }
    // rows [first, first + here) of the group
    template <class T>
    void pack(const Group& group, int64_t first, int64_t here, const T* from, int64_t row,
              Extent& extent) const {
        const int64_t slice = P::units(first) * size;
        for (int64_t i = 0; i < count; ++i)
            extent.add(P::template pack<is_a>(panel(group, i) + slice, Operand<T>{from, 1, row}, i * size,
                                              columns, here));
    }
};

// ---- one call's operands, whichever kernel it is ----

template <class T>
struct Plain {  // grouped_linear
    Rows<const T> dy, x;
    static constexpr int64_t choices = 1;
    static constexpr bool in_scratch = false;
    int64_t width_of_gradient() const { return dy.cols; }
    int64_t gradient(int64_t r, int64_t, T*, const T*& from) const {
        from = dy[r];
        return dy.stride;
    }
    int64_t inputs(int64_t r, int64_t, T*, const T*& from) const {
        from = x[r];
        return x.stride;
    }
};

template <class T>
struct Swiglu {  // gathered_swiglu
    Rows<const T> dy, hidden, x;
    Ints order;
    int64_t choices;
    static constexpr bool in_scratch = true;
    int64_t width_of_gradient() const { return hidden.cols; }

    // dgate = dy up silu'(gate), dup = dy silu(gate), of `count` rows into `to`, whose rows it is dense in
    int64_t gradient(int64_t first, int64_t count, T* to, const T*& from) const {
        const int64_t half = dy.cols;
        for (int64_t r = 0; r < count; ++r) {
            const T *const d = dy[first + r], *const gate = hidden[first + r];
            T* const out = to + r * 2 * half;
            registers(half, [&](int64_t i, auto n) {
                const Vec z = get(gate + i, n), u = get(gate + half + i, n), g = get(d + i, n),
                          s = sigmoid(z);
                put(out + i, n, g * u * (s * (1.0f + z * (1.0f - s))));
                put(out + half + i, n, g * (z * s));
            });
        }
        from = to;
        return 2 * half;
    }
    int64_t inputs(int64_t first, int64_t count, T* to, const T*& from) const {
        for (int64_t r = 0; r < count; ++r)
            memcpy(to + r * x.cols, x[order[first + r] / choices], (size_t)x.cols * sizeof(T));
        from = to;
        return x.cols;
    }
};

template <class P, class T>
struct Packed {
    PackedRows<P> gradient;
    PackedColumns<P, true> gradient_columns;
    PackedColumns<P, false> inputs;
    Extent left, right, across;
    Packed(const Groups& groups, int64_t outputs, int64_t width_of_x)
        : gradient(groups, outputs), gradient_columns(groups, outputs), inputs(groups, width_of_x) {}
    bool fits() const { return left.fits() && right.fits() && across.fits(); }
};

template <class P, class T, class Source>
static inline void pack_all(const Groups& groups, const Source& source, Packed<P, T>& packed) {
    const int64_t outputs = source.width_of_gradient(), width_of_x = source.x.cols;
    const double bytes = (double)(chunk_rows<P> * outputs) * (Source::in_scratch ? 16 : 6) * sizeof(T) / 2;
    for_chunks(groups, chunk_rows<P>, bytes, [&](const Group& group, int64_t first, int64_t here) {
        const Scratch<T> scratch(Source::in_scratch ? chunk_rows<P> * (outputs + width_of_x) : 1);
        const T* from;
        int64_t row = source.gradient(group.first + first, here, scratch.data, from);
        packed.gradient.pack(group, first, here, Operand<T>{from, row, 1}, 0, outputs, packed.left);
        packed.gradient_columns.pack(group, first, here, from, row, packed.left);
        row = source.inputs(group.first + first, here,
                            scratch.data + outputs * chunk_rows<P> * Source::in_scratch, from);
        packed.inputs.pack(group, first, here, from, row, packed.right);
    });
}

// dweight_e = gT x: panels of columns against panels of columns, summed over the group's rows
template <class P, class T>
static inline void weight_gradients(const Groups& groups, const Packed<P, T>& packed,
                                    const Experts<float>& dweight) {
    const auto& a = packed.gradient_columns;
    const auto& b = packed.inputs;
    const int64_t blocks = panels(a.count, most_panels);
    const double rows_each = (double)groups.rows / (double)(groups.count > 0 ? groups.count : 1);
    parallel_for(groups.count * blocks,
                 rows_each * (double)(most_panels * P::rows) * (double)dweight.inputs / 8,
                 [&](int64_t begin, int64_t end) {
                     const typename P::Loop loop;
                     alignas(64) Sums<P> sums[most_panels];
                     for (int64_t task = begin; task < end; ++task) {
                         const Group& group = groups[task / blocks];
                         const int64_t top = task % blocks * most_panels;
                         const Rows<float> to = {const_cast<float*>(dweight[group.expert]), dweight.outputs,
                                                 dweight.inputs, dweight.row};
                         for (int64_t left = 0; left < b.count; left += most_panels) {
                             const int64_t here = b.count - left < most_panels ? b.count - left : most_panels;
                             for (int64_t p = top; p < top + most_panels && p < a.count; ++p) {
                                 multiply_panels<P>(sums, a.panel(group, p), b.panel(group, left),
                                                    b.stride(group), here, group.rows);
                                 const int64_t row = p * P::rows, rows_left = to.rows - row;
                                 for (int64_t i = 0; i < here; ++i)
                                     write<P>(to, row, rows_left < P::rows ? rows_left : P::rows,
                                              (left + i) * P::cols, sums[i]);
                             }
                         }
                     }
                 });
}

static inline void clear_idle(const Experts<float>& dweight, const Ints& offsets) {
    for (int64_t e = 0; e < dweight.count; ++e)
        if (offsets[e] == offsets[e + 1])
            for (int64_t o = 0; o < dweight.outputs; ++o)
                memset((void*)(dweight[e] + o * dweight.row), 0, (size_t)dweight.inputs * sizeof(float));
}

// dx of every row into `to`, and dweight
template <class P, class Out, class T, class Source>
static inline bool products(const Source& source, const Ints& offsets, const Experts<T>& weight,
                            const Rows<Out>& to, const Experts<float>& dweight) {
    const Groups groups(offsets, chunk_rows<P>);
    Packed<P, T> packed(groups, weight.outputs, weight.inputs);
    pack_all<P, T>(groups, source, packed);
    multiply_groups<P, 1>(
        groups, packed.gradient, weight.inputs, weight.outputs,
        [&](int64_t e) { return Operand<T>{weight[e], 1, weight.row}; }, packed.across,
        [&](const Group& group, int64_t row, int64_t here, int64_t column, const Sums<P>* sums) {
            write<P>(to, group.first + row, here, column, sums[0]);
        });
    weight_gradients<P, T>(groups, packed, dweight);
    return packed.fits();
}

template <class Out, class T, class Source>
static inline void all_products(const Source& source, const Ints& offsets, const Experts<T>& weight,
                                const Rows<Out>& to, const Experts<float>& dweight) {
    clear_idle(dweight, offsets);
    if (offsets[weight.count] == 0) return;
    if (products<typename Choice<T>::Panels>(source, offsets, weight, to, dweight) || Choice<T>::exact)
        return;
    if constexpr (!Choice<T>::exact) products<FloatPanels>(source, offsets, weight, to, dweight);
}

template <class T>
static bool grouped_linear_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const Experts<float> dweight(call.array[1]);
    const Plain<T> source = {rows<const T>(call, 2), rows<const T>(call, 3)};
    const Experts<T> weight(call.array[4]);
    const Ints offsets = ints(call, 5);
    if (!are_offsets(offsets, dx.rows)) return false;
    clear_rows(dx, offsets[weight.count]);
    all_products(source, offsets, weight, dx, dweight);
    return true;
}
NN_KERNEL(
    "grouped_linear_backward(dy[M,O], x[M,I], weight[E,O,I], offsets[E+1]:int) -> dx[M,I], "
    "dweight[E,O,I]:float",
    grouped_linear_backward, float, bf16)

template <class T>
static bool gathered_swiglu_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const Experts<float> dweight(call.array[1]);
    const Swiglu<T> source = {rows<const T>(call, 2), rows<const T>(call, 3), rows<const T>(call, 4),
                              ints(call, 7), (int64_t)number(call, 0)};
    const Experts<T> weight(call.array[5]);
    const Ints offsets = ints(call, 6), inverse = ints(call, 8);
    const int64_t choices = source.choices, pairs = source.order.size;
    if (choices < 1 || weight.outputs != 2 * source.dy.cols || dx.rows * choices != pairs ||
        !are_offsets(offsets, pairs) || !inverse_of_each_other(source.order, inverse))
        return false;
    const int64_t used = offsets[weight.count];  // rows beyond are those of dropped pairs
    const Scratch<float> by_row(used * dx.cols);
    all_products(source, offsets, weight, Rows<float>{by_row.data, used, dx.cols, dx.cols}, dweight);
    parallel_for(dx.rows, (double)(dx.cols * choices) * 6, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            registers(dx.cols, [&](int64_t i, auto lanes) {
                Vec sum = {};
                for (int64_t k = 0; k < choices; ++k) {
                    const int64_t r = inverse[n * choices + k];
                    if (r < used) sum += get(by_row + r * dx.cols + i, lanes);
                }
                put(dx[n] + i, lanes, sum);
            });
    });
    return true;
}
NN_KERNEL(
    "gathered_swiglu_backward(dy[M,F], hidden[M,C], x[N,I], weight[E,C,I], offsets[E+1]:int, order[M]:int, "
    "inverse[M]:int, choices) -> dx[N,I], dweight[E,C,I]:float",
    gathered_swiglu_backward, float, bf16)

}  // namespace nn::NN_LEVEL
