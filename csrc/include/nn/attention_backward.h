// Softmax attention, backward.
//
//     P = exp(s - lse), Delta = sum(dO o), dS = P (dO v^T - Delta) (1 - (s/c)^2 with a softcap c)
//     dQ = scale dS k,  dK = scale dS^T q,  dV = P^T dO,   dK and dV summed over the query heads of a group
//
// in a form without atomics: the same bits at every run.
#pragma once

#include "attention.h"

// What the backward adds to the call of the forward, whose o and lse it reads.  Strides as there; the
// gradients have the type of q.  With packed sequences the batch strides are not used.
typedef struct nn_attention_gradients {
    int64_t size;                                // sizeof(nn_attention_gradients)
    const void* d_o;                             // [B,H,T,Dv]
    void *dq, *dk, *dv;                          // [B,H,T,D], [B,G,S,D], [B,G,S,Dv]; every row is written
    int64_t d_o_strides[3], dq_strides[3], dk_strides[3], dv_strides[3];
} nn_attention_gradients;

NN_API int nn_attention_backward(const nn_attention* attention, const nn_attention_gradients* gradients,
                                 void* workspace, int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_attention_backward_workspace_size(int64_t batch, int64_t heads, int64_t groups,
                                                    int64_t queries, int64_t keys, int64_t width,
                                                    int64_t value_width);

// 1: tensor cores (float16, and bfloat16 from sm_80 on; pointers of 16 bytes, widths and strides multiples
// of 8);  0: float arithmetic, for all other calls.
NN_API int nn_attention_backward_path(const nn_attention* attention, const nn_attention_gradients* gradients,
                                      int32_t* path);
