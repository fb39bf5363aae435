// Gradients of the experts' linear maps: for the rows r of expert e
//     dx[r] = dy[r] W_e,   dW_e = sum_r dy[r]T x[r]
// and, around them, of the gather before and SwiGLU behind (see swiglu_gradients).
#include "kernels/grouped/columns.h"

namespace nn::NN_LEVEL {

static inline Rows<float> matrix(const Experts<float>& weight, int64_t e) {
    return {const_cast<float*>(weight[e]), weight.outputs, weight.inputs, weight.row};
}

template <class T>
static inline int64_t bytes_of(const Experts<T>& weight) {
    return weight.count * weight.outputs * weight.inputs * (int64_t)sizeof(T);
}

static inline void clear_idle(const Experts<float>& dweight, const Ints& offsets) {
    for (int64_t e = 0; e < dweight.count; ++e)
        if (offsets[e] == offsets[e + 1]) clear_rows(matrix(dweight, e), 0);
}

// ---- grouped_linear ----

// dweight: dy, packed by columns, against panels of x that a task packs for itself
template <class P, class T>
static inline void weight_gradients(const Groups& groups, const PackedColumns<P, true>& dy,
                                    const Rows<const T>& x, const Experts<float>& dweight, Extent& extent) {
    constexpr int64_t at_once = 4, step = row_block<P>;
    const int64_t across = panels(x.cols, P::cols), blocks = panels(across, at_once);
    const double rows_each = (double)groups.rows / (double)groups.count;
    parallel_for(groups.count * blocks, rows_each * (double)(at_once * P::cols) * (double)dweight.outputs / 8,
                 [&](int64_t begin, int64_t end) {
                     const typename P::Loop loop;
                     const int64_t stride = P::units(step) * P::cols;
                     const Scratch<typename P::Unit> packed(at_once * stride);
                     const Scratch<Sums<P>> sums(dy.count * at_once);
                     for (int64_t task = begin; task < end; ++task) {
                         const Group& group = groups[task / blocks];
                         const int64_t left = task % blocks * at_once,
                                       here = across - left < at_once ? across - left : at_once;
                         for (int64_t r = 0; r < group.rows; r += step) {
                             const int64_t rows_here = group.rows - r < step ? group.rows - r : step;
                             const Operand<T> from = {x[group.first + r], 1, x.stride};
                             for (int64_t i = 0; i < here; ++i)
                                 extent.add(P::template pack<false>(packed + i * stride, from,
                                                                    (left + i) * P::cols, x.cols, rows_here));
                             for (int64_t p = 0; p < dy.count; ++p)
                                 multiply_panels<P>(sums + p * at_once, dy.slice(group, p, r), packed.data,
                                                    stride, here, rows_here, r > 0);
                         }
                         const Target<float> target(matrix(dweight, group.expert), bytes_of(dweight));
                         for (int64_t p = 0; p < dy.count; ++p) {
                             const int64_t row = p * P::rows, rows_left = dweight.outputs - row;
                             write<P>(target, row, rows_left < P::rows ? rows_left : P::rows, left * P::cols,
                                      here, sums + p * at_once);
                         }
                     }
                     fence();
                 });
}

template <class P, class T>
static inline bool linear_gradients(const Rows<T>& dx, const Experts<float>& dweight, const Rows<const T>& dy,
                                    const Rows<const T>& x, const Experts<T>& weight, const Ints& offsets) {
    const Groups groups(offsets, chunk_rows<P>);
    const int64_t outputs = weight.outputs;
    const PackedRows<P> by_rows(groups, outputs);
    const PackedColumns<P, true> by_columns(groups, outputs);
    const Target<T> target(dx);
    Extent of_dy, of_weight, of_x;
    for_chunks(groups, chunk_rows<P>, (double)(chunk_rows<P> * outputs) * 4 * sizeof(T),
               [&](const Group& group, int64_t first, int64_t here) {
                   const Operand<T> from = {dy[group.first + first], dy.stride, 1};
                   by_rows.pack(group, first, here, from, 0, outputs, of_dy);
                   by_columns.pack(group, first, here, from.data, dy.stride, of_dy);
               });
    multiply_groups<P, 1>(
        groups, by_rows, weight.inputs, outputs,
        [&](int64_t e) { return Operand<T>{weight[e], 1, weight.row}; }, of_weight,
        [&](int64_t row, int64_t column, auto n, const Sums<P>* sums, int64_t i, int v) {
            put_to(target, target.to[row] + column, n, sums[0][i][v]);
        });
    weight_gradients<P, T>(groups, by_columns, x, dweight, of_x);
    return of_dy.fits(of_weight, outputs) && of_dy.fits(of_x, groups.rows);
}

template <class T>
static bool grouped_linear_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const Experts<float> dweight(call.array[1]);
    const auto dy = rows<const T>(call, 2), x = rows<const T>(call, 3);
    const Experts<T> weight(call.array[4]);
    const Ints offsets = ints(call, 5);
    if (!are_offsets(offsets, dx.rows)) return false;
    clear_rows(dx, offsets[weight.count]);
    clear_idle(dweight, offsets);
    if (offsets[weight.count] == 0) return true;
    using Panels = typename Choice<T>::Panels;
    if (linear_gradients<Panels>(dx, dweight, dy, x, weight, offsets) || Choice<T>::exact) return true;
    if constexpr (!Choice<T>::exact) linear_gradients<FloatPanels>(dx, dweight, dy, x, weight, offsets);
    return true;
}
NN_KERNEL(
    "grouped_linear_backward(dy[M,O], x[M,I], weight[E,O,I], offsets[E+1]:int) -> dx[M,I], "
    "dweight[E,O,I]:float",
    grouped_linear_backward, float, bf16)

