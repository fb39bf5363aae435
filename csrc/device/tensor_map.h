// Host side of tensor_copy.cuh: maps of tensors of three dimensions, made anew for every call and handed to
// the kernel by value, so that a captured graph keeps them.
#pragma once

#include <cuda.h>

#include "library/error.h"

namespace nn {

// Innermost dimension first; its elements are neighbours.  Strides in bytes: multiples of 16 below 2^40, and
// `data` is a multiple of 16.  Sizes: 1 ... 2^31.  A box's row has 128 bytes.
struct TensorShape {
    int64_t sizes[3], strides[2];
    int box[3];
};

// Whether the driver makes maps (asked once; the library is not linked with the driver).
bool tensor_maps_exist();

// A map whose boxes lie in shared memory with the 128-byte swizzle; zeros outside the tensor.
int make_tensor_map(CUtensorMap* map, const void* data, CUtensorMapDataType type, const TensorShape& shape);

}  // namespace nn
