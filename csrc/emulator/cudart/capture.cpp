// Capturing streams into graphs: which calls join, end or invalidate a capture, with the runtime's error
// codes 900 to 908.
#include <algorithm>
#include <unordered_set>

#include "graph.h"

namespace emu::cudart {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

template <class Visit> void for_each_capture(Visit visit) {
    for (Stream* stream : all_streams())
        if (stream->capture && stream->capture->origin == stream) visit(*stream->capture);
}

cudaError_t invalid(const char* what, const char* fix, cudaError_t code) {
    return reject(code, "invalid_call", what, fix);
}

void add_unique(std::vector<Node*>& nodes, Node* node) {
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
}

std::unordered_set<const Node*> ancestors(const std::vector<Node*>& from) {
    std::unordered_set<const Node*> seen;
    std::vector<Node*> left = from;
    while (!left.empty()) {
        Node* node = left.back();
        left.pop_back();
        if (!seen.insert(node).second) continue;
        left.insert(left.end(), node->dependencies.begin(), node->dependencies.end());
    }
    return seen;
}

bool all_joined(const Capture& capture) {    // every other stream's last nodes come before the origin's
    std::unordered_set<const Node*> seen = ancestors(capture.origin->frontier);
    for (Stream* stream : all_streams()) {
        if (stream->capture.get() != &capture) continue;
        for (Node* node : stream->frontier)
            if (!seen.count(node)) return false;
    }
    return true;
}

void leave(Capture& capture) {         // all its streams run work again
    for (Stream* stream : all_streams()) {
        if (stream->capture.get() != &capture || stream == capture.origin) continue;
        stream->capture.reset();
        stream->frontier.clear();
    }
    capture.origin->frontier.clear();
    capture.origin->capture.reset();
    capture.ended = true;                    // events recorded in it may still refer to it
}

cudaError_t begin(Stream& stream, Graph* graph, std::vector<Node*> dependencies, cudaStreamCaptureMode mode) {
    if (stream.legacy)
        return invalid("the legacy default stream cannot be captured",
                       "Capture a stream that the program created.", cudaErrorStreamCaptureUnsupported);
    if (stream.capture)
        return invalid("this stream is being captured already", "End the first capture.",
                       cudaErrorIllegalState);
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
        return cudaErrorInvalidValue;
    static uint64_t next_id = 1;
    auto capture = std::make_shared<Capture>();
    capture->id = next_id++;
    capture->own_graph = !graph;
    capture->graph = graph ? graph : new Graph;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = &stream;
    stream.capture = std::move(capture);
    stream.frontier = std::move(dependencies);
    return cudaSuccess;
}

cudaError_t check_end(const Stream& stream, const Capture& capture) {
    if (capture.origin != &stream) return cudaErrorStreamCaptureUnmatched;
    if (capture.mode != cudaStreamCaptureModeRelaxed && capture.thread != std::this_thread::get_id())
        return cudaErrorStreamCaptureWrongThread;
    if (capture.invalidated) return cudaErrorStreamCaptureInvalidated;
    if (!all_joined(capture))
        return invalid(
            "another stream that joined the capture was not joined back into this one",
            "Record an event there after its last work, and let this stream wait for it before the capture ends.",
            cudaErrorStreamCaptureUnjoined);
    return cudaSuccess;
}

cudaError_t end(Stream& stream, cudaGraph_t* out) {
    *out = nullptr;
    if (!stream.capture)
        return invalid("this stream is not being captured", "Begin a capture first.", cudaErrorIllegalState);
    std::shared_ptr<Capture> capture = stream.capture;
    cudaError_t error = check_end(stream, *capture);
    if (error == cudaErrorStreamCaptureUnmatched || error == cudaErrorStreamCaptureWrongThread) {
        capture->invalidated = true;
        return error;
    }
    leave(*capture);
    if (!error) *out = handle(capture->graph);
    else if (capture->own_graph) delete capture->graph;
    return error;
}

struct CaptureView {                         // what cudaStreamGetCaptureInfo hands out pointers to
    std::vector<cudaGraphNode_t> nodes;
    std::vector<cudaGraphEdgeData> edges;
};

}  // namespace

cudaError_t invalidate(Capture& capture, cudaError_t code) {
    capture.invalidated = true;
    return code;
}

