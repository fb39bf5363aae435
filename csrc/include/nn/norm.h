// RMSNorm and LayerNorm over the last axis of [rows, cols], each with its backward.
//
// Arithmetic is in float32; statistics and weight gradients are float32 arrays.  A row's bits depend on that
// row, cols, dtype and alignment alone.  Weight gradients are sums of at most 512 partial sums over rows,
// in a fixed order: the same bits at every run on devices with equally many multiprocessors.  Outputs of
// x's type may be inputs of the same type (in place); rows = 0 gives zero weight gradients.
#pragma once

#include "types.h"

// y = x / rms(x) * weight[cols], rms(x) = sqrt(mean(x^2) + eps)                 (Zhang & Sennrich 2019)
// rstd[rows] = 1 / rms is saved for the backward.  In half precision x / rms(x) is rounded before the weight
// multiplies it, as in Llama.
NN_API int nn_rms_norm_forward(void* y, float* rstd, const void* x, const void* weight, int64_t rows,
                               int64_t cols, float eps, int32_t dtype, nn_stream stream);

// sum = x + residual, y = rms_norm(sum), in one pass.
NN_API int nn_rms_norm_residual_forward(void* y, void* sum, float* rstd, const void* x, const void* residual,
                                        const void* weight, int64_t rows, int64_t cols, float eps,
                                        int32_t dtype, nn_stream stream);

// With n = x rstd and a = dy weight:  dx = rstd (a - n mean(a n)) + dresidual,  dweight = sum over rows of
// dy n. dresidual, what reaches x by the way around the norm, may be null.
NN_API int64_t nn_rms_norm_workspace_size(int64_t rows, int64_t cols);
NN_API int nn_rms_norm_backward(void* dx, float* dweight, const void* dy, const void* x, const void* weight,
                                const float* rstd, const void* dresidual, int64_t rows, int64_t cols,
                                int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream);

// y = weight (x - mean) rstd + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps)  (Ba, Kiros & Hinton 2016)
NN_API int nn_layer_norm_forward(void* y, float* mean, float* rstd, const void* x, const void* weight,
                                 const void* bias, int64_t rows, int64_t cols, float eps, int32_t dtype,
                                 nn_stream stream);

// With n = (x - mean) rstd and a = dy weight:  dx = rstd (a - mean(a) - n mean(a n)),
// dweight = sum over rows of dy n,  dbias = sum over rows of dy.
NN_API int64_t nn_layer_norm_workspace_size(int64_t rows, int64_t cols);
NN_API int nn_layer_norm_backward(void* dx, float* dweight, float* dbias, const void* dy, const void* x,
                                  const void* weight, const float* mean, const float* rstd, int64_t rows,
                                  int64_t cols, int32_t dtype, void* workspace, int64_t workspace_bytes,
                                  nn_stream stream);
