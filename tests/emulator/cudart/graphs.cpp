// Graphs of copies, fills and host functions: built by calls, captured from streams, launched, updated,
// refused.
#include "check.h"

#include <vector>

namespace {

constexpr cudaMemcpyKind H2D = cudaMemcpyHostToDevice, D2H = cudaMemcpyDeviceToHost;

void count(void* data) { ++*static_cast<int*>(data); }

cudaMemsetParams fill(void* p, unsigned value, size_t words) { return {p, words * 4, value, 4, words, 1}; }

struct Device {
    int* p = nullptr;
    Device() { cudaMalloc(reinterpret_cast<void**>(&p), 64); cudaMemset(p, 0, 64); }
    ~Device() { cudaFree(p); }
    int operator[](int i) const { int v = 0; cudaMemcpy(&v, p + i, 4, D2H); return v; }
};

void built() {
    Device d;
    int source = 5, called = 0;
    cudaGraph_t graph;
    cudaGraphNode_t set, copy, host, empty;
    CODE("create", cudaSuccess, cudaGraphCreate(&graph, 0));
    cudaMemsetParams fill_params = fill(d.p, 0x11223344, 2);
    CODE("memset node", cudaSuccess, cudaGraphAddMemsetNode(&set, graph, nullptr, 0, &fill_params));
    CODE("copy node", cudaSuccess, cudaGraphAddMemcpyNode1D(&copy, graph, &set, 1, d.p, &source, 4, H2D));
    cudaHostNodeParams host_params{count, &called};
    CODE("host node", cudaSuccess, cudaGraphAddHostNode(&host, graph, nullptr, 0, &host_params));
    cudaGraphNode_t both[] = {copy, host};
    CODE("empty node", cudaSuccess, cudaGraphAddEmptyNode(&empty, graph, both, 2));
    size_t n = 0;
    cudaGraphGetNodes(graph, nullptr, &n);
    CHECK("4 nodes", n == 4);
    cudaGraphGetRootNodes(graph, nullptr, &n);
    CHECK("2 roots", n == 2);
    cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &n);
    CHECK("3 edges", n == 3);
    cudaGraphNode_t found[4];
    n = 4;
    cudaGraphNodeGetDependencies(empty, found, nullptr, &n);
    CHECK("dependencies", n == 2 && found[0] == copy && found[1] == host && !found[2]);
    n = 1;
    cudaGraphNodeGetDependentNodes(set, found, nullptr, &n);
    CHECK("dependents", n == 1 && found[0] == copy);
    cudaGraphNodeType type;
    cudaGraphNodeGetType(set, &type);
    CHECK("type", type == cudaGraphNodeTypeMemset);
    CODE("edge twice", cudaErrorInvalidValue, cudaGraphAddDependencies(graph, &set, &copy, nullptr, 1));
    CODE("cycle", cudaSuccess, cudaGraphAddDependencies(graph, &copy, &set, nullptr, 1));
    cudaGraphExec_t exec;
    CODE("cycle cannot run", cudaErrorInvalidValue, cudaGraphInstantiate(&exec, graph, 0));
    CODE("remove edge", cudaSuccess, cudaGraphRemoveDependencies(graph, &copy, &set, nullptr, 1));
    CODE("instantiate", cudaSuccess, cudaGraphInstantiate(&exec, graph, 0));
    for (const char* schedule : {"schedule=reverse", "schedule=random", "schedule=forward"}) {
        configure(schedule);
        CODE(schedule, cudaSuccess, cudaGraphLaunch(exec, nullptr));
        CHECK("copy came after memset", d[0] == 5 && d[1] == 0x11223344);
    }
    CHECK("host function ran", called == 3);
    int other = 6;
    CODE("new parameters", cudaSuccess, cudaGraphExecMemcpyNodeSetParams1D(exec, copy, d.p, &other, 4, H2D));
    fill_params.value = 9;
    CODE("new fill", cudaSuccess, cudaGraphExecMemsetNodeSetParams(exec, set, &fill_params));
    CODE("wrong type", cudaErrorInvalidValue, cudaGraphExecMemsetNodeSetParams(exec, copy, &fill_params));
    CODE("disable", cudaSuccess, cudaGraphNodeSetEnabled(exec, host, 0));
    cudaGraphLaunch(exec, nullptr);
    CHECK("they were used", d[0] == 6 && d[1] == 9 && called == 3);
    cudaMemsetParams read{};
    cudaGraphMemsetNodeGetParams(set, &read);
    CHECK("the graph keeps its own", read.value == 0x11223344 && read.width == 2);
    cudaGraph_t clone;
    cudaGraphNode_t in_clone;
    CODE("clone", cudaSuccess, cudaGraphClone(&clone, graph));
    CODE("find in clone", cudaSuccess, cudaGraphNodeFindInClone(&in_clone, copy, clone));
    CODE("destroy node", cudaSuccess, cudaGraphDestroyNode(in_clone));
    cudaGraphGetNodes(clone, nullptr, &n);
    CHECK("3 are left", n == 3);
    cudaGraphExecUpdateResultInfo info;
    CODE("update to another shape", cudaErrorGraphExecUpdateFailure, cudaGraphExecUpdate(exec, clone, &info));
    CHECK("says why", info.result == cudaGraphExecUpdateErrorTopologyChanged ||
                          info.result == cudaGraphExecUpdateErrorNodeTypeChanged);
    cudaGetLastError();
    CODE("update to the same shape", cudaSuccess, cudaGraphExecUpdate(exec, graph, &info));
    cudaGraphLaunch(exec, nullptr);
    CHECK("old parameters again", d[0] == 5 && d[1] == 0x11223344);
    CODE("destroy exec", cudaSuccess, cudaGraphExecDestroy(exec));
    CODE("destroy graph", cudaSuccess, cudaGraphDestroy(graph));
    CODE("destroy clone", cudaSuccess, cudaGraphDestroy(clone));
    CODE("destroyed exec", cudaErrorInvalidValue, cudaGraphLaunch(exec, nullptr));
    CODE("destroyed graph", cudaErrorInvalidValue, cudaGraphGetNodes(graph, nullptr, &n));
    CODE("destroyed node", cudaErrorInvalidValue, cudaGraphNodeGetType(set, &type));
    cudaGetLastError();
}