cudaError_t capture_work(Stream& stream, std::unique_ptr<Work> work) {
    if (stream.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    Node* node = stream.capture->graph->add(std::move(work), stream.frontier);
    stream.frontier = {node};
    return cudaSuccess;
}

cudaError_t refuse_if_capturing(Stream& stream) {
    if (!stream.capture) return cudaSuccess;
    if (stream.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    report_call("invalid_call",
                "not permitted on a stream that is being captured; the capture is invalid now",
                "Move the call before or after the capture.");
    return invalidate(*stream.capture, cudaErrorStreamCaptureUnsupported);
}

cudaError_t refuse_implicit(Stream& stream) {
    if (!stream.legacy) return cudaSuccess;
    cudaError_t error = cudaSuccess;
    for_each_capture([&](Capture& capture) {
        if (capture.origin->blocking() && capture.mode != cudaStreamCaptureModeRelaxed)
            error = invalidate(capture, cudaErrorStreamCaptureImplicit);
    });
    if (error)
        report_call(
            "invalid_call",
            "the legacy default stream would wait for a stream that is being captured; the capture is invalid now",
            "Capture a stream made with cudaStreamNonBlocking, or use no default stream meanwhile.");
    return error;
}

cudaError_t refuse_unsafe() {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    cudaError_t error = cudaSuccess;
    for_each_capture([&](Capture& capture) {
        bool own =
            capture.thread == std::this_thread::get_id() && capture.mode != cudaStreamCaptureModeRelaxed;
        bool others =
            capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
        if (own || others) error = invalidate(capture, cudaErrorStreamCaptureUnsupported);
    });
    if (error)
        report_call("invalid_call",
                    "not permitted while a stream is being captured; the capture is invalid now",
                    "Move the call before the capture, or capture in mode cudaStreamCaptureModeRelaxed.");
    return error;
}

cudaError_t capture_isolation(Stream& stream) {
    report_call(
        "invalid_call",
        "a captured stream waits for an event that was recorded outside of the capture; the capture is invalid now",
        "Record the event in a stream of the same capture, or use cudaEventWaitExternal.");
    return invalidate(*stream.capture, cudaErrorStreamCaptureIsolation);
}

cudaError_t join_capture(Stream& stream, const EventState& state) {
    if (stream.capture && stream.capture != state.capture) {
        stream.capture->invalidated = true;
        return invalidate(*state.capture, cudaErrorStreamCaptureMerge);
    }
    if (state.capture->ended)
        return invalid("the event was recorded in a capture that has ended", "Record it again.",
                       cudaErrorCapturedEvent);
    if (stream.legacy) return invalidate(*state.capture, cudaErrorStreamCaptureImplicit);
    stream.capture = state.capture;
    for (Node* node : state.nodes) add_unique(stream.frontier, node);
    return cudaSuccess;
}

void abandon_capture(Stream& stream) {
    std::shared_ptr<Capture> capture = stream.capture;
    capture->invalidated = true;
    if (capture->origin != &stream) return;
    leave(*capture);
    if (capture->own_graph) delete capture->graph;
}

}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return call("cudaStreamBeginCapture", [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        return stream ? begin(*stream, nullptr, {}, mode) : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t CUDARTAPI cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t graph_handle,
                                                    const cudaGraphNode_t* dependencies,
                                                    const cudaGraphEdgeData*, size_t count,
                                                    cudaStreamCaptureMode mode) {
    return call("cudaStreamBeginCaptureToGraph", [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        Graph* graph = find_graph(graph_handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (!graph || (count && !dependencies)) return cudaErrorInvalidValue;
        std::vector<Node*> nodes;
        for (size_t i = 0; i < count; ++i) nodes.push_back(find_node(dependencies[i]));
        if (std::find(nodes.begin(), nodes.end(), nullptr) != nodes.end()) return cudaErrorInvalidValue;
        return begin(*stream, graph, nodes, mode);
    });
}

cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    return call("cudaStreamEndCapture", [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        return graph ? end(*stream, graph) : cudaErrorInvalidValue;
    });
}

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return call("cudaStreamIsCapturing", [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (!status) return cudaErrorInvalidValue;
        if (cudaError_t error = refuse_implicit(*stream)) return error;
        *status = !stream->capture               ? cudaStreamCaptureStatusNone
                  : stream->capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                                 : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                               unsigned long long* id, cudaGraph_t* graph,
                                               const cudaGraphNode_t** dependencies,
                                               const cudaGraphEdgeData** edges, size_t* count) {
    if (cudaError_t error = cudaStreamIsCapturing(handle, status)) return error;
    return call("cudaStreamGetCaptureInfo", [&]() -> cudaError_t {
        if (*status != cudaStreamCaptureStatusActive) return cudaSuccess;
        thread_local CaptureView view;
        Stream& stream = *find_stream(handle);
        view.nodes.clear();
        for (Node* node : stream.frontier) view.nodes.push_back(emu::cudart::handle(node));
        view.edges.assign(view.nodes.size(), cudaGraphEdgeData{});
        if (id) *id = stream.capture->id;
        if (graph) *graph = emu::cudart::handle(stream.capture->graph);
        if (dependencies) *dependencies = view.nodes.data();
        if (edges) *edges = view.edges.data();
        if (count) *count = view.nodes.size();
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaStreamUpdateCaptureDependencies(cudaStream_t handle, cudaGraphNode_t* dependencies,
                                                          const cudaGraphEdgeData*, size_t count,
                                                          unsigned flags) {
    return call("cudaStreamUpdateCaptureDependencies", [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (!stream->capture) return cudaErrorIllegalState;
        if (flags == cudaStreamSetCaptureDependencies) stream->frontier.clear();
        for (size_t i = 0; i < count; ++i) {
            Node* node = find_node(dependencies[i]);
            if (!node) return cudaErrorInvalidValue;
            add_unique(stream->frontier, node);
        }
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return call("cudaThreadExchangeStreamCaptureMode", [&]() -> cudaError_t {
        if (!mode || *mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed)
            return cudaErrorInvalidValue;
        std::swap(*mode, thread_mode);
        return cudaSuccess;
    });
}

}  // extern "C"
