// Clusters by launch attribute and by function attribute, on sm_90.
#include "check.h"

__global__ void ranks(unsigned* x) {
    unsigned rank, size;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    if (!threadIdx.x) x[blockIdx.x] = size * 100 + rank;
}
__global__ void __cluster_dims__(4) fixed(unsigned* x) {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (!threadIdx.x) x[blockIdx.x] = rank;
}

int main() {
    unsigned *x = nullptr, host[32];
    cudaMalloc(&x, sizeof host);
    auto first = [&](unsigned i) {
        cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost);
        return host[i];
    };
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(4);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    CODE("cluster of 2", cudaSuccess, cudaLaunchKernelEx(&config, ranks, x));
    CHECK("ranks", first(0) == 200 && first(1) == 201 && first(3) == 201);
    config.gridDim = dim3(3);
    CODE("grid is no multiple", cudaErrorInvalidConfiguration, cudaLaunchKernelEx(&config, ranks, x));
    REPORT("multiple is named", "invalid_launch",
           "the grid (3, 1, 1) is not a multiple of the cluster (2, 1, 1)");
    config.gridDim = dim3(32);
    attribute.val.clusterDim = {16, 1, 1};
    CODE("cluster of 16", cudaErrorInvalidClusterSize, cudaLaunchKernelEx(&config, ranks, x));
    CODE("allow it", cudaSuccess,
         cudaFuncSetAttribute(ranks, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    CODE("cluster of 16 again", cudaSuccess, cudaLaunchKernelEx(&config, ranks, x));
    CHECK("16 ranks", first(31) == 1615);
    int clusters = 0;
    attribute.val.clusterDim = {4, 1, 1};
    CODE("active clusters", cudaSuccess, cudaOccupancyMaxActiveClusters(&clusters, ranks, &config));
    CHECK("all blocks", clusters == 132 * 32 / 4);
    CODE("width", cudaSuccess, cudaFuncSetAttribute(ranks, cudaFuncAttributeRequiredClusterWidth, 2));
    CODE("height", cudaSuccess, cudaFuncSetAttribute(ranks, cudaFuncAttributeRequiredClusterHeight, 1));
    CODE("depth", cudaSuccess, cudaFuncSetAttribute(ranks, cudaFuncAttributeRequiredClusterDepth, 1));
    ranks<<<2, 32>>>(x);
    CHECK("by function attribute", first(1) == 201);
    fixed<<<8, 32>>>(x);
    CHECK("by compilation", first(7) == 3);
    CODE("compiled in is final", cudaErrorNotPermitted,
         cudaFuncSetAttribute(fixed, cudaFuncAttributeRequiredClusterWidth, 2));
    cudaFuncAttributes a;
    cudaFuncGetAttributes(&a, fixed);
    CHECK("required cluster", a.requiredClusterWidth == 4 && a.requiredClusterHeight == 1);
    CODE("last error", cudaErrorNotPermitted, cudaGetLastError());
    cudaFree(x);
    return failures;
}
