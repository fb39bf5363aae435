// Mixture of experts: the plan that groups (token, choice) pairs by expert, moving rows there and back, the
// linear maps of all experts in one launch, and the router's auxiliary losses.
//
// N tokens choose K of E experts each; pair = token * K + choice, M = N * K pairs. A row is a pair's place
// after grouping: rows offsets[e] ... offsets[e+1] are expert e's, in the order of pairs; rows from
// offsets[E] on belong to dropped pairs. Counts and offsets stay on the device: nothing here depends on them
// on the host, so that a captured step can be replayed whatever the router chose.
#pragma once

#include "types.h"

// ---- plan -------------------------------------------------------------------------------------------------

// From experts[pairs] (int64 or int32 by index_dtype): offsets[E+1], the pair order[pairs] in each row, and
// the row inverse[pairs] of each pair. Stable: equal experts keep the order of pairs. A pair whose expert is
// not in 0 ... E-1 is dropped. pairs <= 2^31, 1 <= num_experts <= 1024; one launch up to 4096 pairs, else
// three.
NN_API int nn_moe_plan(int64_t* order, int64_t* inverse, int64_t* offsets, const void* experts, int64_t pairs,
                       int64_t num_experts, int32_t index_dtype, void* workspace, int64_t workspace_bytes,
                       nn_stream stream);
NN_API int64_t nn_moe_plan_workspace_size(int64_t pairs, int64_t num_experts);

// ---- rows there and back ----------------------------------------------------------------------------------

// xs[r] = x[order[r] / choices]:  x[tokens,width] -> xs[tokens * choices, width]
NN_API int nn_moe_dispatch_forward(void* xs, const void* x, const int64_t* order, int64_t tokens,
                                   int64_t choices, int64_t width, int32_t dtype, nn_stream stream);
// dx[n] = sum over k, in order, of dxs[inverse[n,k]], in float32
NN_API int nn_moe_dispatch_backward(void* dx, const void* dxs, const int64_t* inverse, int64_t tokens,
                                    int64_t choices, int64_t width, int32_t dtype, nn_stream stream);
// y[n] = sum over k, in order, of weights[n,k] ys[inverse[n,k]], in float32; weights are float32
NN_API int nn_moe_combine_forward(void* y, const void* ys, const float* weights, const int64_t* inverse,
                                  int64_t tokens, int64_t choices, int64_t width, int32_t dtype,
                                  nn_stream stream);
// dys[inverse[n,k]] = weights[n,k] dy[n],  dweights[n,k] = <dy[n], ys[inverse[n,k]]>
NN_API int nn_moe_combine_backward(void* dys, float* dweights, const void* dy, const void* ys,
                                   const float* weights, const int64_t* inverse, int64_t tokens,
                                   int64_t choices, int64_t width, int32_t dtype, nn_stream stream);

// ---- all experts' linear maps -----------------------------------------------------------------------------

// x[rows,inputs] grouped by expert, weight[E,outputs,inputs], offsets[E+1] on the device. Sums are in
// float32, in the order of inputs (outputs, for dx) and nothing else: a row's bits depend on the row and its
// expert's weight, not on its place, its group's size or other rows. Rows from offsets[E] on come out as
// zeros.
// float16 and bfloat16 take tensor cores where the device and the alignment allow (nn_grouped_linear_path).
//
// y[r] = x[r] weight[e]^T. With `order`, row r of x is x[order[r] / choices] (a dispatch that stores
// nothing).
NN_API int nn_grouped_linear_forward(void* y, const void* x, const void* weight, const int64_t* offsets,
                                     const int64_t* order, int64_t choices, int64_t rows, int64_t num_experts,
                                     int64_t inputs, int64_t outputs, int32_t dtype, nn_stream stream);
// y[rows,width] = SiLU(gate) up, where gate and up are the halves of a row of x[r] weight[e]^T, weight[E,2
// width,inputs], rounded to dtype: nn_grouped_linear_forward and nn_swiglu_packed_forward, bit for bit, in
// one launch. What the activation is formed of is kept in hidden[rows,2 width] for the backward, unless that
// is null.
NN_API int nn_grouped_swiglu_forward(void* y, void* hidden, const void* x, const void* weight,
                                     const int64_t* offsets, const int64_t* order, int64_t choices,
                                     int64_t rows, int64_t num_experts, int64_t inputs, int64_t width,
                                     int32_t dtype, nn_stream stream);
// dx[r] = dy[r] weight[e]
NN_API int nn_grouped_linear_backward_input(void* dx, const void* dy, const void* weight,
                                            const int64_t* offsets, int64_t rows, int64_t num_experts,
                                            int64_t inputs, int64_t outputs, int32_t dtype, nn_stream stream);
// dweight[e] = sum over e's rows, in order, of dy[r]^T x[r], float32[E,outputs,inputs]; zeros for an expert
// without rows. With `order` as above.
NN_API int nn_grouped_linear_backward_weight(float* dweight, const void* dy, const void* x,
                                             const int64_t* offsets, const int64_t* order, int64_t choices,
                                             int64_t rows, int64_t num_experts, int64_t inputs,
                                             int64_t outputs, int32_t dtype, nn_stream stream);

typedef enum nn_grouped_path {
    NN_GROUPED_FFMA = 0,             // float32 multiply-add, any shape and alignment
    NN_GROUPED_MMA = 1               // tensor cores: float16 (sm_75), bfloat16 (sm_80); widths multiples of 8
} nn_grouped_path;

// Which path the three functions take on the current device for arrays aligned to 16 bytes.
NN_API int nn_grouped_linear_path(int32_t* path, int64_t inputs, int64_t outputs, int32_t dtype);

// ---- auxiliary losses -------------------------------------------------------------------------------------

// The balance loss (Fedus et al. 2021): loss = coefficient * E * sum over e of load[e] mean_probs[e], with
// load[e] the share of the pairs that chose e, a constant for the gradient, and mean_probs[e] the mean of
// probs[tokens,E] (float32).
// experts[tokens,choices] as in nn_moe_plan.
NN_API int nn_moe_balance_loss_forward(float* loss, float* load, const float* probs, const void* experts,
                                       int64_t tokens, int64_t choices, int64_t num_experts,
                                       float coefficient, int32_t index_dtype, void* workspace,
                                       int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_moe_balance_loss_workspace_size(int64_t tokens, int64_t num_experts);
// dprobs[n,e] = dloss[0] coefficient E load[e] / tokens
NN_API int nn_moe_balance_loss_backward(float* dprobs, const float* dloss, const float* load, int64_t tokens,
                                        int64_t num_experts, float coefficient, nn_stream stream);

// The router's z-loss (Zoph et al. 2022): loss = coefficient * mean over n of lse[n]^2, lse[n] = log sum exp
// logits[n]
NN_API int nn_moe_z_loss_forward(float* loss, float* lse, const float* logits, int64_t tokens,
                                 int64_t num_experts, float coefficient, void* workspace,
                                 int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_moe_z_loss_workspace_size(int64_t tokens);
// dlogits[n,e] = dloss[0] 2 coefficient / tokens * lse[n] exp(logits[n,e] - lse[n])
NN_API int nn_moe_z_loss_backward(float* dlogits, const float* dloss, const float* logits, const float* lse,
                                  int64_t tokens, int64_t num_experts, float coefficient, nn_stream stream);