// ---- gathered_swiglu ----

template <class T>
struct Swiglu {
    Rows<const T> dy, hidden, x;
    Experts<T> weight;
    Ints offsets, order;
    int64_t choices;

    // dgate = dy up silu'(gate), dup = dy silu(gate): `count` columns of some rows, each half padded with
    // zeros
    void gradient(T* to, int64_t first, int64_t rows_here, int64_t column, int64_t count,
                  int64_t padded) const {
        const int64_t half = dy.cols;
        for (int64_t r = 0; r < rows_here; ++r, to += 2 * padded) {
            const T *const d = dy[first + r] + column, *const gate = hidden[first + r] + column;
            registers(count, [&](int64_t i, auto n) {
                const Vec z = get(gate + i, n), u = get(gate + half + i, n), g = get(d + i, n),
                          s = sigmoid(z);
                put(to + i, n, g * u * (s * (1.0f + z * (1.0f - s))));
                put(to + padded + i, n, g * (z * s));
            });
            for (int64_t i = count; i < padded; ++i) to[i] = to[padded + i] = T{};
        }
    }
};

template <class P>
constexpr int64_t half_block = row_block<P> == 512 ? 128 : 64;  // columns of each half at a time
constexpr int64_t splits = 2;  // of all columns: partial sums of dx, for twice as many tasks as experts

// One expert and a part of its columns, block by block: the gradient behind SwiGLU is formed for some
// columns, in the second cache; it gives these columns' dW at once, and is added up to dx of the part.
template <class P, class T>
struct Columns {
    using Unit = typename P::Unit;
    const Swiglu<T>& all;
    const Groups& groups;
    const PackedColumns<P, false>& x;
    const Experts<float>& dweight;
    Extent &of_gradient, &of_weight;
    int64_t stride_w = P::cols * P::units(2 * half_block<P>), stride_x = 0;
    Scratch<T> gradient{row_block<P> * 2 * half_block<P>};
    Scratch<Unit> packed_w{x.count * stride_w};
    Scratch<Unit> by_row{P::rows * P::units(2 * half_block<P>)};
    Scratch<Unit> by_column{P::rows * P::units(row_block<P>)};
    Scratch<Sums<P>> sums{panels(2 * half_block<P>, P::rows) * x.count};

