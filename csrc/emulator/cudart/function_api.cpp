// Entry points about kernels: their attributes, and how many blocks of them fit.
#include <algorithm>

#include "../profiles.h"
#include "call.h"
#include "registration.h"

namespace emu::cudart {
namespace {

constexpr int UNKNOWN_REGISTERS = 32;     // PTX names no physical registers: a middling figure for who asks

int compute_version(const char* target) {    // "sm_90a" -> 90
    int version = 0;
    for (const char* c = target; *c; ++c)
        if (*c >= '0' && *c <= '9') version = version * 10 + (*c - '0');
    return version;
}

template <class Body> cudaError_t with_kernel(const char* name, const void* function, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Kernel* kernel = nullptr;
        if (cudaError_t error = find_kernel(function, &kernel)) return error;
        return body(*kernel);
    });
}

int most_threads(const KernelDescriptor& d) {
    uint64_t bound = uint64_t{d.max_threads[0]} * d.max_threads[1] * d.max_threads[2];
    return bound ? static_cast<int>(std::min<uint64_t>(bound, Profile::MAX_THREADS_PER_BLOCK))
                 : Profile::MAX_THREADS_PER_BLOCK;
}

int required_cluster(const Kernel& kernel, int axis) {
    return kernel.descriptor->cluster[axis] ? static_cast<int>(kernel.descriptor->cluster[axis])
                                            : kernel.cluster[axis];
}

cudaFuncAttributes attributes(const Kernel& kernel) {
    const KernelDescriptor& d = *kernel.descriptor;
    cudaFuncAttributes a{};
    a.sharedSizeBytes = d.static_shared;
    a.localSizeBytes = d.local_bytes;
    a.maxThreadsPerBlock = most_threads(d);
    a.numRegs = std::min(UNKNOWN_REGISTERS, Profile::REGISTERS_PER_BLOCK / a.maxThreadsPerBlock);
    a.ptxVersion = compute_version(kernel.binary->module->descriptor->target);
    a.binaryVersion = profile().major * 10 + profile().minor;
    a.maxDynamicSharedSizeBytes =
        kernel.dynamic_shared >= 0 ? kernel.dynamic_shared : static_cast<int>(default_dynamic_shared(d));
    a.preferredShmemCarveout = kernel.carveout;
    a.requiredClusterWidth = required_cluster(kernel, 0);
    a.requiredClusterHeight = required_cluster(kernel, 1);
    a.requiredClusterDepth = required_cluster(kernel, 2);
    a.clusterSchedulingPolicyPreference = kernel.cluster_policy;
    a.nonPortableClusterSizeAllowed = kernel.non_portable_cluster;
    return a;
}

cudaError_t set_dynamic_shared(Kernel& kernel, int bytes) {
    size_t most = largest_dynamic_shared(*kernel.descriptor);
    if (bytes < 0 || static_cast<size_t>(bytes) > most)
        return reject(
            cudaErrorInvalidValue, "invalid_launch",
            std::to_string(bytes) + " bytes of dynamic shared memory for kernel " + kernel.name +
                "; it can have at most " + std::to_string(most) + " on " + profile().name,
            "Use smaller tiles or fewer stages, or choose an architecture with more shared memory.");
    kernel.dynamic_shared = bytes;
    return cudaSuccess;
}

cudaError_t set_cluster(Kernel& kernel, int axis, int blocks) {
    if (kernel.descriptor->cluster[0]) return cudaErrorNotPermitted;           // fixed when it was compiled
    if (blocks < 0) return cudaErrorInvalidValue;
    kernel.cluster[axis] = blocks;
    return cudaSuccess;
}

cudaError_t set_attribute(Kernel& kernel, cudaFuncAttribute attribute, int value) {
    switch (attribute) {
        case cudaFuncAttributeMaxDynamicSharedMemorySize: return set_dynamic_shared(kernel, value);
        case cudaFuncAttributePreferredSharedMemoryCarveout:
            if (value < -1 || value > 100) return cudaErrorInvalidValue;
            kernel.carveout = value;
            return cudaSuccess;
        case cudaFuncAttributeRequiredClusterWidth: return set_cluster(kernel, 0, value);
        case cudaFuncAttributeRequiredClusterHeight: return set_cluster(kernel, 1, value);
        case cudaFuncAttributeRequiredClusterDepth: return set_cluster(kernel, 2, value);
        case cudaFuncAttributeNonPortableClusterSizeAllowed:
            kernel.non_portable_cluster = value != 0;
            return cudaSuccess;
        case cudaFuncAttributeClusterSchedulingPolicyPreference:
            kernel.cluster_policy = value;
            return cudaSuccess;
        default: return cudaErrorInvalidValue;
    }
}

Occupancy resident(const Kernel& kernel, int threads, size_t shared) {
    size_t allowed = kernel.dynamic_shared >= 0 ? static_cast<size_t>(kernel.dynamic_shared)
                                                : default_dynamic_shared(*kernel.descriptor);
    if (shared > allowed) return {0, "dynamic shared memory"};
    return occupancy(*kernel.descriptor, threads, shared);
}

cudaError_t active_blocks(const char* name, int* blocks, const void* function, int threads, size_t shared) {
    return with_kernel(name, function, [&](Kernel& kernel) -> cudaError_t {
        if (!blocks || threads < 1) return cudaErrorInvalidValue;
        *blocks = resident(kernel, threads, shared).blocks;
        return cudaSuccess;
    });
}

