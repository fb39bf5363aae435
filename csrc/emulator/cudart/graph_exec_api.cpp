// Entry points for executable graphs: instantiation, launch, update.
#include <algorithm>
#include <unordered_set>

#include "graph.h"
#include "statistics.h"

namespace emu::cudart {
namespace {

std::unordered_set<const void*>& execs() {
    static auto* known = new std::unordered_set<const void*>;
    return *known;
}

template <class Body> cudaError_t with_exec(const char* name, cudaGraphExec_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        GraphExec* exec = find_exec(handle);
        return exec ? body(*exec) : cudaErrorInvalidValue;
    });
}

cudaError_t instantiate(cudaGraphExec_t* out, cudaGraph_t handle, unsigned long long flags) {
    Graph* graph = find_graph(handle);
    if (!out || !graph) return cudaErrorInvalidValue;
    if (flags & cudaGraphInstantiateFlagDeviceLaunch) return unsupported("launching graphs from the device");
    if (graph->order().size() != graph->nodes.size())
        return reject(cudaErrorInvalidValue, "invalid_call", "the graph's dependencies form a cycle",
                      "Remove an edge of the cycle.");
    auto* exec = new GraphExec;
    exec->graph = graph->copy(&exec->by_origin);
    exec->graph->owned = true;
    exec->flags = flags;
    execs().insert(exec);
    *out = reinterpret_cast<cudaGraphExec_t>(exec);
    return cudaSuccess;
}

Node* node_of(GraphExec& exec, cudaGraphNode_t origin) {
    auto found = exec.by_origin.find(reinterpret_cast<const Node*>(origin));
    return found == exec.by_origin.end() ? nullptr : found->second;
}

cudaError_t replace(const char* name, cudaGraphExec_t handle, cudaGraphNode_t origin,
                    cudaGraphNodeParams params) {
    return with_exec(name, handle, [&](GraphExec& exec) -> cudaError_t {
        exec.make_own();
        Node* node = node_of(exec, origin);
        if (!node || node->work->type() != params.type || params.type == cudaGraphNodeTypeMemAlloc)
            return cudaErrorInvalidValue;
        return make_work(params, &node->work);
    });
}

// ---- update: the same shape with other parameters ---------------------------------------------------------

std::vector<size_t> positions(const Graph& graph, const std::vector<Node*>& nodes) {
    std::vector<size_t> found;
    for (size_t i = 0; i < graph.nodes.size(); ++i)
        if (std::count(nodes.begin(), nodes.end(), graph.nodes[i].get())) found.push_back(i);
    return found;
}

cudaGraphExecUpdateResultInfo compare(const Graph& now, const Graph& wanted) {
    cudaGraphExecUpdateResultInfo info{cudaGraphExecUpdateSuccess, nullptr, nullptr};
    auto differs = [&](cudaGraphExecUpdateResult how, Node* node) {
        info.result = how;
        info.errorNode = handle(node);
    };
    for (size_t i = 0; i < wanted.nodes.size() && info.result == cudaGraphExecUpdateSuccess; ++i) {
        Node* node = wanted.nodes[i].get();
        if (i >= now.nodes.size()) differs(cudaGraphExecUpdateErrorTopologyChanged, node);
        else if (node->work->type() != now.nodes[i]->work->type())
            differs(cudaGraphExecUpdateErrorNodeTypeChanged, node);
        else if (positions(wanted, node->dependencies) != positions(now, now.nodes[i]->dependencies))
            differs(cudaGraphExecUpdateErrorTopologyChanged, node);
        else if (node->work->type() == cudaGraphNodeTypeMemAlloc)
            differs(cudaGraphExecUpdateErrorUnsupportedFunctionChange, node);
    }
    if (info.result == cudaGraphExecUpdateSuccess && now.nodes.size() != wanted.nodes.size())
        info.result = cudaGraphExecUpdateErrorTopologyChanged;
    return info;
}

cudaError_t update(GraphExec& exec, const Graph& wanted, cudaGraphExecUpdateResultInfo* out) {
    cudaGraphExecUpdateResultInfo info = compare(*exec.graph, wanted);
    if (out) *out = info;
    if (info.result != cudaGraphExecUpdateSuccess) return cudaErrorGraphExecUpdateFailure;
    exec.make_own();
    for (size_t i = 0; i < wanted.nodes.size(); ++i) {
        exec.graph->nodes[i]->work = wanted.nodes[i]->work->copy();
        exec.by_origin[wanted.nodes[i].get()] = exec.graph->nodes[i].get();
    }
    return cudaSuccess;
}

}  // namespace

GraphExec* find_exec(cudaGraphExec_t handle) {
    if (execs().count(handle)) return reinterpret_cast<GraphExec*>(handle);
    report_call("invalid_call",
                "was given an executable graph that does not exist (never instantiated, or destroyed)",
                "Use the handle only between its creation and its destruction.");
    return nullptr;
}

}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           unsigned long long flags) {
    return call("cudaGraphInstantiate", [&] { return instantiate(exec, graph, flags); });
}

