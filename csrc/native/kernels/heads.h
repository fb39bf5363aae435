// Views of attention's arrays [B,H,T,D]: the last axis dense, any strides before it, so that heads split from
// [B,T,H*D] and parts of a cache are read where they lie.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

template <class T>
struct Heads {
    T* data;
    int64_t batch, heads, length, width, batch_stride, head_stride, stride;
    T* head(int64_t b, int64_t h) const { return data + b * batch_stride + h * head_stride; }
    T* row(int64_t b, int64_t h, int64_t t) const { return head(b, h) + t * stride; }
};

template <class T>
static inline Heads<T> heads(const Call& call, int index) {
    const Array& a = call.array[index];
    return {static_cast<T*>(a.data),
            a.shape[0],
            a.shape[1],
            a.shape[2],
            a.shape[3],
            a.stride[0],
            a.stride[1],
            a.stride[2]};
}

}  // namespace nn::NN_LEVEL
