// nn/runtime.h: thin, checked, counted calls of the CUDA runtime.
#include "nn/runtime.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "error.h"

namespace {

using nn::checked;

struct Counters {
    std::atomic<int64_t> allocations{0}, allocated_bytes{0}, frees{0}, uploads{0}, uploaded_bytes{0},
        downloads{0}, downloaded_bytes{0}, copies{0}, copied_bytes{0}, synchronizations{0}, graph_launches{0};
};

Counters counters;

cudaStream_t native(nn_stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t native_event(nn_event event) { return static_cast<cudaEvent_t>(event); }

int capturing(bool* found, nn_stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    NN_TRY(checked(cudaStreamIsCapturing(native(stream), &status), "cudaStreamIsCapturing"));
    *found = status != cudaStreamCaptureStatusNone;
    return NN_OK;
}

bool page_locked(const void* host) {
    cudaPointerAttributes found{};
    bool known = cudaPointerGetAttributes(&found, host) == cudaSuccess;
    if (!known) cudaGetLastError();
    return known && found.type == cudaMemoryTypeHost;
}

// A graph would keep the address of memory that the caller reuses after the call.
int check_host_memory(const void* host, nn_stream stream) {
    bool captured = false;
    NN_TRY(capturing(&captured, stream));
    NN_REQUIRE(!captured || page_locked(host),
               "the stream is being captured: a graph copies from and to page-locked host memory only");
    return NN_OK;
}

struct Copy {
    void* to;
    const void* from;
    int64_t bytes;
    cudaMemcpyKind kind;
    const char* name;
};

int queue(const Copy& copy, nn_stream stream, std::atomic<int64_t>& calls, std::atomic<int64_t>& bytes) {
    NN_REQUIRE(copy.bytes >= 0, "bytes: %lld is negative", (long long)copy.bytes);
    if (copy.bytes == 0) return NN_OK;
    NN_REQUIRE(copy.to && copy.from, "%s: a null pointer with %lld bytes", copy.name, (long long)copy.bytes);
    if (copy.kind != cudaMemcpyDeviceToDevice)
        NN_TRY(check_host_memory(copy.kind == cudaMemcpyHostToDevice ? copy.from : copy.to, stream));
    size_t size = static_cast<size_t>(copy.bytes);
    NN_TRY(checked(cudaMemcpyAsync(copy.to, copy.from, size, copy.kind, native(stream)), copy.name));
    calls += 1;
    bytes += copy.bytes;
    return NN_OK;
}

// Memory is had beside a capture, not as part of it: the caller keeps it as long as the graph.
struct BesideCaptures {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode); }
    ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

int attribute(int32_t* value, cudaDeviceAttr which, int device) {
    return checked(cudaDeviceGetAttribute(value, which, device), "cudaDeviceGetAttribute");
}

// cudaMemGetInfo answers for the current device.
int memory_of(int device, size_t* free_bytes, size_t* total) {
    int before = 0;
    NN_TRY(checked(cudaGetDevice(&before), "cudaGetDevice"));
    NN_TRY(checked(cudaSetDevice(device), "cudaSetDevice"));
    const int status = checked(cudaMemGetInfo(free_bytes, total), "cudaMemGetInfo");
    NN_TRY(checked(cudaSetDevice(before), "cudaSetDevice"));
    return status;
}

}  // namespace

NN_API int nn_device_count(int32_t* count) {
    NN_REQUIRE(count, "count: a null pointer");
    *count = 0;
    int found = 0;
    cudaError_t error = cudaGetDeviceCount(&found);
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return NN_OK;
    }
    *count = found;
    return checked(error, "cudaGetDeviceCount");
}

