// Softmax attention with grouped query heads: forward, decoding from a cache, and the cache itself.
//
//     o = softmax(scale q k^T) v       on visible keys; lse = log sum exp of the scores, natural, in float32
//
// B batch, H query heads, G key/value heads (H a multiple of G; head h reads h / (H/G)), T queries, S keys,
// D width of q and k, Dv of v and o.  Query i stands at position p = S - T + i (aligned at the bottom right).
// causal: key j is visible if j <= p; window W > 0: if p - W < j, and without causal also j < p + W.
// A row that sees nothing gives o = 0, lse = -inf.  NaN in q, k or v gives NaN.
#pragma once

#include "types.h"

// The call of attention, forward and backward.  `size` is sizeof(nn_attention) as the caller knows it.
// Strides count elements, for batch, head and position; the last axis is dense.
typedef struct nn_attention {
    int64_t size;
    void* o;                                     // [B,H,T,Dv]
    float* lse;                                  // [B,H,T], position dense
    const void *q, *k, *v;                       // [B,H,T,D], [B,G,S,D], [B,G,S,Dv]
    int64_t batch, heads, groups, queries, keys, width, value_width;
    int64_t o_strides[3], q_strides[3], k_strides[3], v_strides[3];
    int64_t lse_strides[2];                      // batch, head
    const uint8_t* mask;                         // null, or booleans [B,H,T,S]: nonzero keeps
    int64_t mask_strides[4];                     // 0 along an axis that is broadcast
    // Sequences of different lengths, packed one after the other: sequence b has the positions
    // cu_queries[b] ... cu_queries[b+1] - 1 of q, o, lse and cu_keys[b] ... of k, v, whose batch strides are
    // not used; `queries` and `keys` are then the greatest lengths.  Both in device memory, or both null.
    const int32_t *cu_queries, *cu_keys;         // [B+1]
    const int32_t* key_lengths;                  // null, or [B] in device memory: replaces S, at most `keys`
    int64_t window;                              // 0: none
    float scale;
    float softcap;                               // c > 0: a score s becomes c tanh(s / c); 0: none
    int32_t causal;
    int32_t dtype;                               // of q, k, v, o
} nn_attention;

NN_API int nn_attention_forward(const nn_attention* call, nn_stream stream);

// Which kernel nn_attention_forward takes: 0 float arithmetic (any type, alignment and width up to 256),
// 1 tensor cores of sm_75 (float16), 2 tensor cores of sm_80 (float16, bfloat16).  Tensor cores need pointers
// of 16 bytes, widths and strides that are multiples of 8, and scale > 0.
NN_API int nn_attention_forward_path(const nn_attention* call, int32_t* path);

// Keys and values of earlier tokens.  Contiguous: k[B,G,capacity,D], v[B,G,capacity,Dv].  Paged (page > 0):
// k[pages,G,page,D], v[pages,G,page,Dv]; position j of row b is entry j % page of the page
// block_table[b, j / page], and capacity = page * max_pages.  The first stride is a row's, or a page's.
typedef struct nn_cache {
    int64_t size;
    void *k, *v;
    int64_t batch, groups, capacity, width, value_width;
    int64_t k_strides[3], v_strides[3];
    const int32_t* block_table;                  // [B,max_pages] in device memory; null if page is 0
    int64_t page, max_pages, pages;              // page: a power of two from 16 on
    int32_t dtype;
} nn_cache;

// Few queries against a cache.
typedef struct nn_decode {
    int64_t size;
    void* o;                                     // [B,H,T,Dv]
    float* lse;                                  // [B,H,T] dense, or null
    const void* q;                               // [B,H,T,D]
    const int32_t* lengths;                      // [B] in device memory: keys held, the T newest included,
                                                 // at most the capacity; null: the capacity
    int64_t heads, queries;                      // queries <= 16
    int64_t o_strides[3], q_strides[3];
    int64_t window;
    float scale, softcap;
    int32_t causal;
} nn_decode;

// The keys are taken in pieces of NN_DECODE_SPLIT, each by its own block, merged in order: a row's
// bits depend on nothing but its own sequence.  The grid follows from the capacity alone.
#define NN_DECODE_SPLIT 256
NN_API int nn_attention_decode(const nn_decode* call, const nn_cache* cache, void* workspace,
                               int64_t workspace_bytes, nn_stream stream);
NN_API int64_t nn_attention_decode_workspace_size(int64_t batch, int64_t heads, int64_t queries,
                                                  int64_t capacity, int64_t value_width);

// cache[b, :, positions[b] + t] = k, v[b, :, t] for t < queries; what lies outside
// 0 ... capacity - 1 (or on a page that does not exist) is not written.  k[B,G,T,D] and v[B,G,T,Dv] have
// strides for batch, head, position.
NN_API int nn_cache_append(const nn_cache* cache, const void* k, const void* v, const int32_t* positions,
                           int64_t queries, int64_t k_batch_stride, int64_t k_head_stride,
                           int64_t k_position_stride, int64_t v_batch_stride, int64_t v_head_stride,
                           int64_t v_position_stride, nn_stream stream);