void memory_nodes() {
    Device d;
    cudaGraph_t graph, child;
    cudaGraphNode_t allocate, set, copy, release, inner;
    cudaGraphCreate(&graph, 0);
    cudaMemAllocNodeParams params{};
    params.bytesize = 64;
    CODE("allocation node", cudaSuccess, cudaGraphAddMemAllocNode(&allocate, graph, nullptr, 0, &params));
    cudaMemsetParams value = fill(params.dptr, 8, 4);
    cudaGraphAddMemsetNode(&set, graph, &allocate, 1, &value);
    cudaGraphAddMemcpyNode1D(&copy, graph, &set, 1, d.p, params.dptr, 16, cudaMemcpyDeviceToDevice);
    CODE("free node", cudaSuccess, cudaGraphAddMemFreeNode(&release, graph, &copy, 1, params.dptr));
    cudaGraphCreate(&child, 0);
    CODE("child graph", cudaSuccess, cudaGraphAddChildGraphNode(&inner, child, nullptr, 0, graph));
    cudaGraphExec_t exec;
    cudaGraphInstantiate(&exec, child, 0);
    CODE("launch child", cudaSuccess, cudaGraphLaunch(exec, nullptr));
    CHECK("child ran", d[3] == 8);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(child);
    cudaGraphDestroy(graph);
}