NN_API int nn_device_query(nn_device_info* info, int32_t device) {
    NN_REQUIRE(info && info->size > 0, "info: null, or its size is not set");
    nn_device_info full{};
    full.size = std::min<int64_t>(info->size, sizeof full);
    int major = 0, minor = 0, l2 = 0, per_block = 0, per_sm = 0;
    NN_TRY(attribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    NN_TRY(attribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    NN_TRY(attribute(&l2, cudaDevAttrL2CacheSize, device));
    NN_TRY(attribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    NN_TRY(attribute(&per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
    NN_TRY(attribute(&full.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    NN_TRY(attribute(&full.registers_per_sm, cudaDevAttrMaxRegistersPerMultiprocessor, device));
    NN_TRY(attribute(&full.threads_per_sm, cudaDevAttrMaxThreadsPerMultiProcessor, device));
    NN_TRY(attribute(&full.clock_khz, cudaDevAttrClockRate, device));
    NN_TRY(attribute(&full.memory_clock_khz, cudaDevAttrMemoryClockRate, device));
    NN_TRY(attribute(&full.memory_bus_bits, cudaDevAttrGlobalMemoryBusWidth, device));
    full.capability = 10 * major + minor;
    full.l2_bytes = l2, full.shared_bytes_per_block = per_block, full.shared_bytes_per_sm = per_sm;
    cudaDeviceProp properties;
    NN_TRY(checked(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
    std::memcpy(full.name, properties.name, sizeof full.name);
    size_t free_bytes = 0, total = 0;
    NN_TRY(memory_of(device, &free_bytes, &total));
    full.memory = static_cast<int64_t>(total), full.free_memory = static_cast<int64_t>(free_bytes);
    std::memcpy(info, &full, static_cast<size_t>(full.size));
    return NN_OK;
}

NN_API int nn_device_select(int32_t device) { return checked(cudaSetDevice(device), "cudaSetDevice"); }

NN_API int nn_memory_allocate(void** pointer, int64_t bytes) {
    NN_REQUIRE(pointer, "pointer: null");
    NN_REQUIRE(bytes > 0, "bytes: %lld is not positive", (long long)bytes);
    BesideCaptures beside;
    NN_TRY(checked(cudaMalloc(pointer, static_cast<size_t>(bytes)), "cudaMalloc"));
    counters.allocations += 1;
    counters.allocated_bytes += bytes;
    return NN_OK;
}

NN_API int nn_memory_free(void* pointer) {
    BesideCaptures beside;
    NN_TRY(checked(cudaFree(pointer), "cudaFree"));
    counters.frees += pointer != nullptr;
    return NN_OK;
}

NN_API int nn_memory_allocate_host(void** pointer, int64_t bytes) {
    NN_REQUIRE(pointer, "pointer: null");
    NN_REQUIRE(bytes > 0, "bytes: %lld is not positive", (long long)bytes);
    BesideCaptures beside;
    return checked(cudaMallocHost(pointer, static_cast<size_t>(bytes)), "cudaMallocHost");
}

NN_API int nn_memory_free_host(void* pointer) {
    BesideCaptures beside;
    return checked(cudaFreeHost(pointer), "cudaFreeHost");
}

NN_API int nn_memory_upload(void* device, const void* host, int64_t bytes, nn_stream stream) {
    return queue({device, host, bytes, cudaMemcpyHostToDevice, "upload"}, stream, counters.uploads,
                 counters.uploaded_bytes);
}

NN_API int nn_memory_download(void* host, const void* device, int64_t bytes, nn_stream stream) {
    return queue({host, device, bytes, cudaMemcpyDeviceToHost, "download"}, stream, counters.downloads,
                 counters.downloaded_bytes);
}

NN_API int nn_memory_copy(void* to, const void* from, int64_t bytes, nn_stream stream) {
    return queue({to, from, bytes, cudaMemcpyDeviceToDevice, "copy"}, stream, counters.copies,
                 counters.copied_bytes);
}

NN_API int nn_stream_create(nn_stream* stream) {
    NN_REQUIRE(stream, "stream: a null pointer");
    cudaStream_t made = nullptr;
    NN_TRY(checked(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate"));
    *stream = made;
    return NN_OK;
}

NN_API int nn_stream_destroy(nn_stream stream) {
    return checked(cudaStreamDestroy(native(stream)), "cudaStreamDestroy");
}

NN_API int nn_stream_synchronize(nn_stream stream) {
    bool captured = false;
    NN_TRY(capturing(&captured, stream));
    NN_REQUIRE(!captured, "the stream is being captured: nothing runs that could be waited for");
    counters.synchronizations += 1;
    return checked(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize");
}

NN_API int nn_stream_wait(nn_stream stream, nn_event event) {
    NN_REQUIRE(event, "event: a null pointer");
    return checked(cudaStreamWaitEvent(native(stream), native_event(event), 0), "cudaStreamWaitEvent");
}

NN_API int nn_event_create(nn_event* event, int32_t timing) {
    NN_REQUIRE(event, "event: a null pointer");
    cudaEvent_t made = nullptr;
    unsigned flags = timing ? cudaEventDefault : cudaEventDisableTiming;
    NN_TRY(checked(cudaEventCreateWithFlags(&made, flags), "cudaEventCreate"));
    *event = made;
    return NN_OK;
}

NN_API int nn_event_destroy(nn_event event) {
    NN_REQUIRE(event, "event: a null pointer");
    return checked(cudaEventDestroy(native_event(event)), "cudaEventDestroy");
}

NN_API int nn_event_record(nn_event event, nn_stream stream) {
    NN_REQUIRE(event, "event: a null pointer");
    return checked(cudaEventRecord(native_event(event), native(stream)), "cudaEventRecord");
}

NN_API int nn_event_synchronize(nn_event event) {
    NN_REQUIRE(event, "event: a null pointer");
    counters.synchronizations += 1;
    return checked(cudaEventSynchronize(native_event(event)), "cudaEventSynchronize");
}

NN_API int nn_event_elapsed(float* milliseconds, nn_event start, nn_event stop) {
    NN_REQUIRE(start && stop, "start or stop: a null pointer");
    NN_REQUIRE(milliseconds, "milliseconds: a null pointer");
    return checked(cudaEventElapsedTime(milliseconds, native_event(start), native_event(stop)),
                   "cudaEventElapsedTime");
}

NN_API int nn_graph_begin(nn_stream stream) {
    NN_REQUIRE(stream, "stream: the default stream cannot be captured; create one");
    return checked(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal),
                   "cudaStreamBeginCapture");
}

NN_API int nn_graph_end(nn_graph* graph, nn_stream stream) {
    NN_REQUIRE(graph, "graph: a null pointer");
    cudaGraph_t recorded = nullptr;
    NN_TRY(checked(cudaStreamEndCapture(native(stream), &recorded), "cudaStreamEndCapture"));
    cudaGraphExec_t ready = nullptr;
    int status = checked(cudaGraphInstantiate(&ready, recorded, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(recorded);
    *graph = ready;
    return status;
}

NN_API int nn_graph_launch(nn_graph graph, nn_stream stream) {
    NN_REQUIRE(graph, "graph: a null pointer");
    NN_TRY(checked(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), native(stream)), "cudaGraphLaunch"));
    counters.graph_launches += 1;
    return NN_OK;
}

NN_API int nn_graph_destroy(nn_graph graph) {
    NN_REQUIRE(graph, "graph: a null pointer");
    return checked(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "cudaGraphExecDestroy");
}

NN_API int nn_count(nn_counts* counts) {
    NN_REQUIRE(counts && counts->size > 0, "counts: null, or its size is not set");
    const Counters& c = counters;
    nn_counts full{counts->size,       c.allocations,      c.allocated_bytes, c.frees,
                   c.uploads,          c.uploaded_bytes,   c.downloads,       c.downloaded_bytes,
                   c.copies,           c.copied_bytes,     c.synchronizations, c.graph_launches};
    std::memcpy(counts, &full, std::min<size_t>(sizeof full, static_cast<size_t>(counts->size)));
    return NN_OK;
}
