// From the parameters of a graph node to its work, and back.
#include <cstring>

#include "../memory.h"
#include "../reports.h"
#include "graph.h"

namespace emu::cudart {
namespace {

cudaGraphNodeParams typed(cudaGraphNodeType type) {
    cudaGraphNodeParams made{};              // reserved fields must be zero
    made.type = type;
    return made;
}

template <class W> cudaError_t give(W work, std::unique_ptr<Work>* out) {
    *out = std::make_unique<W>(std::move(work));
    return cudaSuccess;
}

cudaError_t make_kernel(const cudaKernelNodeParamsV2& p, std::unique_ptr<Work>* out) {
    if (p.extra) return unsupported("a kernel node with arguments in `extra`");
    KernelWork work;
    if (cudaError_t error = find_kernel(p.func, &work.kernel)) return error;
    work.grid = p.gridDim;
    work.block = p.blockDim;
    work.shared = p.sharedMemBytes;
    work.arguments = p.kernelParams;
    if (cudaError_t error = work.check()) return error;
    work.keep();
    return give(work, out);
}

cudaError_t make_copy(const cudaMemcpy3DParms& p, std::unique_ptr<Work>* out) {
    CopyWork work;
    if (cudaError_t error = volume_copy(p, &work)) return error;
    if (cudaError_t error = work.check()) return error;
    return give(work, out);
}

cudaError_t make_fill(const cudaMemsetParamsV2& p, std::unique_ptr<Work>* out) {
    FillWork work;
    work.destination = static_cast<char*>(p.dst);
    work.pitch = p.pitch;
    work.value = p.value;
    work.element = p.elementSize;
    work.width = p.width * p.elementSize;
    work.height = p.height;
    if (cudaError_t error = work.check()) return error;
    return give(work, out);
}

cudaError_t make_host(const cudaHostNodeParamsV2& p, std::unique_ptr<Work>* out) {
    if (!p.fn) return cudaErrorInvalidValue;
    HostWork work;
    work.function = p.fn;
    work.data = p.userData;
    return give(work, out);
}

template <class W> cudaError_t make_event(cudaEvent_t event, std::unique_ptr<Work>* out) {
    if (!find_event(event)) return cudaErrorInvalidResourceHandle;
    W work;
    work.event = event;
    return give(work, out);
}

cudaError_t make_child(const cudaChildGraphNodeParams& p, std::unique_ptr<Work>* out) {
    Graph* graph = find_graph(p.graph);
    if (!graph) return cudaErrorInvalidValue;
    GraphWork work;
    work.graph = graph->copy(nullptr);
    work.graph->owned = true;
    return give(work, out);
}

cudaError_t make_allocation(cudaMemAllocNodeParamsV2& p, std::unique_ptr<Work>* out) {
    p.dptr = p.bytesize ? memory_allocate(p.bytesize, MemoryKind::device, "memory of a graph node") : nullptr;
    if (!p.dptr) return p.bytesize ? cudaErrorMemoryAllocation : cudaErrorInvalidValue;
    AllocationWork work;
    static_assert(sizeof work.parameters == sizeof p, "two names of one layout");
    std::memcpy(&work.parameters, &p, sizeof p);
    work.memory = std::shared_ptr<void>(p.dptr, memory_free);
    return give(work, out);
}

cudaError_t make_release(const cudaMemFreeNodeParams& p, std::unique_ptr<Work>* out) {
    if (cudaError_t error = check_device_range(p.dptr, 1, "frees")) return error;
    ReleaseWork work;
    work.pointer = p.dptr;
    return give(work, out);
}

}  // namespace

cudaError_t make_work(cudaGraphNodeParams& p, std::unique_ptr<Work>* out) {
    switch (p.type) {
        case cudaGraphNodeTypeKernel: return make_kernel(p.kernel, out);
        case cudaGraphNodeTypeMemcpy: return make_copy(p.memcpy.copyParams, out);
        case cudaGraphNodeTypeMemset: return make_fill(p.memset, out);
        case cudaGraphNodeTypeHost: return make_host(p.host, out);
        case cudaGraphNodeTypeGraph: return make_child(p.graph, out);
        case cudaGraphNodeTypeEmpty: return give(EmptyWork(), out);
        case cudaGraphNodeTypeWaitEvent: return make_event<EventWaitWork>(p.eventWait.event, out);
        case cudaGraphNodeTypeEventRecord: return make_event<EventRecordWork>(p.eventRecord.event, out);
        case cudaGraphNodeTypeMemAlloc: return make_allocation(p.alloc, out);
        case cudaGraphNodeTypeMemFree: return make_release(p.free, out);
        case cudaGraphNodeTypeConditional: return unsupported("a conditional graph node");
        case cudaGraphNodeTypeExtSemaphoreSignal:
        case cudaGraphNodeTypeExtSemaphoreWait: return unsupported("a graph node of an external semaphore");
        default: return cudaErrorInvalidValue;
    }
}

cudaGraphNodeParams kernel_parameters(const cudaKernelNodeParams& p) {
    cudaGraphNodeParams made = typed(cudaGraphNodeTypeKernel);
    made.kernel.func = p.func;
    made.kernel.gridDim = p.gridDim;
    made.kernel.blockDim = p.blockDim;
    made.kernel.sharedMemBytes = p.sharedMemBytes;
    made.kernel.kernelParams = p.kernelParams;
    made.kernel.extra = p.extra;
    return made;
}

cudaGraphNodeParams copy_parameters(const cudaMemcpy3DParms& p) {
    cudaGraphNodeParams made = typed(cudaGraphNodeTypeMemcpy);
    made.memcpy.copyParams = p;
    return made;
}

cudaGraphNodeParams fill_parameters(const cudaMemsetParams& p) {
    cudaGraphNodeParams made = typed(cudaGraphNodeTypeMemset);
    made.memset.dst = p.dst;
    made.memset.pitch = p.pitch;
    made.memset.value = p.value;
    made.memset.elementSize = p.elementSize;
    made.memset.width = p.width;
    made.memset.height = p.height;
    return made;
}

cudaGraphNodeParams host_parameters(const cudaHostNodeParams& p) {
    cudaGraphNodeParams made = typed(cudaGraphNodeTypeHost);
    made.host.fn = p.fn;
    made.host.userData = p.userData;
    return made;
}

cudaGraphNodeParams event_parameters(cudaGraphNodeType type, cudaEvent_t event) {
    cudaGraphNodeParams made = typed(type);
    if (type == cudaGraphNodeTypeWaitEvent) made.eventWait.event = event;
    else made.eventRecord.event = event;
    return made;
}

cudaGraphNodeParams child_parameters(cudaGraph_t graph) {
    cudaGraphNodeParams made = typed(cudaGraphNodeTypeGraph);
    made.graph.graph = graph;
    return made;
}

cudaMemcpy3DParms linear_parameters(void* destination, const void* source, size_t bytes,
                                    cudaMemcpyKind kind) {
    cudaMemcpy3DParms p{};
    p.dstPtr = cudaPitchedPtr{destination, bytes, bytes, 1};
    p.srcPtr = cudaPitchedPtr{const_cast<void*>(source), bytes, bytes, 1};
    p.extent = cudaExtent{bytes, 1, 1};
    p.kind = kind;
    return p;
}

}  // namespace emu::cudart

