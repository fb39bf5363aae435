// The next token of each row of logits, and the random numbers it is drawn with.
#pragma once

#include "types.h"

// Repetition penalty, temperature, top-k, top-p, min-p, draw, in this order and with the meaning of
// nn/generate/sampling.py: weights are integers, round(exp(z) 2^32), and ties go to the lowest id, so every
// token is the one that the CPU draws.  temperature 0: the largest logit after the penalty.
// A row that holds NaN, +inf or nothing above -inf gets token -1 and flag 1.
typedef struct nn_sample {
    int64_t size;                    // sizeof(nn_sample)
    int64_t* tokens;                 // [batch]
    int32_t* flags;                  // [batch]: 1 where no token can be chosen, else 0; may be null
    const void* logits;              // [batch, vocabulary], rows `stride` elements apart
    const int64_t* history;          // [batch, history_stride]: ids that the penalty is for; may be null
    const int64_t* lengths;          // [batch]: how many of them count; null: all
    const uint64_t* keys;            // of the random numbers: [1], or [batch] with key_stride 1
    const int64_t* rows;             // [batch]: first stream word; null: 0 ... batch - 1
    const int64_t* steps;            // second stream word: [1], or [batch] with step_stride 1
    int64_t batch, vocabulary, stride, history_stride;
    int64_t key_stride, step_stride; // 0 or 1
    int64_t top_k;                   // 0: off
    double temperature, top_p, min_p, repetition_penalty;
    int32_t dtype;                   // of logits
} nn_sample;

// One launch; at most 262,144 tokens in the vocabulary.
NN_API int nn_sample_forward(const nn_sample* call, void* workspace, int64_t workspace_bytes,
                             nn_stream stream);

// 0 for temperature 0.
NN_API int64_t nn_sample_workspace_size(int64_t batch, int64_t vocabulary, double temperature);

// out[count] of uint32: what nn.random.bits(*key, *words, shape=count) draws; words[3] in device memory.
NN_API int nn_random_bits(uint32_t* out, const uint64_t* key, const int64_t* words, int64_t count,
                          nn_stream stream);
