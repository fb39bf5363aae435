// Graphs: nodes of work with their dependencies, built by calls or by capturing streams, copied into an
// executable graph.
//
// An executable graph owns copies of all nodes; a launch runs them in an order that respects the dependencies
// and otherwise follows Options::schedule, so that a missing dependency shows as a wrong result under another
// schedule.
#pragma once
#include <cuda_runtime_api.h>

#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "stream.h"
#include "work.h"

namespace emu::cudart {

struct Graph;

struct Node {
    Graph* graph = nullptr;
    std::unique_ptr<Work> work;
    std::vector<Node*> dependencies;
    bool enabled = true;                     // in an executable graph
};

struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;            // in order of creation
    std::unordered_map<const Node*, Node*> clone_of;     // cudaGraphClone: node of the original -> its own
    bool owned = false;     // by a node or an executable graph: not the program's to destroy

    Graph();
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    Node* add(std::unique_ptr<Work>, std::vector<Node*> dependencies);
    void remove(Node*);
    std::unique_ptr<Graph> copy(std::unordered_map<const Node*, Node*>* map) const;
    std::vector<Node*> order() const;     // by dependencies; shorter than nodes when there is a cycle
    cudaError_t run() const;
};

struct GraphExec {
    std::shared_ptr<Graph> graph;     // replaced, not changed, while a launch is still queued
    std::unordered_map<const Node*, Node*> by_origin;    // node of the graph it was made from -> its own
    unsigned long long flags = 0;

    void make_own();                                     // before a change
};

struct GraphWork : WorkOf<GraphWork> {                   // a launch, and a child graph node
    std::shared_ptr<Graph> graph;
    bool counted = false;                                // a launch, not a child
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeGraph; }
    std::string describe() const override { return "a graph"; }
    std::vector<Range> ranges() const override;
};

struct AllocationWork
    : WorkOf<AllocationWork> {     // memory node: the address is fixed when the node is made
    cudaMemAllocNodeParams parameters{};
    std::shared_ptr<void> memory;                        // freed with the last copy of the node
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeMemAlloc; }
    std::string describe() const override { return "a memory allocation node"; }
};

struct ReleaseWork : WorkOf<ReleaseWork> {     // memory node: the memory itself lives as long as the graph
    void* pointer = nullptr;
    cudaError_t run() override { return cudaSuccess; }
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeMemFree; }
    std::string describe() const override { return "a memory free node"; }
};

struct Capture {
    uint64_t id = 0;
    Graph* graph = nullptr;
    bool own_graph = true;                               // not with cudaStreamBeginCaptureToGraph
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    Stream* origin = nullptr;
    bool invalidated = false, ended = false;
};

// Handles; null, and a report, for what is none.
Graph* find_graph(cudaGraph_t);
Node* find_node(cudaGraphNode_t);
GraphExec* find_exec(cudaGraphExec_t);
inline cudaGraph_t handle(Graph* graph) { return reinterpret_cast<cudaGraph_t>(graph); }
inline cudaGraphNode_t handle(Node* node) { return reinterpret_cast<cudaGraphNode_t>(node); }

// The work that a node's parameters describe (graph_nodes.cpp).  Memory nodes allocate, and write the address
// back.
cudaError_t make_work(cudaGraphNodeParams&, std::unique_ptr<Work>*);
cudaGraphNodeParams kernel_parameters(const cudaKernelNodeParams&);
cudaGraphNodeParams copy_parameters(const cudaMemcpy3DParms&);
cudaGraphNodeParams fill_parameters(const cudaMemsetParams&);
cudaGraphNodeParams host_parameters(const cudaHostNodeParams&);
cudaGraphNodeParams event_parameters(cudaGraphNodeType, cudaEvent_t);
cudaGraphNodeParams child_parameters(cudaGraph_t);
cudaMemcpy3DParms linear_parameters(void* destination, const void* source, size_t bytes, cudaMemcpyKind);

}  // namespace emu::cudart
