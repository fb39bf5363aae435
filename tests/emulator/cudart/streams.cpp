// Streams, events, host functions, the device's properties, errors; and what deferring makes visible.  No
// kernel.
#include "check.h"

#include <cuda_profiler_api.h>

#include <string>
#include <thread>
#include <vector>

namespace {

void append(void* data) {
    static_cast<std::vector<int>*>(data)->push_back(
        static_cast<int>(static_cast<std::vector<int>*>(data)->size()));
}
void call_back_in(void* data) { *static_cast<cudaError_t*>(data) = cudaDeviceSynchronize(); }
void callback(cudaStream_t, cudaError_t status, void* data) { *static_cast<cudaError_t*>(data) = status; }

void handles() {
    cudaStream_t stream = nullptr, other = nullptr;
    CODE("create", cudaSuccess, cudaStreamCreate(&stream));
    CODE("create with flags", cudaSuccess, cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    unsigned flags = 0;
    cudaStreamGetFlags(other, &flags);
    CHECK("flags", flags == cudaStreamNonBlocking);
    CODE("bad flags", cudaErrorInvalidValue, cudaStreamCreateWithFlags(&other, 7));
    int least = 1, greatest = 1, priority = 1;
    cudaDeviceGetStreamPriorityRange(&least, &greatest);
    CHECK("priorities", least == 0 && greatest < 0);
    cudaStreamDestroy(other);
    CODE("create with priority", cudaSuccess,
         cudaStreamCreateWithPriority(&other, cudaStreamDefault, greatest - 10));
    cudaStreamGetPriority(other, &priority);
    CHECK("priority is clamped", priority == greatest);
    CODE("synchronise", cudaSuccess, cudaStreamSynchronize(stream));
    CODE("query", cudaSuccess, cudaStreamQuery(stream));
    CODE("destroy", cudaSuccess, cudaStreamDestroy(stream));
    clear_reports();
    CODE("destroyed stream", cudaErrorInvalidResourceHandle, cudaStreamSynchronize(stream));
    REPORT("destroyed stream is named", "invalid_call",
           "cudaStreamSynchronize: was given a stream that does not exist");
    CODE("destroy the default stream", cudaErrorInvalidResourceHandle, cudaStreamDestroy(nullptr));
    CODE("default streams", cudaSuccess, cudaStreamSynchronize(cudaStreamPerThread));
    CODE("legacy stream", cudaSuccess, cudaStreamSynchronize(cudaStreamLegacy));
    cudaStreamDestroy(other);
}

void events() {
    cudaEvent_t start, end, untimed;
    float elapsed = -1;
    cudaEventCreate(&start);
    cudaEventCreate(&end);
    CODE("never recorded", cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&elapsed, start, end));
    CODE("query of unrecorded", cudaSuccess, cudaEventQuery(start));
    CODE("record", cudaSuccess, cudaEventRecord(start, nullptr));
    CODE("record end", cudaSuccess, cudaEventRecord(end, nullptr));
    CODE("synchronise event", cudaSuccess, cudaEventSynchronize(end));
    CODE("elapsed", cudaSuccess, cudaEventElapsedTime(&elapsed, start, end));
    CHECK("time goes forward", elapsed >= 0 && elapsed < 1000);
    cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming);
    cudaEventRecord(untimed, nullptr);
    CODE("untimed", cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&elapsed, start, untimed));
    CODE("destroy event", cudaSuccess, cudaEventDestroy(untimed));
    CODE("destroyed event", cudaErrorInvalidResourceHandle, cudaEventRecord(untimed, nullptr));
    cudaEventDestroy(start);
    cudaEventDestroy(end);
}

void host_functions() {
    std::vector<int> order;
    cudaError_t inside = cudaSuccess, status = cudaErrorUnknown;
    CODE("host function", cudaSuccess, cudaLaunchHostFunc(nullptr, append, &order));
    cudaLaunchHostFunc(nullptr, append, &order);
    CODE("callback", cudaSuccess, cudaStreamAddCallback(nullptr, callback, &status, 0));
    cudaLaunchHostFunc(nullptr, call_back_in, &inside);
    cudaDeviceSynchronize();
    CHECK("in order", order == std::vector<int>({0, 1}));
    CHECK("callback saw success", status == cudaSuccess);
    CHECK("calls inside are refused", inside == cudaErrorNotPermitted);
    cudaGetLastError();
}

