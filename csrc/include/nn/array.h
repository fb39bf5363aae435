// What arrays do without a kernel of their own: arithmetic with broadcasting, casts and copies between any
// strides, reductions, gather and scatter, cumulative sums, sorting, searching.  Operation and types are
// run-time arguments.
//
// Types: all of nn_dtype; float64 is stored, cast, copied, compared, added, multiplied, summed.  Halves are
// computed in float32 and rounded once, integers in 64 bits (and wrap), integers beside floats in float32.
#pragma once

#include "types.h"

#define NN_ARRAY_AXES 8

// One shape and, for up to four operands, the distance in elements between neighbours along each axis: 0
// repeats, negative goes backwards.  Operand 0 is the destination, the others follow in the arguments' order.
typedef struct nn_array_layout {
    int64_t size;                                        // sizeof(nn_array_layout)
    int64_t ndim;
    int64_t shape[NN_ARRAY_AXES];
    int64_t strides[4][NN_ARRAY_AXES];
} nn_array_layout;

// The same elements in fewer axes, for the first `operands` operands: axes of one element are dropped, axes
// that lie one within the other become one.  Every function here does this by itself; on the host only.
NN_API int nn_array_layout_merge(nn_array_layout* layout, int32_t operands);

typedef enum nn_array_op {
    // of one operand
    NN_COPY = 0, NN_NEGATIVE, NN_ABS, NN_SIGN, NN_SQUARE, NN_SQRT, NN_RSQRT, NN_RECIPROCAL, NN_EXP, NN_LOG,
    NN_TANH, NN_FLOOR, NN_CEIL, NN_TRUNC, NN_ROUND,               // halves to even
    NN_ISFINITE, NN_ISNAN, NN_ISINF, NN_LOGICAL_NOT, NN_INVERT,
    NN_EXPM1, NN_LOG1P, NN_LOG2, NN_SIN, NN_COS, NN_ERF,
    // of two
    NN_ADD = 32, NN_SUBTRACT, NN_MULTIPLY, NN_DIVIDE, NN_MAXIMUM, NN_MINIMUM,        // NaN wins
    NN_EQUAL, NN_NOT_EQUAL, NN_LESS, NN_LESS_EQUAL, NN_GREATER, NN_GREATER_EQUAL,    // 1 or 0
    NN_AND, NN_OR, NN_XOR, NN_SHIFT_LEFT, NN_SHIFT_RIGHT,
    NN_LOGICAL_AND, NN_LOGICAL_OR, NN_LOGICAL_XOR,
    NN_FLOOR_DIVIDE, NN_REMAINDER, NN_POWER,             // remainder: the divisor's sign; of integers by 0: 0
    // of three
    NN_WHERE = 64
} nn_array_op;

// y = op(x); NN_COPY is the cast, and the copy between strides.  y may be x; they may not overlap otherwise.
NN_API int nn_array_unary(void* y, const void* x, const nn_array_layout* layout, int32_t op, int32_t y_dtype,
                          int32_t x_dtype, nn_stream stream);

// y = op(a, b).  A null a or b stands for the number `scalar`, of type a_dtype or b_dtype.
NN_API int nn_array_binary(void* y, const void* a, const void* b, const nn_array_layout* layout, int32_t op,
                           int32_t y_dtype, int32_t a_dtype, int32_t b_dtype, double scalar,
                           nn_stream stream);

// y = condition ? a : b.  A null a or b stands for its number.
NN_API int nn_array_where(void* y, const void* condition, const void* a, const void* b,
                          const nn_array_layout* layout, int32_t y_dtype, int32_t a_dtype, int32_t b_dtype,
                          double a_scalar, double b_scalar, nn_stream stream);

// y = value
NN_API int nn_array_fill(void* y, const nn_array_layout* layout, int32_t dtype, double value,
                         nn_stream stream);

// y[i] = start + i step
NN_API int nn_array_arange(void* y, double start, double step, int64_t count, int32_t dtype,
                           nn_stream stream);

typedef enum nn_array_reduction {
    NN_SUM = 0, NN_MEAN, NN_PROD, NN_MAX, NN_MIN, NN_ANY, NN_ALL,
    NN_ARGMAX, NN_ARGMIN                                 // the first of equals; the first NaN, if any
} nn_array_reduction;

// y = reduction over the last `reduced` axes of the layout (operand 0: y, whose strides along them are
// ignored; operand 1: x).  The order of a sum depends on the number of elements reduced and on whether they
// or the kept ones lie closer together, not on how many results there are.  The place that ARGMAX gives
// counts along the reduced axes.
NN_API int nn_array_reduce(void* y, const void* x, const nn_array_layout* layout, int64_t reduced, int32_t op,
                           int32_t y_dtype, int32_t x_dtype, void* workspace, int64_t workspace_bytes,
                           nn_stream stream);
NN_API int64_t nn_array_reduce_workspace_size(const nn_array_layout* layout, int64_t reduced, int32_t op);

// y = x taken at index along one axis.  Operands of the layout: y, x, index; x's strides along the indexed
// axis are 0 there, and given apart: `length` elements, `stride` from one to the next.  A negative index
// counts from the end.  Where an index lies outside, nothing is read: y becomes NaN, or 0 for integers.
NN_API int nn_array_gather(void* y, const void* x, const void* index, const nn_array_layout* layout,
                           int64_t length, int64_t stride, int32_t dtype, int32_t index_dtype,
                           nn_stream stream);

// y at index along one axis = x.  Operands: y (0 along the indexed axis), x, index, which is a dense list of
// `indices` along one axis of the layout and 0 along the others.  Of equal indices the last wins; one outside
// writes nothing.  Workspace: `length` words of 8 bytes.
NN_API int nn_array_scatter(void* y, const void* x, const void* index, const nn_array_layout* layout,
                            int64_t length, int64_t stride, int64_t indices, int32_t dtype,
                            int32_t index_dtype, void* workspace, int64_t workspace_bytes, nn_stream stream);

// y[rows,n] = cumulative sums of x[rows,n] along n, in float32, float64 or 64-bit integers by y_dtype.
NN_API int nn_array_cumulative_sum(void* y, const void* x, int64_t rows, int64_t n, int32_t y_dtype,
                                   int32_t x_dtype, void* workspace, int64_t workspace_bytes,
                                   nn_stream stream);
NN_API int64_t nn_array_cumulative_sum_workspace_size(int64_t rows, int64_t n);

// order[rows,n] = the places of x[rows,n] in increasing (descending: decreasing) order; equal elements keep
// theirs, -0 equals 0, NaN comes last.
NN_API int nn_array_argsort(int64_t* order, const void* x, int64_t rows, int64_t n, int32_t descending,
                            int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_array_argsort_workspace_size(int64_t rows, int64_t n, int32_t dtype);

// place[m] = how many of sorted[n] are less than values[m] (right: or equal); NaN counts as the largest.
NN_API int nn_array_searchsorted(int64_t* place, const void* sorted, const void* values, int64_t n, int64_t m,
                                 int32_t right, int32_t dtype, nn_stream stream);
