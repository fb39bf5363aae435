// Entry points that launch kernels.
#include <algorithm>

#include "../profiles.h"
#include "../reports.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

struct Extras {                              // what only some ways to launch can ask for
    dim3 cluster{0, 0, 0};
    bool cooperative = false;
    int priority = 0;
    std::vector<cudaEvent_t> events;         // recorded with the launch
};

// The attributes of cudaLaunchKernelExC.  Those that only guide scheduling or caching change no result: work
// of a stream runs in order, which every form of programmatic dependent launch allows.
cudaError_t read_attribute(const cudaLaunchAttribute& attribute, Extras* extras) {
    const cudaLaunchAttributeValue& value = attribute.val;
    switch (attribute.id) {
        case cudaLaunchAttributeClusterDimension:
            extras->cluster = dim3(value.clusterDim.x, value.clusterDim.y, value.clusterDim.z);
            return cudaSuccess;
        case cudaLaunchAttributeCooperative: extras->cooperative = value.cooperative != 0; return cudaSuccess;
        case cudaLaunchAttributePriority: extras->priority = value.priority; return cudaSuccess;
        case cudaLaunchAttributeProgrammaticEvent:
            extras->events.push_back(value.programmaticEvent.event);
            return cudaSuccess;
        case cudaLaunchAttributeLaunchCompletionEvent:
            extras->events.push_back(value.launchCompletionEvent.event);
            return cudaSuccess;
        case cudaLaunchAttributeDeviceUpdatableKernelNode:
            return unsupported("a kernel node that the device can update");
        case cudaLaunchAttributeIgnore:
        case cudaLaunchAttributeAccessPolicyWindow:
        case cudaLaunchAttributeSynchronizationPolicy:
        case cudaLaunchAttributeClusterSchedulingPolicyPreference:
        case cudaLaunchAttributeProgrammaticStreamSerialization:
        case cudaLaunchAttributeMemSyncDomainMap:
        case cudaLaunchAttributeMemSyncDomain:
        case cudaLaunchAttributePreferredClusterDimension:
        case cudaLaunchAttributePreferredSharedMemoryCarveout:
        case cudaLaunchAttributeNvlinkUtilCentricScheduling: return cudaSuccess;
        default: return unsupported(format("launch attribute %d", static_cast<int>(attribute.id)).c_str());
    }
}

void use_required_cluster(const Kernel& kernel, dim3* cluster) {
    if (!cluster->x && kernel.cluster[0])
        *cluster = dim3(kernel.cluster[0], kernel.cluster[1], kernel.cluster[2]);
}

cudaError_t launch_kernel(const void* function, const dim3& grid, const dim3& block, void** arguments,
                          size_t shared, cudaStream_t stream, const Extras& extras) {
    KernelWork work;
    if (cudaError_t error = find_kernel(function, &work.kernel)) return error;
    work.grid = grid;
    work.block = block;
    work.cluster = extras.cluster;
    use_required_cluster(*work.kernel, &work.cluster);
    work.shared = static_cast<uint32_t>(std::min<size_t>(shared, UINT32_MAX));
    work.cooperative = extras.cooperative;
    work.priority = extras.priority;
    work.arguments = arguments;
    if (cudaError_t error = work.check()) return error;
    if (inject_launch_failure()) return cudaErrorLaunchOutOfResources;
    if (cudaError_t error = submit(stream, work)) return error;
    for (cudaEvent_t event : extras.events)
        if (cudaError_t error = cudaEventRecord(event, stream)) return error;
    return cudaSuccess;
}

cudaError_t launch_configured(const cudaLaunchConfig_t& config, const void* function, void** arguments) {
    Extras extras;
    if (config.numAttrs && !config.attrs) return cudaErrorInvalidValue;
    for (unsigned i = 0; i < config.numAttrs; ++i)
        if (cudaError_t error = read_attribute(config.attrs[i], &extras)) return error;
    return launch_kernel(function, config.gridDim, config.blockDim, arguments, config.dynamicSmemBytes,
                         config.stream, extras);
}

}  // namespace
}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                       size_t shared, cudaStream_t stream) {
    return call("cudaLaunchKernel",
                [&] { return launch_kernel(function, grid, block, arguments, shared, stream, {}); });
}

cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                         size_t shared, cudaStream_t stream) {
    return call("<<<>>>", [&] { return launch_kernel(kernel, grid, block, arguments, shared, stream, {}); });
}

cudaError_t CUDARTAPI __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                              size_t shared, cudaStream_t stream) {
    PerThreadScope per_thread;
    return __cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t CUDARTAPI cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block,
                                                  void** arguments, size_t shared, cudaStream_t stream) {
    return call("cudaLaunchCooperativeKernel", [&] {
        Extras extras;
        extras.cooperative = true;
        return launch_kernel(function, grid, block, arguments, shared, stream, extras);
    });
}

cudaError_t CUDARTAPI cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                          void** arguments) {
    return call("cudaLaunchKernelExC", [&]() -> cudaError_t {
        return config ? launch_configured(*config, function, arguments) : cudaErrorInvalidValue;
    });
}

}  // extern "C"
