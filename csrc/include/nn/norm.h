// RMSNorm and LayerNorm over the last axis.
#pragma once

#include "types.h"

// y[rows,cols] = x / rms(x) * weight[cols], rms(x) = sqrt(mean(x^2) + eps)      (Zhang & Sennrich 2019)
// rstd[rows] in float32 is saved for the backward.  In half precision x / rms(x) is rounded before the weight
// multiplies it, as in Llama.
NN_API int nn_rms_norm_forward(void* y, float* rstd, const void* x, const void* weight, int64_t rows,
                               int64_t cols, float eps, int32_t dtype, nn_stream stream);