void captured() {
    Device d;
    cudaStream_t main, side;
    cudaEvent_t fork, join;
    cudaStreamCreate(&main);
    cudaStreamCreate(&side);
    cudaEventCreate(&fork);
    cudaEventCreate(&join);
    int source[2] = {1, 2}, called = 0;
    cudaGraph_t graph;
    CODE("begin", cudaSuccess, cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal));
    CODE("begin twice", cudaErrorIllegalState, cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal));
    CODE("captured memset", cudaSuccess, cudaMemsetAsync(d.p, 0x55, 64, main));
    CODE("fork", cudaSuccess, cudaEventRecord(fork, main));
    CODE("side joins", cudaSuccess, cudaStreamWaitEvent(side, fork, 0));
    CODE("side copies", cudaSuccess, cudaMemcpyAsync(d.p + 1, source + 1, 4, H2D, side));
    CODE("main copies", cudaSuccess, cudaMemcpyAsync(d.p, source, 4, H2D, main));
    CODE("join event", cudaSuccess, cudaEventRecord(join, side));
    CODE("join", cudaSuccess, cudaStreamWaitEvent(main, join, 0));
    CODE("host function", cudaSuccess, cudaLaunchHostFunc(main, count, &called));
    cudaStreamCaptureStatus status;
    unsigned long long id = 0;
    size_t frontier = 0;
    cudaStreamGetCaptureInfo(main, &status, &id, nullptr, nullptr, nullptr, &frontier);
    CHECK("info", status == cudaStreamCaptureStatusActive && id && frontier == 1);
    CODE("end", cudaSuccess, cudaStreamEndCapture(main, &graph));
    CHECK("nothing ran", called == 0);
    CHECK("device is untouched", d[0] == 0);
    size_t nodes = 0, edges = 0;
    cudaGraphGetNodes(graph, nullptr, &nodes);
    cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges);
    CHECK("shape", nodes == 4 && edges == 4);
    cudaGraphExec_t exec;
    cudaGraphInstantiate(&exec, graph, 0);
    for (const char* schedule : {"schedule=reverse", "schedule=random", "schedule=forward"}) {
        configure(schedule);
        cudaGraphLaunch(exec, main);
        cudaStreamSynchronize(main);
        CHECK("replayed", d[0] == 1 && d[1] == 2 && d[2] == 0x55555555);
    }
    source[0] = 10;                                  // a graph copies what is there when it runs
    cudaGraphLaunch(exec, main);
    CHECK("replayed with new bytes", d[0] == 10);
    CODE("captured event", cudaErrorCapturedEvent, cudaEventSynchronize(join));
    configure("defer=1");
    cudaMemset(d.p, 0, 64);
    cudaGraphLaunch(exec, main);
    source[0] = 11;
    cudaStreamSynchronize(main);
    CHECK("deferred replay", d[0] == 11);
    configure("defer=0");
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(fork);
    cudaEventDestroy(join);
    cudaStreamDestroy(main);
    cudaStreamDestroy(side);
    cudaGetLastError();
}

// Begins a capture in `mode`, makes one call, and ends it.
template <class Call> cudaError_t end_after(cudaStream_t stream, Call call,
                                            cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    cudaGraph_t graph = nullptr;
    cudaStreamBeginCapture(stream, mode);
    call();
    cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    return ended;
}