using namespace emu::cudart;

namespace {

template <class W, class Body> cudaError_t with_work(const char* name, cudaGraphNode_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Node* node = find_node(handle);
        W* work = node ? dynamic_cast<W*>(node->work.get()) : nullptr;
        return work ? body(*work) : cudaErrorInvalidValue;
    });
}

cudaError_t replace(Node* node, cudaGraphNodeParams params) {
    if (!node || node->work->type() != params.type) return cudaErrorInvalidValue;
    return make_work(params, &node->work);
}

cudaError_t set_parameters(const char* name, cudaGraphNode_t node, const cudaGraphNodeParams& params) {
    return call(name, [&] { return replace(find_node(node), params); });
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaGraphNodeSetParams(cudaGraphNode_t node, cudaGraphNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return set_parameters("cudaGraphNodeSetParams", node, *p);
}

cudaError_t CUDARTAPI cudaGraphKernelNodeSetParams(cudaGraphNode_t node, const cudaKernelNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return set_parameters("cudaGraphKernelNodeSetParams", node, kernel_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphMemcpyNodeSetParams(cudaGraphNode_t node, const cudaMemcpy3DParms* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return set_parameters("cudaGraphMemcpyNodeSetParams", node, copy_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphMemcpyNodeSetParams1D(cudaGraphNode_t node, void* to, const void* from,
                                                     size_t bytes, cudaMemcpyKind kind) {
    return set_parameters("cudaGraphMemcpyNodeSetParams1D", node,
                          copy_parameters(linear_parameters(to, from, bytes, kind)));
}

cudaError_t CUDARTAPI cudaGraphMemsetNodeSetParams(cudaGraphNode_t node, const cudaMemsetParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return set_parameters("cudaGraphMemsetNodeSetParams", node, fill_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphHostNodeSetParams(cudaGraphNode_t node, const cudaHostNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return set_parameters("cudaGraphHostNodeSetParams", node, host_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphEventRecordNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
    return set_parameters("cudaGraphEventRecordNodeSetEvent", node,
                          event_parameters(cudaGraphNodeTypeEventRecord, event));
}

cudaError_t CUDARTAPI cudaGraphEventWaitNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
    return set_parameters("cudaGraphEventWaitNodeSetEvent", node,
                          event_parameters(cudaGraphNodeTypeWaitEvent, event));
}

// ---- reading them back ------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* p) {
    return with_work<KernelWork>("cudaGraphKernelNodeGetParams", node, [&](KernelWork& work) {
        return give(p, cudaKernelNodeParams{const_cast<void*>(work.kernel->host), work.grid, work.block,
                                            work.shared, work.arguments, nullptr});
    });
}

cudaError_t CUDARTAPI cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* p) {
    return with_work<CopyWork>("cudaGraphMemcpyNodeGetParams", node, [&](CopyWork& work) {
        auto rows = [](size_t slice, size_t pitch, size_t height) {
            return slice && pitch ? slice / pitch : height;
        };
        cudaMemcpy3DParms made{};
        made.dstPtr = cudaPitchedPtr{work.destination, work.destination_pitch, work.width,
                                   rows(work.destination_slice, work.destination_pitch, work.height)};
        made.srcPtr = cudaPitchedPtr{const_cast<char*>(work.source), work.source_pitch, work.width,
                                   rows(work.source_slice, work.source_pitch, work.height)};
        made.extent = cudaExtent{work.width, work.height, work.depth};
        made.kind = work.kind;
        return give(p, made);
    });
}

cudaError_t CUDARTAPI cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* p) {
    return with_work<FillWork>("cudaGraphMemsetNodeGetParams", node, [&](FillWork& work) {
        return give(p, cudaMemsetParams{work.destination, work.pitch, work.value, work.element,
                                        work.width / work.element, work.height});
    });
}

cudaError_t CUDARTAPI cudaGraphHostNodeGetParams(cudaGraphNode_t node, cudaHostNodeParams* p) {
    return with_work<HostWork>("cudaGraphHostNodeGetParams", node, [&](HostWork& work) {
        return give(p, cudaHostNodeParams{work.function, work.data});
    });
}

cudaError_t CUDARTAPI cudaGraphEventRecordNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
    return with_work<EventRecordWork>("cudaGraphEventRecordNodeGetEvent", node,
                                      [&](EventRecordWork& work) { return give(event, work.event); });
}

cudaError_t CUDARTAPI cudaGraphEventWaitNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
    return with_work<EventWaitWork>("cudaGraphEventWaitNodeGetEvent", node,
                                    [&](EventWaitWork& work) { return give(event, work.event); });
}

cudaError_t CUDARTAPI cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
    return with_work<GraphWork>("cudaGraphChildGraphNodeGetGraph", node,
                                [&](GraphWork& work) { return give(graph, handle(work.graph.get())); });
}

cudaError_t CUDARTAPI cudaGraphMemAllocNodeGetParams(cudaGraphNode_t node, cudaMemAllocNodeParams* p) {
    return with_work<AllocationWork>("cudaGraphMemAllocNodeGetParams", node,
                                     [&](AllocationWork& work) { return give(p, work.parameters); });
}

cudaError_t CUDARTAPI cudaGraphMemFreeNodeGetParams(cudaGraphNode_t node, void* pointer) {
    return with_work<ReleaseWork>("cudaGraphMemFreeNodeGetParams", node, [&](ReleaseWork& work) {
        return give(static_cast<void**>(pointer), work.pointer);
    });
}

cudaError_t CUDARTAPI cudaGraphKernelNodeSetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID attribute,
                                                      const cudaLaunchAttributeValue* value) {
    return with_work<KernelWork>(
        "cudaGraphKernelNodeSetAttribute", node, [&](KernelWork& work) -> cudaError_t {
            if (!value) return cudaErrorInvalidValue;
            if (attribute == cudaLaunchAttributeCooperative) work.cooperative = value->cooperative != 0;
            if (attribute == cudaLaunchAttributePriority) work.priority = value->priority;
            if (attribute == cudaLaunchAttributeClusterDimension)
                work.cluster = dim3(value->clusterDim.x, value->clusterDim.y, value->clusterDim.z);
            return work.check();
        });
}

