// Entry points that build graphs and look at them.
#include <algorithm>
#include <cstdio>

#include "graph.h"

using namespace emu::cudart;

namespace {

template <class Body> cudaError_t with_graph(const char* name, cudaGraph_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Graph* graph = find_graph(handle);
        return graph ? body(*graph) : cudaErrorInvalidValue;
    });
}

template <class Body> cudaError_t with_node(const char* name, cudaGraphNode_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Node* node = find_node(handle);
        return node ? body(*node) : cudaErrorInvalidValue;
    });
}

cudaError_t read_nodes(const Graph& graph, const cudaGraphNode_t* handles, size_t count,
                       std::vector<Node*>* nodes) {
    if (count && !handles) return cudaErrorInvalidValue;
    for (size_t i = 0; i < count; ++i) {
        Node* node = find_node(handles[i]);
        bool twice = std::find(nodes->begin(), nodes->end(), node) != nodes->end();
        if (!node || node->graph != &graph || twice) return cudaErrorInvalidValue;
        nodes->push_back(node);
    }
    return cudaSuccess;
}

cudaError_t add(const char* name, cudaGraphNode_t* out, cudaGraph_t handle,
                const cudaGraphNode_t* dependencies, size_t count, cudaGraphNodeParams& params) {
    return with_graph(name, handle, [&](Graph& graph) -> cudaError_t {
        if (!out) return cudaErrorInvalidValue;
        std::vector<Node*> nodes;
        if (cudaError_t error = read_nodes(graph, dependencies, count, &nodes)) return error;
        std::unique_ptr<Work> work;
        if (cudaError_t error = make_work(params, &work)) return error;
        *out = emu::cudart::handle(graph.add(std::move(work), std::move(nodes)));
        return cudaSuccess;
    });
}

// The runtime's way to return lists: without an array the count; with one, as many as fit, the rest of it
// null.
cudaError_t give_nodes(const std::vector<Node*>& found, cudaGraphNode_t* out, size_t* count) {
    if (!out || !count) return give(count, found.size());
    for (size_t i = 0; i < *count; ++i) out[i] = i < found.size() ? handle(found[i]) : nullptr;
    *count = std::min(*count, found.size());
    return cudaSuccess;
}

struct Edge { Node *from, *to; };

cudaError_t give_edges(const std::vector<Edge>& found, cudaGraphNode_t* from, cudaGraphNode_t* to,
                       cudaGraphEdgeData* data, size_t* count) {
    if (!count || (!from && !to)) return give(count, found.size());
    for (size_t i = 0; i < *count; ++i) {
        if (from) from[i] = i < found.size() ? handle(found[i].from) : nullptr;
        if (to) to[i] = i < found.size() ? handle(found[i].to) : nullptr;
        if (data) data[i] = cudaGraphEdgeData{};
    }
    *count = std::min(*count, found.size());
    return cudaSuccess;
}

std::vector<Node*> dependents(const Node& node) {
    std::vector<Node*> found;
    for (const auto& other : node.graph->nodes)
        if (std::count(other->dependencies.begin(), other->dependencies.end(), &node))
            found.push_back(other.get());
    return found;
}

cudaError_t change_edge(const Graph& graph, cudaGraphNode_t from_handle, cudaGraphNode_t to_handle,
                        bool present) {
    Node *from = find_node(from_handle), *to = find_node(to_handle);
    if (!from || !to || from == to || from->graph != &graph || to->graph != &graph)
        return cudaErrorInvalidValue;
    auto& on = to->dependencies;
    auto found = std::find(on.begin(), on.end(), from);
    if ((found != on.end()) == present) return cudaErrorInvalidValue;     // there already, or not there
    if (present) on.push_back(from);
    else on.erase(found);
    return cudaSuccess;
}

cudaError_t change_edges(Graph& graph, const cudaGraphNode_t* from, const cudaGraphNode_t* to, size_t count,
                         bool present) {
    if (count && (!from || !to)) return cudaErrorInvalidValue;
    for (size_t i = 0; i < count; ++i)
        if (cudaError_t error = change_edge(graph, from[i], to[i], present)) return error;
    return cudaSuccess;
}

cudaError_t print_dot(const Graph& graph, const char* path) {
    FILE* file = std::fopen(path, "w");
    if (!file) return cudaErrorOperatingSystem;
    std::fprintf(file, "digraph {\n");
    for (const auto& node : graph.nodes) {
        std::fprintf(file, "  n%p [label=\"%s\"];\n", static_cast<void*>(node.get()),
                     node->work->describe().c_str());
        for (Node* from : node->dependencies)
            std::fprintf(file, "  n%p -> n%p;\n", static_cast<void*>(from), static_cast<void*>(node.get()));
    }
    std::fprintf(file, "}\n");
    std::fclose(file);
    return cudaSuccess;
}

