// Arrays over time: [B,T,C], channels dense.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

template <class T>
struct Steps {  // [B,T,C], channels dense
    T* data;
    int64_t steps, stride[2];
    T* operator()(int64_t b, int64_t t) const { return data + b * stride[0] + t * stride[1]; }
};
template <class T>
static inline Steps<T> steps(const Call& call, int index) {
    const Array& a = call.array[index];
    return {static_cast<T*>(a.data), a.shape[1], {a.stride[0], a.stride[1]}};
}

}  // namespace nn::NN_LEVEL