cudaError_t CUDARTAPI cudaGraphKernelNodeGetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID attribute,
                                                      cudaLaunchAttributeValue* value) {
    return with_work<KernelWork>("cudaGraphKernelNodeGetAttribute", node, [&](KernelWork& work) {
        cudaLaunchAttributeValue read{};
        if (attribute == cudaLaunchAttributeCooperative) read.cooperative = work.cooperative;
        if (attribute == cudaLaunchAttributePriority) read.priority = work.priority;
        if (attribute == cudaLaunchAttributeClusterDimension)
            read.clusterDim = {work.cluster.x, work.cluster.y, work.cluster.z};
        return give(value, read);
    });
}

cudaError_t CUDARTAPI cudaGraphKernelNodeCopyAttributes(cudaGraphNode_t to, cudaGraphNode_t from) {
    return with_work<KernelWork>("cudaGraphKernelNodeCopyAttributes", from,
                                 [&](KernelWork& source) -> cudaError_t {
                                     Node* node = find_node(to);
                                     KernelWork* work =
                                         node ? dynamic_cast<KernelWork*>(node->work.get()) : nullptr;
                                     if (!work) return cudaErrorInvalidValue;
                                     work->cooperative = source.cooperative;
                                     work->priority = source.priority;
                                     work->cluster = source.cluster;
                                     return cudaSuccess;
                                 });
}

}  // extern "C"
