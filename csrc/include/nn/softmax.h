// Softmax and log-softmax over the last axis of [rows, cols], each with its backward.
//
// A row of -inf gives 0 (log-softmax: stays -inf); a NaN makes its whole row NaN.  Sums are in float32, in an
// order that cols, dtype and alignment alone decide: a row has the same bits whatever else is in the batch.
// An output may be one of the inputs (in place).  Rows of up to about 64 KiB (both inputs together, in the
// backward) are read once; longer ones twice, by many blocks each.
#pragma once

#include "types.h"

// Bytes of scratch for each function here; 0 for rows that are read once.
NN_API int64_t nn_softmax_workspace_size(int64_t rows, int64_t cols, int32_t dtype);

// y_j = exp(x_j - max) / sum_i exp(x_i - max)
NN_API int nn_softmax_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                              void* workspace, int64_t workspace_bytes, nn_stream stream);

// The same over the columns that row i of each matrix of `period` rows may see: j <= i + offset.  The others
// give 0.  `device_offset`, if not null, is a number in device memory that is added to the offset.
NN_API int nn_softmax_causal_forward(void* y, const void* x, int64_t rows, int64_t cols, int64_t period,
                                     int64_t offset, const int64_t* device_offset, int32_t dtype,
                                     void* workspace, int64_t workspace_bytes, nn_stream stream);

// dx = y (dy - sum_j dy_j y_j), of both: y is 0 where nothing was seen
NN_API int nn_softmax_backward(void* dx, const void* dy, const void* y, int64_t rows, int64_t cols,
                               int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream);

// y_j = x_j - max - log sum_i exp(x_i - max);    dx = dy - exp(y) sum_j dy_j
NN_API int nn_log_softmax_forward(void* y, const void* x, int64_t rows, int64_t cols, int32_t dtype,
                                  void* workspace, int64_t workspace_bytes, nn_stream stream);
NN_API int nn_log_softmax_backward(void* dx, const void* dy, const void* y, int64_t rows, int64_t cols,
                                   int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream);
