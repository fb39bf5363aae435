// A whole program around tma.cu: the encoder of tensor maps comes from the driver, through the runtime's
// entry point query.
#include <cudaTypedefs.h>
#include <cstdio>
#include <vector>

#include "tma.cu"

static CUtensorMap make_map(void* address, int rows, int columns) {
    void* encode = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found);
    CUtensorMap map{};
    const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)},
                     strides[] = {columns * sizeof(__nv_bfloat16)};
    const cuuint32_t box[] = {COLUMNS, ROWS}, steps[] = {1, 1};
    const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(encode)(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, address, sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) printf("encode: %d\n", result);
    return map;
}

int main() {
    const int rows = 70, columns = 160;
    std::vector<__nv_bfloat16> host(rows * columns, __float2bfloat16(3.0f)), back(rows * columns);
    __nv_bfloat16 *in, *out;
    cudaMalloc(&in, host.size() * 2);
    cudaMalloc(&out, host.size() * 2);
    cudaMemcpy(in, host.data(), host.size() * 2, cudaMemcpyHostToDevice);
    add_column<<<dim3((columns + COLUMNS - 1) / COLUMNS, (rows + ROWS - 1) / ROWS), 128>>>(
        make_map(in, rows, columns), make_map(out, rows, columns));
    const cudaError_t error = cudaMemcpy(back.data(), out, host.size() * 2, cudaMemcpyDeviceToHost);
    int wrong = 0;
    for (int i = 0; i < rows * columns; ++i)
        wrong += __bfloat162float(back[i]) != 3.0f + float(i % columns % COLUMNS);
    printf("%s, %d wrong\n", cudaGetErrorString(error), wrong);
    return wrong != 0 || error != cudaSuccess;
}