void refused() {
    Device d;
    cudaStream_t stream, side, apart;
    cudaEvent_t event, outside;
    cudaStreamCreate(&stream);
    cudaStreamCreate(&side);
    cudaStreamCreateWithFlags(&apart, cudaStreamNonBlocking);
    cudaEventCreate(&event);
    cudaEventCreate(&outside);
    cudaEventRecord(outside, side);
    void* p = nullptr;
    cudaGraph_t graph = nullptr;
    constexpr cudaError_t invalidated = cudaErrorStreamCaptureInvalidated;
    CODE("legacy stream", cudaErrorStreamCaptureUnsupported,
         cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal));
    CODE("end without begin", cudaErrorIllegalState, cudaStreamEndCapture(stream, &graph));
    CODE("after synchronising", invalidated, end_after(stream, [&] {
             CODE("synchronise", cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(stream));
         }));
    CODE("after a query", invalidated, end_after(stream, [&] {
             CODE("query", cudaErrorStreamCaptureUnsupported, cudaStreamQuery(stream));
         }));
    CODE("after cudaMalloc", invalidated,
         end_after(stream, [&] { CODE("malloc", cudaErrorStreamCaptureUnsupported, cudaMalloc(&p, 4)); }));
    CODE("work after that", invalidated, end_after(stream, [&] {
        cudaMalloc(&p, 4);
        CODE("memset", cudaErrorStreamCaptureInvalidated, cudaMemsetAsync(d.p, 0, 4, stream));
    }));
    CODE("device synchronise", invalidated, end_after(stream, [&] {
             CODE("wait for all", cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize());
         }));
    CODE("after the default stream", invalidated, end_after(stream, [&] {
        int host;
        CODE("default stream", cudaErrorStreamCaptureImplicit, cudaMemcpy(&host, d.p, 4, D2H));
    }));
    CODE("a non-blocking stream does not mind", cudaSuccess, end_after(apart, [&] {
        CODE("default stream beside it", cudaSuccess, cudaMemsetAsync(d.p, 0, 4, nullptr));
    }));
    CODE("relaxed", cudaSuccess, end_after(apart, [&] {
        CODE("malloc while relaxed", cudaSuccess, cudaMalloc(&p, 4));
        cudaFree(p);
    }, cudaStreamCaptureModeRelaxed));
    CODE("after isolation", invalidated, end_after(stream, [&] {
        CODE("outer event", cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(stream, outside, 0));
    }));
    CODE("unjoined", cudaErrorStreamCaptureUnjoined, end_after(stream, [&] {
        cudaEventRecord(event, stream);
        cudaStreamWaitEvent(side, event, 0);
        cudaMemsetAsync(d.p, 0, 4, side);
    }));
    CODE("event query", invalidated, end_after(stream, [&] {
        cudaEventRecord(event, stream);
        CODE("query of captured event", cudaErrorCapturedEvent, cudaEventQuery(event));
    }));
    CODE("unmatched begins", cudaSuccess, cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(side, event, 0);
    CODE("unmatched", cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(side, &graph));
    CODE("and then invalid", invalidated, cudaStreamEndCapture(stream, &graph));
    CODE("merge begins", cudaSuccess, cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    cudaStreamBeginCapture(apart, cudaStreamCaptureModeRelaxed);
    cudaEventRecord(event, stream);
    CODE("merge", cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(apart, event, 0));
    cudaStreamEndCapture(stream, &graph);
    cudaStreamEndCapture(apart, &graph);
    CODE("streams work again", cudaSuccess, cudaMemsetAsync(d.p, 0, 4, stream));
    CODE("side works again", cudaSuccess, cudaStreamSynchronize(side));
    cudaGetLastError();
    cudaEventDestroy(event);
    cudaEventDestroy(outside);
    cudaStreamDestroy(stream);
    cudaStreamDestroy(side);
    cudaStreamDestroy(apart);
}

void stream_memory() {
    Device d;
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    void* p = nullptr;
    cudaGraph_t graph;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    CODE("captured allocation", cudaSuccess, cudaMallocAsync(&p, 64, stream));
    cudaMemsetAsync(p, 3, 64, stream);
    cudaMemcpyAsync(d.p, p, 64, cudaMemcpyDeviceToDevice, stream);
    CODE("captured free", cudaSuccess, cudaFreeAsync(p, stream));
    CODE("end allocation", cudaSuccess, cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t exec;
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);                         // what was instantiated keeps the memory
    cudaGraphLaunch(exec, stream);
    cudaGraphLaunch(exec, stream);
    CHECK("captured memory works", d[5] == 0x03030303);
    cudaGraphExecDestroy(exec);
    CODE("and then it is freed", cudaErrorInvalidValue, cudaMemset(p, 0, 1));
    CODE("null answers", cudaErrorInvalidValue, cudaStreamGetFlags(stream, nullptr));
    CODE("null counts", cudaErrorInvalidValue, cudaGraphGetNodes(nullptr, nullptr, nullptr));
    cudaGetLastError();
    cudaStreamDestroy(stream);
}

}  // namespace

int main() {
    built();
    memory_nodes();
    captured();
    refused();
    stream_memory();
    return failures;
}