void device() {
    int count = 0, device = -1, value = 0, version = 0;
    cudaGetDeviceCount(&count);
    cudaGetDevice(&device);
    CHECK("one device", count == 1 && device == 0);
    CODE("set device", cudaSuccess, cudaSetDevice(0));
    CODE("no second device", cudaErrorInvalidDevice, cudaSetDevice(1));
    cudaDeviceProp p;
    CODE("properties", cudaSuccess, cudaGetDeviceProperties(&p, 0));
    CODE("properties of none", cudaErrorInvalidDevice, cudaGetDeviceProperties(&p, 3));
    std::printf("device %d.%d %d %zu %zu %d\n", p.major, p.minor, p.multiProcessorCount,
                p.sharedMemPerBlockOptin, p.sharedMemPerMultiprocessor, p.maxThreadsPerMultiProcessor);
    cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0);
    CHECK("attributes agree", value == p.multiProcessorCount);
    CODE("bad attribute", cudaErrorInvalidValue,
         cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(100000), 0));
    cudaRuntimeGetVersion(&version);
    CHECK("version", version == 13000);
    size_t limit = 0;
    cudaDeviceSetLimit(cudaLimitMallocHeapSize, 1 << 24);
    cudaDeviceGetLimit(&limit, cudaLimitMallocHeapSize);
    CHECK("limit", limit == 1 << 24);
    CODE("no such limit", cudaErrorUnsupportedLimit, cudaDeviceGetLimit(&limit, static_cast<cudaLimit>(77)));
    CODE("profiler", cudaSuccess, cudaProfilerStart());
    CHECK("error text", !std::strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory"));
    CHECK("error name", !std::strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress"));
    CHECK("unknown error",
          !std::strcmp(cudaGetErrorName(static_cast<cudaError_t>(12345)), "unrecognized error code"));
    cudaGetLastError();
}

void not_there() {
    cudaArray_t array = nullptr;
    cudaChannelFormatDesc description = cudaCreateChannelDesc(32, 0, 0, 0, cudaChannelFormatKindFloat);
    clear_reports();
    CODE("arrays", cudaErrorNotSupported, cudaMallocArray(&array, &description, 4, 4, 0));
    REPORT("arrays are named", "unsupported", "cudaMallocArray: this function is not emulated");
    void* function = &array;
    cudaDriverEntryPointQueryResult found;
    CODE("driver function", cudaSuccess,
         cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 13000, 0, &found));
    CHECK("encode is there", function && found == cudaDriverEntryPointSuccess);
    cudaGetDriverEntryPointByVersion("cuLinkCreate", &function, 13000, 0, &found);
    CHECK("others are not", !function && found == cudaDriverEntryPointSymbolNotFound);
    REPORT("others are named", "unsupported", "cuLinkCreate");
    cudaGetLastError();
}

void threads() {
    cudaError_t theirs = cudaSuccess;
    cudaSetDevice(5);
    std::thread other([&] { theirs = cudaGetLastError(); });
    other.join();
    CHECK("errors belong to threads", theirs == cudaSuccess && cudaGetLastError() == cudaErrorInvalidDevice);
}

// ---- deferred work ----------------------------------------------------------------------------------------

struct Buffers {
    int *device = nullptr, *pinned = nullptr;
    Buffers() {
        cudaMalloc(reinterpret_cast<void**>(&device), 4096);
        cudaMallocHost(reinterpret_cast<void**>(&pinned), 4096);
        cudaMemset(device, 0, 4096);
        cudaDeviceSynchronize();
        clear_reports();
    }
    ~Buffers() {
        cudaDeviceSynchronize();
        cudaFree(device);
        cudaFreeHost(pinned);
    }
};