cudaError_t CUDARTAPI cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                                    unsigned long long flags) {
    return call("cudaGraphInstantiateWithFlags", [&] { return instantiate(exec, graph, flags); });
}

cudaError_t CUDARTAPI cudaGraphInstantiateWithParams(cudaGraphExec_t* exec, cudaGraph_t graph,
                                                     cudaGraphInstantiateParams* params) {
    if (!params) return remember(cudaErrorInvalidValue);
    return call("cudaGraphInstantiateWithParams", [&] {
        cudaError_t error = instantiate(exec, graph, params->flags);
        params->result_out = error ? cudaGraphInstantiateError : cudaGraphInstantiateSuccess;
        params->errNode_out = nullptr;
        return error;
    });
}

cudaError_t CUDARTAPI cudaGraphUpload(cudaGraphExec_t handle, cudaStream_t) {
    return with_exec("cudaGraphUpload", handle, [](GraphExec&) { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
    return with_exec("cudaGraphLaunch", handle, [&](GraphExec& exec) -> cudaError_t {
        if (inject_launch_failure()) return cudaErrorLaunchOutOfResources;
        GraphWork work;
        work.graph = exec.graph;
        work.counted = true;
        return submit(stream, work);
    });
}

cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t handle) {
    return call_always("cudaGraphExecDestroy", [&]() -> cudaError_t {
        GraphExec* exec = find_exec(handle);
        if (!exec) return cudaErrorInvalidValue;
        execs().erase(exec);
        delete exec;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphExecGetFlags(cudaGraphExec_t handle, unsigned long long* flags) {
    return with_exec("cudaGraphExecGetFlags", handle,
                     [&](GraphExec& exec) { return give(flags, exec.flags); });
}

cudaError_t CUDARTAPI cudaGraphExecUpdate(cudaGraphExec_t handle, cudaGraph_t graph,
                                          cudaGraphExecUpdateResultInfo* info) {
    return with_exec("cudaGraphExecUpdate", handle, [&](GraphExec& exec) -> cudaError_t {
        Graph* wanted = find_graph(graph);
        return wanted ? update(exec, *wanted, info) : cudaErrorInvalidValue;
    });
}

cudaError_t CUDARTAPI cudaGraphNodeSetEnabled(cudaGraphExec_t handle, cudaGraphNode_t origin,
                                              unsigned enabled) {
    return with_exec("cudaGraphNodeSetEnabled", handle, [&](GraphExec& exec) -> cudaError_t {
        exec.make_own();
        Node* node = node_of(exec, origin);
        if (!node) return cudaErrorInvalidValue;
        node->enabled = enabled != 0;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphNodeGetEnabled(cudaGraphExec_t handle, cudaGraphNode_t origin,
                                              unsigned* enabled) {
    return with_exec("cudaGraphNodeGetEnabled", handle, [&](GraphExec& exec) -> cudaError_t {
        Node* node = node_of(exec, origin);
        return node ? give(enabled, node->enabled ? 1u : 0u) : cudaErrorInvalidValue;
    });
}

// ---- parameters of one node -------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGraphExecNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                 cudaGraphNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return replace("cudaGraphExecNodeSetParams", exec, node, *p);
}

cudaError_t CUDARTAPI cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                       const cudaKernelNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return replace("cudaGraphExecKernelNodeSetParams", exec, node, kernel_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphExecMemcpyNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                       const cudaMemcpy3DParms* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return replace("cudaGraphExecMemcpyNodeSetParams", exec, node, copy_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t exec, cudaGraphNode_t node, void* to,
                                                         const void* from, size_t bytes,
                                                         cudaMemcpyKind kind) {
    return replace("cudaGraphExecMemcpyNodeSetParams1D", exec, node,
                   copy_parameters(linear_parameters(to, from, bytes, kind)));
}

cudaError_t CUDARTAPI cudaGraphExecMemsetNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                       const cudaMemsetParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return replace("cudaGraphExecMemsetNodeSetParams", exec, node, fill_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphExecHostNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                     const cudaHostNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    return replace("cudaGraphExecHostNodeSetParams", exec, node, host_parameters(*p));
}

cudaError_t CUDARTAPI cudaGraphExecChildGraphNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                           cudaGraph_t child) {
    return replace("cudaGraphExecChildGraphNodeSetParams", exec, node, child_parameters(child));
}

cudaError_t CUDARTAPI cudaGraphExecEventRecordNodeSetEvent(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                           cudaEvent_t event) {
    return replace("cudaGraphExecEventRecordNodeSetEvent", exec, node,
                   event_parameters(cudaGraphNodeTypeEventRecord, event));
}

cudaError_t CUDARTAPI cudaGraphExecEventWaitNodeSetEvent(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                         cudaEvent_t event) {
    return replace("cudaGraphExecEventWaitNodeSetEvent", exec, node,
                   event_parameters(cudaGraphNodeTypeWaitEvent, event));
}

}  // extern "C"
