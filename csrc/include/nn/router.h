// The router of a mixture of experts: softmax over its logits and the k largest of them; its jitter.
#pragma once

#include "types.h"

// probs[tokens,num_experts] = softmax(logits); experts[tokens,k] = the k largest logits, largest first,
// ties to the lowest expert, NaN last; weights[tokens,k] = their probabilities, with `renormalize` divided
// by their sum. The logits are compared, not the probabilities, which underflow to ties.  A token whose
// logits are all -inf gets weights 0.  probs may be null.  `experts_dtype` is NN_INT64 or NN_INT32, `dtype`
// that of the logits.
NN_API int nn_router_topk_forward(float* weights, void* experts, float* probs, const void* logits,
                                  int64_t tokens, int64_t num_experts, int64_t k, int32_t renormalize,
                                  int32_t experts_dtype, int32_t dtype, nn_stream stream);

// dlogits[tokens,num_experts] from dweights and what the forward gave:
//   renormalized   w_e (dw_e - sum_selected w dw) for the selected e, else 0
//   as they are    p_j ([j selected] dw_j - sum_selected p dw) for every j
// `probs` is not read, and may be null, with `renormalize`.  An expert outside 0 ... num_experts - 1 is
// ignored.
NN_API int nn_router_topk_backward(float* dlogits, const float* dweights, const float* weights,
                                   const void* experts, const float* probs, int64_t tokens,
                                   int64_t num_experts, int64_t k, int32_t renormalize, int32_t experts_dtype,
                                   nn_stream stream);

// y[i] = x[i] (1 - epsilon + 2 epsilon u[i]), u the uniform numbers that nn/random.py draws at `counter`[4],
// which is read on the device: a key, as its bits, and three stream words.  The factors are the host's, bit
// for bit; y may be x.  The same call is its own backward.  0 <= epsilon <= 1, count <= 2^34.
NN_API int nn_router_jitter_forward(void* y, const void* x, const int64_t* counter, int64_t count,
                                    double epsilon, int32_t dtype, nn_stream stream);