    void pack_weight(int64_t e, int64_t column, int64_t count, int64_t padded) {
        const T* const gate = all.weight[e] + column * all.weight.row;
        const T* const up = gate + all.dy.cols * all.weight.row;
        for (int64_t i = 0; i < x.count; ++i) {
            Unit* const to = packed_w + i * stride_w;
            const Operand<T> first = {gate, 1, all.weight.row}, second = {up, 1, all.weight.row};
            of_weight.add(P::template pack<false>(to, first, i * P::cols, x.columns, count));
            of_weight.add(P::template pack<false>(to + P::units(padded) * P::cols, second, i * P::cols,
                                                  x.columns, count));
        }
    }

    void some_rows(const Group& group, Sums<P>* dx, int64_t r, int64_t rows_here, int64_t k, bool add) {
        for (int64_t p = 0; p < rows_here; p += P::rows) {
            of_gradient.add(P::template pack<true>(by_row.data, {gradient.data, k, 1}, p, rows_here, k));
            multiply_panels<P>(dx + (r + p) / P::rows * x.count, by_row.data, packed_w.data, stride_w,
                               x.count, k, add);
        }
        for (int64_t p = 0; p * P::rows < k; ++p) {
            of_gradient.add(
                P::template pack<true>(by_column.data, {gradient.data, 1, k}, p * P::rows, k, rows_here));
            multiply_panels<P>(sums + p * x.count, by_column.data, x.slice(group, 0, r), x.stride(group),
                               x.count, rows_here, r > 0);
        }
    }

    void write_weight(int64_t e, int64_t column, int64_t count, int64_t padded) {
        const Target<float> target(matrix(dweight, e), bytes_of(dweight));
        for (int64_t c = 0; c < 2 * padded; ++c) {
            const int64_t within = c < padded ? c : c - padded;
            if (within >= count) continue;
            float* const to = target.to[(c < padded ? 0 : all.dy.cols) + column + within];
            const Sums<P>* const row = sums + c / P::rows * x.count;
            for_registers<P>(1, x.count, x.columns, [&](int64_t, int64_t panel, int v, int64_t at, auto n) {
                put_to(target, to + at, n, row[panel][c % P::rows][v]);
            });
        }
    }

    void run(const Group& group, Sums<P>* dx, int64_t begin, int64_t end) {
        for (int64_t column = begin; column < end; column += half_block<P>) {
            const int64_t count = end - column < half_block<P> ? end - column : half_block<P>;
            const int64_t padded = panels(count, P::step) * P::step;
            pack_weight(group.expert, column, count, padded);
            for (int64_t r = 0; r < group.rows; r += row_block<P>) {
                const int64_t here = group.rows - r < row_block<P> ? group.rows - r : row_block<P>;
                all.gradient(gradient.data, group.first + r, here, column, count, padded);
                some_rows(group, dx, r, here, 2 * padded, column > begin);
            }
            write_weight(group.expert, column, count, padded);
        }
    }
};

// dx[n] = the sum of the parts of the rows of n's choices, in their order
template <class P, class T>
static inline void sum_choices(const Rows<T>& dx, const Groups& groups, const Sums<P>* parts_of_dx,
                               int64_t all_panels, const Ints& inverse, int64_t choices) {
    const int64_t across = panels(dx.cols, P::cols);
    parallel_for(dx.rows, (double)(dx.cols * choices) * 10, [&](int64_t begin, int64_t end) {
        const Scratch<const Sums<P>*> tile(choices);
        const Scratch<int64_t> lane(choices);
        for (int64_t n = begin; n < end; ++n) {
            int64_t used = 0;
            for (int64_t k = 0; k < choices; ++k) {
                const int64_t r = inverse[n * choices + k];
                if (r >= groups.rows) continue;  // a dropped pair
                const Group& group = groups.of_row(r);
                tile[used] = parts_of_dx + (first_panel<P>(group) + (r - group.first) / P::rows) * across;
                lane[used++] = (r - group.first) % P::rows;
            }
            for_registers<P>(1, across, dx.cols, [&](int64_t, int64_t panel, int v, int64_t at, auto lanes) {
                Vec sum = {};
                for (int64_t k = 0; k < used; ++k)
                    for (int64_t s = 0; s < splits; ++s)
                        sum += tile[k][s * all_panels * across + panel][lane[k]][v];
                put(dx[n] + at, lanes, sum);
            });
        }
    });
}

