// device/tensor_map.h.
#include "device/tensor_map.h"

#include <cudaTypedefs.h>

namespace nn {
namespace {

using Encode = PFN_cuTensorMapEncodeTiled_v12000;

Encode find_encode() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                               cudaEnableDefault, &status);
    if (error != cudaSuccess) cudaGetLastError();
    const bool usable = error == cudaSuccess && status == cudaDriverEntryPointSuccess;
    return usable ? reinterpret_cast<Encode>(found) : nullptr;
}

Encode encode() {
    static const Encode known = find_encode();
    return known;
}

}  // namespace

bool tensor_maps_exist() { return encode() != nullptr; }

int make_tensor_map(CUtensorMap* map, const void* data, CUtensorMapDataType type, const TensorShape& shape) {
    cuuint64_t sizes[3], strides[2];
    cuuint32_t box[3], steps[3] = {1, 1, 1};
    for (int i = 0; i < 3; i++) sizes[i] = static_cast<cuuint64_t>(shape.sizes[i]);
    for (int i = 0; i < 2; i++) strides[i] = static_cast<cuuint64_t>(shape.strides[i]);
    for (int i = 0; i < 3; i++) box[i] = static_cast<cuuint32_t>(shape.box[i]);
    NN_SUPPORT(encode(), "the driver has no cuTensorMapEncodeTiled");
    const CUresult result = encode()(map, type, 3, const_cast<void*>(data), sizes, strides, box, steps,
                                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return NN_OK;
    return fail(NN_ERROR_CUDA, "cuTensorMapEncodeTiled: error %d for %lld x %lld x %lld elements",
                (int)result, (long long)shape.sizes[0], (long long)shape.sizes[1], (long long)shape.sizes[2]);
}

}  // namespace nn
