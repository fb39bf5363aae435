// What an optimizer step needs over many tensors at once: AdamW, the gradients' norm and the clip factor,
// zeros; and the gradient of an embedding.
#pragma once

#include "types.h"

// One tensor of a plan; plans lie in device memory.
typedef struct nn_tensor {
    void* param;                     // param_dtype
    float* master;                   // the parameter in float32, and param its rounding; null: none
    void* grad;                      // grad_dtype
    float *m, *v;                    // moments
    int64_t count;                   // elements
    double lr_scale, weight_decay;   // the learning rate is lr_scale * *lr
    int32_t param_dtype, grad_dtype;
} nn_tensor;

// One piece of work: elements chunk_elements * index ... of a tensor.
typedef struct nn_chunk {
    int32_t tensor, index;
} nn_chunk;

// A plan, in device memory: `tensors` are nn_tensor, `chunks` are nn_chunk, every tensor cut into pieces of
// nn_chunk_elements() (the last may be shorter).
NN_API int64_t nn_chunk_elements(void);

// One AdamW step (Loshchilov & Hutter 2019) on all tensors of a plan, in place on param (master), m and v:
//     g <- grad scale;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
//     p <- p (1 - lr decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
// In device memory: *lr, *step (t, from 1), *scale (null: 1), *skip (null: 0; anything else: nothing is
// changed).
NN_API int nn_adamw_forward(const void* tensors, const void* chunks, int64_t chunk_count, const double* lr,
                            const int64_t* step, const float* scale, const int32_t* skip, double beta1,
                            double beta2, double eps, nn_stream stream);

// The gradients' norm over a plan, and what follows from it, all in device memory:
//     *norm = sqrt(sum (grad input)^2), with *input_scale as input (null: 1), in float64
//     *scale = input min(1, max_norm / (norm + 1e-6)): the factor for AdamW;  max_norm <= 0: input
//     *skip = 1 and *skipped += 1 if the norm is not finite as float32, else *skip = 0
// skip and skipped may be null.
NN_API int nn_gradient_norm_forward(float* norm, float* scale, int32_t* skip, int64_t* skipped,
                                    const void* tensors, const void* chunks, int64_t chunk_count,
                                    const float* input_scale, double max_norm, void* workspace,
                                    int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_gradient_norm_workspace_size(int64_t chunk_count);

// grad <- 0 for all tensors of a plan.
NN_API int nn_zero_gradients(const void* tensors, const void* chunks, int64_t chunk_count, nn_stream stream);

// *counter += 1 unless *skip (null: never).
NN_API int nn_counter_increment(int64_t* counter, const int32_t* skip, nn_stream stream);

// *total = sum x[count]^2 in float64, where the square of no float overflows.
NN_API int nn_sum_of_squares(double* total, const void* x, int64_t count, int32_t dtype, void* workspace,
                             int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_sum_of_squares_workspace_size(int64_t count);

// out[n] = table[index[n]] for rows of `width`; an index outside 0 ... rows - 1 reads nothing and gives NaN.
NN_API int nn_embedding_forward(void* out, const void* table, const void* index, int64_t count, int64_t rows,
                                int64_t width, int32_t dtype, int32_t index_dtype, nn_stream stream);

// out[rows,width] in float32: out[index[n]] += source[n], in increasing n (an embedding's gradient).
// accumulate 0: starting from zeros; 1: from what out holds, and only rows that are named are touched.  An
// index outside 0 ... rows - 1 adds nothing.
NN_API int nn_scatter_add_forward(float* out, const void* source, const void* index, int64_t count,
                                  int64_t rows, int64_t width, int32_t accumulate, int32_t dtype,
                                  int32_t index_dtype, void* workspace, int64_t workspace_bytes,
                                  nn_stream stream);
NN_API int64_t nn_scatter_add_workspace_size(int64_t count, int64_t rows);
