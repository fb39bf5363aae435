// Cross-entropy over rows of logits, its gradient, linear + cross-entropy in chunks, and means over tokens.
#pragma once

#include "types.h"

// With z' = c tanh(z / c) (softcap c; 0: z' = z), L = log sum exp z', smoothing e, z-loss k and V logits:
//     loss = L - (1 - e) z'[target] - e/V sum z' + k L^2
//     dz'  = softmax(z') (1 + 2 k L) - (1 - e) [j = target] - e/V,   dz = dz' (1 - (z'/c)^2)
// A row whose target is ignore_index has loss 0 and gradient 0.  Any other target outside 0 ... V - 1 reads
// nothing and gives NaN, as loss and as gradient.
typedef struct nn_cross_entropy {
    int64_t size;                    // sizeof(nn_cross_entropy)
    float *loss, *lse;               // [rows]; written by the forward, lse read by the backward
    void* dlogits;                   // [rows, vocabulary]; written by the backward; may be logits
    const float* dloss;              // [rows]; null: 1 for every row
    const void* logits;              // [rows, vocabulary]
    const void* targets;             // [rows]
    int64_t rows, vocabulary;
    int64_t stride, gradient_stride; // elements from a row of logits, of dlogits, to the next
    int64_t ignore_index;
    float label_smoothing, z_loss, softcap;
    int32_t target_dtype;            // int64 or int32
    int32_t dtype;                   // of logits
    int32_t gradient_dtype;          // of dlogits: that of logits, or any for float32 logits
} nn_cross_entropy;

// Reads each logit once.
NN_API int nn_cross_entropy_forward(const nn_cross_entropy* call, nn_stream stream);

// Reads each logit once and writes each gradient once.
NN_API int nn_cross_entropy_backward(const nn_cross_entropy* call, nn_stream stream);

// *mean = sum of loss[rows] / n, in float64 and always in the same order; 0 if n is 0.  n = *tokens, or, if
// that is null, the number of targets that are not ignore_index.  *count = n.  sum and count may be null.
NN_API int nn_mean_loss_forward(float* mean, float* sum, int64_t* count, const float* loss,
                                const void* targets, const int64_t* tokens, int64_t rows,
                                int64_t ignore_index, int32_t target_dtype, nn_stream stream);

// dloss[rows] = *dmean / *count for rows that count, 0 for others and if *count is 0.
NN_API int nn_mean_loss_backward(float* dloss, const float* dmean, const void* targets, const int64_t* count,
                                 int64_t rows, int64_t ignore_index, int32_t target_dtype, nn_stream stream);

// cross_entropy(x weight^T) and its gradients with respect to x and weight, `chunk` rows of logits at a time:
// each chunk's logits are made in float32, turned into dlogits, and multiplied into dx and dweight, in this
// order.  The bits depend on `chunk` (dweight is a sum over chunks), not on the workspace.  The gradients are
// those of sum dloss * loss, so that dloss has to be known before; a factor for all rows can be applied to
// them later.
typedef struct nn_linear_cross_entropy {
    int64_t size;                    // sizeof(nn_linear_cross_entropy)
    float* loss;                     // [rows]
    void* dx;                        // [rows, width]; null, and dweight null: no gradients
    float* dweight;                  // [vocabulary, width], in float32
    const void *x, *weight;          // [rows, width], [vocabulary, width]
    const void* targets;             // [rows]
    const float* dloss;              // [rows]; null: 1 for every row
    int64_t rows, width, vocabulary;
    int64_t chunk;                   // rows of logits held at a time
    int64_t ignore_index;
    float label_smoothing, z_loss, softcap;
    int32_t target_dtype, dtype;     // dtype: of x, weight and dx
    int32_t accumulate;              // 1: added to what dweight holds
    int32_t compute;                 // nn_gemm_compute
} nn_linear_cross_entropy;

NN_API int nn_linear_cross_entropy_forward(const nn_linear_cross_entropy* call, void* workspace,
                                           int64_t workspace_bytes, nn_stream stream);

// Bytes for this call (only its sizes, types and null pointers matter); -1 if it is wrong.
NN_API int64_t nn_linear_cross_entropy_workspace_size(const nn_linear_cross_entropy* call);

// Rows at a time so that logits and their gradients stay within `budget` bytes; at least 128, so that the
// products do not starve, and multiples of that.
NN_API int64_t nn_linear_cross_entropy_chunk(int64_t rows, int64_t vocabulary, int32_t dtype, int64_t budget);