void stale_reads() {
    Buffers b;
    cudaStream_t stream, apart;
    cudaStreamCreate(&stream);
    cudaStreamCreateWithFlags(&apart, cudaStreamNonBlocking);
    int host = 7;
    b.pinned[0] = 1;
    cudaMemsetAsync(b.device, 0x22, 4, stream);
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, stream);
    CHECK("stale before synchronising", b.pinned[0] == 1);
    CODE("query makes progress", cudaErrorNotReady, cudaStreamQuery(stream));
    cudaStreamSynchronize(stream);
    CHECK("fresh after synchronising", b.pinned[0] == 0x22222222);
    cudaMemcpyAsync(b.device, &host, 4, cudaMemcpyHostToDevice, stream);
    host = 8;                                        // pageable memory was read at the call, as on a GPU
    cudaStreamSynchronize(stream);
    cudaMemcpy(&host, b.device, 4, cudaMemcpyDeviceToHost);
    CHECK("pageable source", host == 7);
    REPORT("nothing wrong so far", "", "");
    cudaMemsetAsync(b.device, 0x33, 4, apart);
    cudaMemcpy(&host, b.device, 4, cudaMemcpyDeviceToHost);
    CHECK("another stream's work is not waited for", host == 7);
    REPORT("and that is reported", "unsynchronized", "does not wait for a memset of 4 bytes");
    cudaMemsetAsync(b.device, 0x44, 4, stream);
    cudaMemcpy(&host, b.device, 4, cudaMemcpyDeviceToHost);
    CHECK("the default stream waits for blocking streams", host == 0x44444444);
    clear_reports();
    cudaStreamDestroy(stream);
    cudaStreamDestroy(apart);
}

void early_changes() {
    Buffers b;
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    b.pinned[0] = 1;
    cudaMemcpyAsync(b.device, b.pinned, 4, cudaMemcpyHostToDevice, stream);
    b.pinned[0] = 2;
    cudaStreamSynchronize(stream);
    REPORT("source changed too early", "unsynchronized", "host memory changed while a copy of 4 bytes");
    void* freed = nullptr;
    cudaMalloc(&freed, 64);
    cudaMemsetAsync(freed, 0, 64, stream);
    cudaFree(freed);
    REPORT("freed too early", "unsynchronized",
           "while a memset of 64 bytes of byte 0 of the 64 bytes of cudaMalloc");
    cudaMalloc(&freed, 64);
    cudaMemsetAsync(freed, 0, 64, stream);
    cudaFreeAsync(freed, stream);
    cudaStreamSynchronize(stream);
    REPORT("freed in order", "", "");
    cudaStreamDestroy(stream);
}

void order() {
    Buffers b;
    cudaStream_t first, second;
    cudaEvent_t event;
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreate(&event);
    cudaMemsetAsync(b.device, 1, 4, first);
    cudaEventRecord(event, first);
    CODE("event is pending", cudaErrorNotReady, cudaEventQuery(event));
    cudaStreamWaitEvent(second, event, 0);
    cudaMemsetAsync(b.device, 2, 4, second);
    cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyDeviceToHost, second);
    cudaStreamSynchronize(second);
    CHECK("event orders streams", b.pinned[0] == 0x02020202);
    CODE("first ran with it", cudaSuccess, cudaStreamQuery(first));
    CODE("event is complete", cudaSuccess, cudaEventQuery(event));
    for (const char* schedule : {"schedule=reverse", "schedule=random;seed=3", "schedule=forward"}) {
        configure(schedule);
        cudaMemsetAsync(b.device, 3, 4, first);
        cudaEventRecord(event, first);
        cudaStreamWaitEvent(second, event, 0);
        cudaMemsetAsync(b.device, 4, 4, second);
        cudaDeviceSynchronize();
        cudaMemcpy(b.pinned, b.device, 4, cudaMemcpyDeviceToHost);
        CHECK(schedule, b.pinned[0] == 0x04040404);
    }
    int spins = 0;
    cudaMemsetAsync(b.device, 5, 4, first);
    cudaEventRecord(event, first);
    while (cudaEventQuery(event) == cudaErrorNotReady && spins < 100) ++spins;
    CHECK("polling ends", spins > 0 && spins < 100);
    cudaEventDestroy(event);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
}

}  // namespace

int main() {
    handles();
    events();
    host_functions();
    device();
    not_there();
    threads();
    configure("defer=1");
    stale_reads();
    early_changes();
    order();
    host_functions();
    void* left = nullptr;
    cudaMalloc(&left, 16);
    cudaMemsetAsync(left, 0, 16, nullptr);           // never waited for: a report at the end
    return failures;
}
