// Dense matrix products.
#pragma once

#include "types.h"

typedef enum nn_activation {         // passed as int32_t
    NN_ACTIVATION_NONE = 0,
    NN_ACTIVATION_SILU = 1,
    NN_ACTIVATION_GELU = 2,          // by erf
    NN_ACTIVATION_GELU_TANH = 3,
    NN_ACTIVATION_RELU = 4
} nn_activation;

typedef enum nn_gemm_compute {       // how float32 operands are multiplied; sums are in float32 always
    NN_GEMM_EXACT = 0,               // float32 products
    NN_GEMM_TF32 = 1                 // operands rounded to 10 bits of mantissa, tensor cores: never implied
} nn_gemm_compute;

// The kernels.  Within one path (and one number of splits) a row of C has the same bits whatever m is,
// whatever the other rows and wherever it lies; so a call with `path` and `splits` = 1 given is
// batch-invariant.  AUTO chooses by m, n, k and the device, and so may give a row other bits in another
// batch, within rounding.
typedef enum nn_gemm_path_id {
    NN_GEMM_AUTO = 0,
    NN_GEMM_TILED = 1,               // reference: 32x32 tiles, any type, shape, alignment
    NN_GEMM_FFMA = 2,                // registers, float32 arithmetic; any type, shape, alignment
    NN_GEMM_SKINNY = 3,              // m <= 16 (8 without trans_b), A not transposed: one pass over B
    NN_GEMM_MMA = 4,                 // tensor cores by mma.sync: sm_75 float16, sm_80 also bfloat16 and tf32
    NN_GEMM_WGMMA = 5                // tensor cores by wgmma and tensor copies, sm_90; tf32: A B^T only
} nn_gemm_path_id;

// For each of `batch` problems   C[m,n] = activation(alpha op(A)[m,k] op(B)[k,n] + beta C[m,n] + bias[n]).
// Matrices are row-major with a leading dimension: A is [m,k], with trans_a [k,m]; B is [k,n], with trans_b
// [n,k] (as weights of a linear map are kept).  With beta = 0 C is not read, with k = 0 A and B are not.
typedef struct nn_gemm {
    int64_t size;                            // sizeof(nn_gemm) as the caller knows it
    void* c;                                 // c_dtype
    const void *a, *b;                       // dtype
    const void* bias;                        // bias_dtype, or null
    const float *alpha_device, *beta_device; // null, or a float on the device that multiplies alpha
    int64_t m, n, k, batch;                  // batch 0: nothing to do
    int64_t lda, ldb, ldc;                   // elements from row to row, at least a row's length
    int64_t stride_a, stride_b, stride_c;    // from problem to problem; 0 for A and B: the same for all
    float alpha, beta;
    int32_t trans_a, trans_b;                // 0 or 1
    int32_t dtype, c_dtype, bias_dtype;      // float32, float16, bfloat16; c_dtype is dtype or float32
    int32_t activation, compute;             // nn_activation, nn_gemm_compute
    int32_t path;                            // AUTO, or a kernel: it, or NN_ERROR_UNSUPPORTED
    int32_t splits;                          // parts that k is cut into; 0: chosen, 1: not cut
} nn_gemm;

// What a call would do.
typedef struct nn_gemm_choice {
    int64_t size;                            // sizeof(nn_gemm_choice) as the caller knows it
    int64_t workspace_bytes;                 // what exactly this call needs
    int32_t path, tile_m, tile_n, splits;
    char why[256];
} nn_gemm_choice;

NN_API int nn_gemm_forward(const nn_gemm* call, void* workspace, int64_t workspace_bytes, nn_stream stream);

// Enough for this call and for every one with smaller m, n, k, batch and otherwise the same, on the current
// device (a captured graph of the largest covers the others).  -1 if the call is wrong: nn_last_error() says
// why.
NN_API int64_t nn_gemm_workspace_size(const nn_gemm* call);

NN_API int nn_gemm_path(nn_gemm_choice* choice, const nn_gemm* call);