cudaError_t symbol_place(const void* symbol, size_t bytes, size_t offset, char** place) {
    Symbol* found = nullptr;
    if (cudaError_t error = find_symbol(symbol, &found)) return error;
    if (offset > found->bytes || bytes > found->bytes - offset) return cudaErrorInvalidValue;
    *place = found->address + offset;
    return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaGraphCreate(cudaGraph_t* out, unsigned flags) {
    return call("cudaGraphCreate", [&]() -> cudaError_t {
        if (!out || flags) return cudaErrorInvalidValue;
        *out = handle(new Graph);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph_handle) {
    return call_always("cudaGraphDestroy", [&]() -> cudaError_t {
        Graph* graph = find_graph(graph_handle);
        if (!graph || graph->owned) return cudaErrorInvalidValue;
        delete graph;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphClone(cudaGraph_t* out, cudaGraph_t original) {
    return with_graph("cudaGraphClone", original, [&](Graph& graph) -> cudaError_t {
        if (!out) return cudaErrorInvalidValue;
        std::unordered_map<const Node*, Node*> map;
        std::unique_ptr<Graph> clone = graph.copy(&map);
        clone->clone_of = std::move(map);
        *out = handle(clone.release());
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphNodeFindInClone(cudaGraphNode_t* out, cudaGraphNode_t original,
                                               cudaGraph_t clone) {
    return with_graph("cudaGraphNodeFindInClone", clone, [&](Graph& graph) -> cudaError_t {
        auto found = graph.clone_of.find(reinterpret_cast<Node*>(original));
        if (found == graph.clone_of.end()) return cudaErrorInvalidValue;
        *out = handle(found->second);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGraphDebugDotPrint(cudaGraph_t graph_handle, const char* path, unsigned) {
    return with_graph("cudaGraphDebugDotPrint", graph_handle,
                      [&](Graph& graph) { return print_dot(graph, path); });
}

// ---- nodes ------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                       const cudaGraphNode_t* dependencies, const cudaGraphEdgeData*,
                                       size_t count, cudaGraphNodeParams* params) {
    if (!params) return remember(cudaErrorInvalidValue);
    return add("cudaGraphAddNode", out, graph, dependencies, count, *params);
}

cudaError_t CUDARTAPI cudaGraphAddKernelNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                             const cudaGraphNode_t* dependencies, size_t count,
                                             const cudaKernelNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    cudaGraphNodeParams params = kernel_parameters(*p);
    return add("cudaGraphAddKernelNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddMemcpyNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                             const cudaGraphNode_t* dependencies, size_t count,
                                             const cudaMemcpy3DParms* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    cudaGraphNodeParams params = copy_parameters(*p);
    return add("cudaGraphAddMemcpyNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddMemcpyNode1D(cudaGraphNode_t* out, cudaGraph_t graph,
                                               const cudaGraphNode_t* dependencies, size_t count, void* to,
                                               const void* from, size_t bytes, cudaMemcpyKind kind) {
    cudaGraphNodeParams params = copy_parameters(linear_parameters(to, from, bytes, kind));
    return add("cudaGraphAddMemcpyNode1D", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddMemcpyNodeToSymbol(cudaGraphNode_t* out, cudaGraph_t graph,
                                                     const cudaGraphNode_t* dependencies, size_t count,
                                                     const void* symbol, const void* from, size_t bytes,
                                                     size_t offset, cudaMemcpyKind kind) {
    return call("cudaGraphAddMemcpyNodeToSymbol", [&]() -> cudaError_t {
        char* to = nullptr;
        if (cudaError_t error = symbol_place(symbol, bytes, offset, &to)) return error;
        return cudaGraphAddMemcpyNode1D(out, graph, dependencies, count, to, from, bytes, kind);
    });
}

cudaError_t CUDARTAPI cudaGraphAddMemcpyNodeFromSymbol(cudaGraphNode_t* out, cudaGraph_t graph,
                                                       const cudaGraphNode_t* dependencies, size_t count,
                                                       void* to, const void* symbol, size_t bytes,
                                                       size_t offset, cudaMemcpyKind kind) {
    return call("cudaGraphAddMemcpyNodeFromSymbol", [&]() -> cudaError_t {
        char* from = nullptr;
        if (cudaError_t error = symbol_place(symbol, bytes, offset, &from)) return error;
        return cudaGraphAddMemcpyNode1D(out, graph, dependencies, count, to, from, bytes, kind);
    });
}

cudaError_t CUDARTAPI cudaGraphAddMemsetNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                             const cudaGraphNode_t* dependencies, size_t count,
                                             const cudaMemsetParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    cudaGraphNodeParams params = fill_parameters(*p);
    return add("cudaGraphAddMemsetNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddHostNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                           const cudaGraphNode_t* dependencies, size_t count,
                                           const cudaHostNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    cudaGraphNodeParams params = host_parameters(*p);
    return add("cudaGraphAddHostNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddChildGraphNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                                 const cudaGraphNode_t* dependencies, size_t count,
                                                 cudaGraph_t child) {
    cudaGraphNodeParams params = child_parameters(child);
    return add("cudaGraphAddChildGraphNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddEmptyNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                            const cudaGraphNode_t* dependencies, size_t count) {
    cudaGraphNodeParams params = child_parameters(nullptr);
    params.type = cudaGraphNodeTypeEmpty;
    return add("cudaGraphAddEmptyNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddEventRecordNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                                  const cudaGraphNode_t* dependencies, size_t count,
                                                  cudaEvent_t event) {
    cudaGraphNodeParams params = event_parameters(cudaGraphNodeTypeEventRecord, event);
    return add("cudaGraphAddEventRecordNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddEventWaitNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                                const cudaGraphNode_t* dependencies, size_t count,
                                                cudaEvent_t event) {
    cudaGraphNodeParams params = event_parameters(cudaGraphNodeTypeWaitEvent, event);
    return add("cudaGraphAddEventWaitNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphAddMemAllocNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                               const cudaGraphNode_t* dependencies, size_t count,
                                               cudaMemAllocNodeParams* p) {
    if (!p) return remember(cudaErrorInvalidValue);
    cudaGraphNodeParams params = child_parameters(nullptr);
    params.type = cudaGraphNodeTypeMemAlloc;
    params.alloc.poolProps = p->poolProps;
    params.alloc.bytesize = p->bytesize;
    cudaError_t error = add("cudaGraphAddMemAllocNode", out, graph, dependencies, count, params);
    p->dptr = error ? nullptr : params.alloc.dptr;
    return error;
}

cudaError_t CUDARTAPI cudaGraphAddMemFreeNode(cudaGraphNode_t* out, cudaGraph_t graph,
                                              const cudaGraphNode_t* dependencies, size_t count,
                                              void* pointer) {
    cudaGraphNodeParams params = child_parameters(nullptr);
    params.type = cudaGraphNodeTypeMemFree;
    params.free.dptr = pointer;
    return add("cudaGraphAddMemFreeNode", out, graph, dependencies, count, params);
}

cudaError_t CUDARTAPI cudaGraphDestroyNode(cudaGraphNode_t node_handle) {
    return with_node("cudaGraphDestroyNode", node_handle, [](Node& node) {
        node.graph->remove(&node);
        return cudaSuccess;
    });
}

// ---- looking at them --------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaGraphNodeGetType(cudaGraphNode_t node_handle, cudaGraphNodeType* type) {
    return with_node("cudaGraphNodeGetType", node_handle,
                     [&](Node& node) { return give(type, node.work->type()); });
}

cudaError_t CUDARTAPI cudaGraphGetNodes(cudaGraph_t graph_handle, cudaGraphNode_t* nodes, size_t* count) {
    return with_graph("cudaGraphGetNodes", graph_handle, [&](Graph& graph) {
        std::vector<Node*> found;
        for (const auto& node : graph.nodes) found.push_back(node.get());
        return give_nodes(found, nodes, count);
    });
}

cudaError_t CUDARTAPI cudaGraphGetRootNodes(cudaGraph_t graph_handle, cudaGraphNode_t* nodes, size_t* count) {
    return with_graph("cudaGraphGetRootNodes", graph_handle, [&](Graph& graph) {
        std::vector<Node*> found;
        for (const auto& node : graph.nodes)
            if (node->dependencies.empty()) found.push_back(node.get());
        return give_nodes(found, nodes, count);
    });
}

cudaError_t CUDARTAPI cudaGraphGetEdges(cudaGraph_t graph_handle, cudaGraphNode_t* from, cudaGraphNode_t* to,
                                        cudaGraphEdgeData* data, size_t* count) {
    return with_graph("cudaGraphGetEdges", graph_handle, [&](Graph& graph) {
        std::vector<Edge> found;
        for (const auto& node : graph.nodes)
            for (Node* dependency : node->dependencies) found.push_back({dependency, node.get()});
        return give_edges(found, from, to, data, count);
    });
}

cudaError_t CUDARTAPI cudaGraphNodeGetDependencies(cudaGraphNode_t node_handle, cudaGraphNode_t* nodes,
                                                   cudaGraphEdgeData*, size_t* count) {
    return with_node("cudaGraphNodeGetDependencies", node_handle,
                     [&](Node& node) { return give_nodes(node.dependencies, nodes, count); });
}

cudaError_t CUDARTAPI cudaGraphNodeGetDependentNodes(cudaGraphNode_t node_handle, cudaGraphNode_t* nodes,
                                                     cudaGraphEdgeData*, size_t* count) {
    return with_node("cudaGraphNodeGetDependentNodes", node_handle,
                     [&](Node& node) { return give_nodes(dependents(node), nodes, count); });
}

cudaError_t CUDARTAPI cudaGraphAddDependencies(cudaGraph_t graph_handle, const cudaGraphNode_t* from,
                                               const cudaGraphNode_t* to, const cudaGraphEdgeData*,
                                               size_t count) {
    return with_graph("cudaGraphAddDependencies", graph_handle,
                      [&](Graph& graph) { return change_edges(graph, from, to, count, true); });
}

cudaError_t CUDARTAPI cudaGraphRemoveDependencies(cudaGraph_t graph_handle, const cudaGraphNode_t* from,
                                                  const cudaGraphNode_t* to, const cudaGraphEdgeData*,
                                                  size_t count) {
    return with_graph("cudaGraphRemoveDependencies", graph_handle,
                      [&](Graph& graph) { return change_edges(graph, from, to, count, false); });
}

}  // extern "C"