template <class P, class T>
static inline bool swiglu_gradients(const Rows<T>& dx, const Experts<float>& dweight, const Swiglu<T>& all,
                                    const Ints& inverse) {
    const Groups groups(all.offsets, chunk_rows<P>);
    const int64_t width_of_x = all.x.cols, half = all.dy.cols;
    const PackedColumns<P, false> x(groups, width_of_x);
    Extent of_x, of_gradient, of_weight;
    for_chunks(groups, chunk_rows<P>, (double)(chunk_rows<P> * width_of_x) * 4 * sizeof(T),
               [&](const Group& group, int64_t first, int64_t here) {
                   const Scratch<T> gathered(here * width_of_x);
                   for (int64_t r = 0; r < here; ++r)
                       memcpy(gathered + r * width_of_x,
                              all.x[all.order[group.first + first + r] / all.choices],
                              (size_t)width_of_x * sizeof(T));
                   x.pack(group, first, here, gathered.data, width_of_x, of_x);
               });
    const int64_t all_panels = groups.chunks * (chunk_rows<P> / P::rows);
    const int64_t part = panels(panels(half, splits), half_block<P>) * half_block<P>;
    const Scratch<Sums<P>> parts_of_dx(splits * all_panels * x.count);
    const double rows_each = (double)groups.rows / (double)groups.count;
    parallel_for(groups.count * splits, rows_each * (double)(width_of_x * part),
                 [&](int64_t begin, int64_t end) {
                     const typename P::Loop loop;
                     Columns<P, T> columns = {all, groups, x, dweight, of_gradient, of_weight};
                     for (int64_t task = begin; task < end; ++task) {
                         const Group& group = groups[task / splits];
                         const int64_t s = task % splits, first = s * part,
                                       end_of_part = first + part < half ? first + part : half;
                         Sums<P>* const to = parts_of_dx + (s * all_panels + first_panel<P>(group)) * x.count;
                         const int64_t tiles = panels(group.rows, P::rows) * x.count;
                         if (first >= half) memset((void*)to, 0, (size_t)tiles * sizeof(Sums<P>));
                         columns.run(group, to, first, end_of_part);
                     }
                     fence();
                 });
    sum_choices<P>(dx, groups, parts_of_dx.data, all_panels, inverse, all.choices);
    return of_gradient.fits(of_weight, 2 * half) && of_gradient.fits(of_x, groups.rows);
}

template <class T>
static bool gathered_swiglu_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const Experts<float> dweight(call.array[1]);
    const Swiglu<T> all = {rows<const T>(call, 2),    rows<const T>(call, 3), rows<const T>(call, 4),
                           Experts<T>(call.array[5]), ints(call, 6),          ints(call, 7),
                           (int64_t)number(call, 0)};
    const Ints inverse = ints(call, 8);
    const int64_t pairs = all.order.size;
    if (all.choices < 1 || all.weight.outputs != 2 * all.dy.cols || dx.rows * all.choices != pairs ||
        !are_offsets(all.offsets, pairs) || !inverse_of_each_other(all.order, inverse))
        return false;
    clear_idle(dweight, all.offsets);
    if (all.offsets[all.weight.count] == 0) {
        clear_rows(dx, 0);
        return true;
    }
    using Panels = typename Choice<T>::Panels;
    if (swiglu_gradients<Panels>(dx, dweight, all, inverse) || Choice<T>::exact) return true;
    if constexpr (!Choice<T>::exact) swiglu_gradients<FloatPanels>(dx, dweight, all, inverse);
    return true;
}
NN_KERNEL(
    "gathered_swiglu_backward(dy[M,F], hidden[M,C], x[N,I], weight[E,C,I], offsets[E+1]:int, order[M]:int, "
    "inverse[M]:int, choices) -> dx[N,I], dweight[E,C,I]:float",
    gathered_swiglu_backward, float, bf16)

}  // namespace nn::NN_LEVEL
