// graph.h: nodes, their order, and running them.
#include "graph.h"

#include <algorithm>
#include <unordered_set>

#include "../checker.h"
#include "../memory.h"
#include "../options.h"
#include "statistics.h"

namespace emu::cudart {
namespace {

struct Known {                               // handles that exist; never destroyed, as streams
    std::unordered_set<const void*> graphs, nodes;
};

Known& known() {
    static auto* instance = new Known;
    return *instance;
}

template <class T>
T* find(const std::unordered_set<const void*>& handles, const void* handle, const char* what) {
    if (handles.count(handle)) return static_cast<T*>(const_cast<void*>(handle));
    report_call("invalid_call",
                std::string("was given a ") + what + " that does not exist (never created, or destroyed)",
                "Use the handle only between its creation and its destruction.");
    return nullptr;
}

size_t pick(size_t count) {                  // of the nodes that may run next, in order of creation
    static uint64_t state = 0;
    switch (options().schedule) {
        case Schedule::reverse: return count - 1;
        case Schedule::random:
            state = (state + options().seed) * 6364136223846793005u + 1442695040888963407u;
            return (state >> 33) % count;
        default: return 0;
    }
}

}  // namespace

Node* Graph::add(std::unique_ptr<Work> work, std::vector<Node*> dependencies) {
    auto node = std::make_unique<Node>();
    node->graph = this;
    node->work = std::move(work);
    node->dependencies = std::move(dependencies);
    known().nodes.insert(node.get());
    nodes.push_back(std::move(node));
    return nodes.back().get();
}

void Graph::remove(Node* node) {
    for (auto& other : nodes) {
        auto& on = other->dependencies;
        on.erase(std::remove(on.begin(), on.end(), node), on.end());
    }
    known().nodes.erase(node);
    nodes.erase(
        std::find_if(nodes.begin(), nodes.end(), [&](const auto& owned) { return owned.get() == node; }));
}

Graph::Graph() { known().graphs.insert(this); }

Graph::~Graph() {
    known().graphs.erase(this);
    for (auto& node : nodes) known().nodes.erase(node.get());
}

std::unique_ptr<Graph> Graph::copy(std::unordered_map<const Node*, Node*>* map) const {
    auto made = std::make_unique<Graph>();
    std::unordered_map<const Node*, Node*> own;
    for (const auto& node : nodes) {
        own[node.get()] = made->add(node->work->copy(), {});
        own[node.get()]->enabled = node->enabled;
    }
    for (const auto& node : nodes)
        for (Node* dependency : node->dependencies) own[node.get()]->dependencies.push_back(own[dependency]);
    if (map) *map = std::move(own);
    return made;
}

std::vector<Node*> Graph::order() const {
    std::unordered_map<const Node*, size_t> open;                      // dependencies not yet placed
    std::unordered_map<const Node*, std::vector<Node*>> dependents;
    std::vector<Node*> ready, placed;
    for (const auto& node : nodes) {
        open[node.get()] = node->dependencies.size();
        for (Node* dependency : node->dependencies) dependents[dependency].push_back(node.get());
        if (node->dependencies.empty()) ready.push_back(node.get());
    }
    while (!ready.empty()) {
        auto chosen = ready.begin() + static_cast<ptrdiff_t>(pick(ready.size()));
        Node* node = *chosen;
        ready.erase(chosen);
        placed.push_back(node);
        for (Node* dependent : dependents[node])
            if (--open[dependent] == 0) ready.push_back(dependent);
    }
    return placed;
}

cudaError_t Graph::run() const {
    for (Node* node : order()) {
        if (!node->enabled) continue;
        if (cudaError_t error = node->work->run()) return error;
    }
    return cudaSuccess;
}

void GraphExec::make_own() {
    if (graph.use_count() == 1) return;
    std::unordered_map<const Node*, Node*> moved;
    graph = graph->copy(&moved);
    for (auto& entry : by_origin) entry.second = moved[entry.second];
}

cudaError_t GraphWork::run() {
    if (counted) ++statistics().graph_launches;
    return graph->run();
}

std::vector<Range> GraphWork::ranges() const {
    std::vector<Range> all;
    for (const auto& node : graph->nodes)
        for (const Range& range : node->work->ranges()) all.push_back(range);
    return all;
}

cudaError_t AllocationWork::run() {          // each launch finds fresh memory
    if (options().check || options().count) checker_allocated(parameters.dptr, parameters.bytesize);
    return cudaSuccess;
}

Graph* find_graph(cudaGraph_t graph) { return find<Graph>(known().graphs, graph, "graph"); }
Node* find_node(cudaGraphNode_t node) { return find<Node>(known().nodes, node, "graph node"); }

}  // namespace emu::cudart