dim3 cluster_of(const cudaLaunchConfig_t& config, const Kernel& kernel) {
    for (unsigned i = 0; i < config.numAttrs; ++i)
        if (config.attrs[i].id == cudaLaunchAttributeClusterDimension)
            return dim3(config.attrs[i].val.clusterDim.x, config.attrs[i].val.clusterDim.y,
                        config.attrs[i].val.clusterDim.z);
    auto axis = [&](int i) { return static_cast<unsigned>(std::max(required_cluster(kernel, i), 1)); };
    return dim3(axis(0), axis(1), axis(2));
}

size_t largest_shared_for(const Kernel& kernel, int blocks,
                          int threads) {     // dynamic bytes with which `blocks` still fit
    size_t low = 0, high = largest_dynamic_shared(*kernel.descriptor) + 1;     // fits with low, not with high
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        (occupancy(*kernel.descriptor, threads, middle).blocks >= blocks ? low : high) = middle;
    }
    return low;
}

}  // namespace
}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
    return with_kernel("cudaFuncGetAttributes", function, [&](Kernel& kernel) -> cudaError_t {
        return give(out, attributes(kernel));
    });
}

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    return with_kernel("cudaFuncSetAttribute", function,
                       [&](Kernel& kernel) { return set_attribute(kernel, attribute, value); });
}

cudaError_t CUDARTAPI cudaKernelSetAttributeForDevice(cudaKernel_t function, cudaFuncAttribute attribute,
                                                      int value, int device) {
    if (device) return remember(cudaErrorInvalidDevice);
    return with_kernel("cudaKernelSetAttributeForDevice", function,
                       [&](Kernel& kernel) { return set_attribute(kernel, attribute, value); });
}

cudaError_t CUDARTAPI cudaFuncSetCacheConfig(const void* function, cudaFuncCache) {
    return with_kernel("cudaFuncSetCacheConfig", function, [](Kernel&) { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaFuncSetSharedMemConfig(const void* function, cudaSharedMemConfig) {
    return with_kernel("cudaFuncSetSharedMemConfig", function, [](Kernel&) { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaFuncGetName(const char** name, const void* function) {
    return with_kernel("cudaFuncGetName", function,
                       [&](Kernel& kernel) { return give(name, kernel.name.c_str()); });
}

cudaError_t CUDARTAPI cudaFuncGetParamInfo(const void* function, size_t index, size_t* offset,
                                           size_t* bytes) {
    return with_kernel("cudaFuncGetParamInfo", function, [&](Kernel& kernel) -> cudaError_t {
        const KernelDescriptor& d = *kernel.descriptor;
        if (!offset || index >= d.parameter_count) return cudaErrorInvalidValue;
        *offset = d.parameter_offsets[index];
        if (bytes) *bytes = d.parameter_sizes[index];
        return cudaSuccess;
    });
}

// ---- occupancy --------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                                    int threads, size_t shared) {
    return active_blocks("cudaOccupancyMaxActiveBlocksPerMultiprocessor", blocks, function, threads, shared);
}

cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                             const void* function,
                                                                             int threads, size_t shared,
                                                                             unsigned) {
    return active_blocks("cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", blocks, function, threads,
                         shared);
}

cudaError_t CUDARTAPI cudaOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, const void* function,
                                                                int blocks, int threads) {
    return with_kernel("cudaOccupancyAvailableDynamicSMemPerBlock", function,
                       [&](Kernel& kernel) -> cudaError_t {
                           if (!bytes || blocks < 1 || threads < 1 ||
                               occupancy(*kernel.descriptor, threads, 0).blocks < blocks)
                               return cudaErrorInvalidValue;
                           *bytes = largest_shared_for(kernel, blocks, threads);
                           return cudaSuccess;
                       });
}

cudaError_t CUDARTAPI cudaOccupancyMaxPotentialClusterSize(int* size, const void* function,
                                                           const cudaLaunchConfig_t* config) {
    return with_kernel("cudaOccupancyMaxPotentialClusterSize", function, [&](Kernel& kernel) -> cudaError_t {
        if (!size || !config) return cudaErrorInvalidValue;
        *size = !profile().clusters           ? 1
                : kernel.non_portable_cluster ? Profile::LARGEST_CLUSTER
                                              : Profile::PORTABLE_CLUSTER;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                                     const cudaLaunchConfig_t* config) {
    return with_kernel("cudaOccupancyMaxActiveClusters", function, [&](Kernel& kernel) -> cudaError_t {
        if (!clusters || !config) return cudaErrorInvalidValue;
        dim3 cluster = cluster_of(*config, kernel), block = config->blockDim;
        int size = static_cast<int>(cluster.x * cluster.y * cluster.z);
        int largest = kernel.non_portable_cluster ? Profile::LARGEST_CLUSTER : Profile::PORTABLE_CLUSTER;
        if (size < 1 || size > largest || !profile().clusters) return cudaErrorInvalidClusterSize;
        int blocks =
            resident(kernel, static_cast<int>(block.x * block.y * block.z), config->dynamicSmemBytes).blocks;
        *clusters = blocks * profile().multiprocessors / size;
        return cudaSuccess;
    });
}

}  // extern "C"
