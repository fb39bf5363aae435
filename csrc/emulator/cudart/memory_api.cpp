// Entry points that allocate and free memory, or ask about it.
#include <algorithm>
#include <cstring>
#include <map>

#include "../memory.h"
#include "../profiles.h"
#include "../reports.h"
#include "graph.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

constexpr size_t PITCH_ALIGNMENT = 512;

// The name in reports: "cudaMalloc 3" is what the program's third call of cudaMalloc returned.
std::string next_label(const char* what) {
    static auto* counts = new std::map<std::string, unsigned>;
    return std::string(what) + " " + std::to_string(++(*counts)[what]);
}

template <class T> cudaError_t allocate(T** out, size_t bytes, MemoryKind kind, const char* what) {
    if (!out) return cudaErrorInvalidValue;
    if (cudaError_t error = refuse_unsafe()) return error;
    *out = nullptr;
    if (!bytes) return cudaSuccess;
    if (inject_allocation_failure()) return cudaErrorMemoryAllocation;
    bool fits = kind == MemoryKind::host ||
                (bytes <= device_memory_bytes() && memory_in_use() <= device_memory_bytes() - bytes);
    void* made = fits ? memory_allocate(bytes, kind, next_label(what)) : nullptr;
    if (!made) return cudaErrorMemoryAllocation;
    count_allocation(bytes);
    *out = static_cast<T*>(made);
    return cudaSuccess;
}

cudaError_t explain_bad_free(const void* p) {
    const Allocation* a = memory_find(p);
    if (!a && in_arena(p)) a = memory_near(p);
    if (a && a->freed)
        return reject(cudaErrorInvalidValue, "use_after_free", a->label + " is freed a second time",
                      "Free each allocation once.");
    if (a && a->begin != p)
        return reject(cudaErrorInvalidValue, "invalid_call",
                      "frees " + describe_memory(p) + ", not its beginning",
                      "Free the pointer that the allocation returned.");
    return reject(cudaErrorInvalidValue, "invalid_call",
                  format("frees %p, which was never allocated on the device", p),
                  "Free memory with the function that belongs to its allocation.");
}

bool is_host(const Allocation& a) { return a.kind == MemoryKind::host; }

cudaError_t free_memory(void* p, bool host) {
    if (!p) return cudaSuccess;
    if (cudaError_t error = refuse_unsafe()) return error;
    const Allocation* a = memory_find(p);
    if (!a || a->freed || a->begin != p || !in_arena(p)) return explain_bad_free(p);
    if (is_host(*a) != host)
        return reject(cudaErrorInvalidValue, "invalid_call",
                      "frees " + describe_memory(p) + " with the wrong function",
                      host ? "Free it with cudaFree." : "Free pinned host memory with cudaFreeHost.");
    settle_before_free(a->begin, a->bytes);
    ++statistics().frees;
    return memory_free(p) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t allocate_pitched(void** out, size_t* pitch, size_t width, size_t rows, const char* what) {
    if (!pitch) return cudaErrorInvalidValue;
    *pitch = (width + PITCH_ALIGNMENT - 1) / PITCH_ALIGNMENT * PITCH_ALIGNMENT;
    return allocate(out, *pitch * rows, MemoryKind::device, what);
}

// ---- host memory made accessible --------------------------------------------------------------------------

cudaError_t register_host(void* p, size_t bytes) {
    if (!p || !bytes) return cudaErrorInvalidValue;
    if (cudaError_t error = refuse_unsafe()) return error;
    const char* last = static_cast<const char*>(p) + bytes - 1;
    if (memory_find(p) || memory_find(last)) return cudaErrorHostMemoryAlreadyRegistered;
    memory_register(p, bytes, MemoryKind::host, format("host memory at %p (cudaHostRegister)", p));
    return cudaSuccess;
}

cudaError_t unregister_host(void* p) {
    const Allocation* a = memory_find(p);
    if (!a || in_arena(p) || !is_host(*a) || a->begin != p) return cudaErrorHostMemoryNotRegistered;
    settle_before_free(a->begin, a->bytes);
    memory_unregister(p);
    return cudaSuccess;
}

cudaError_t attributes_of(cudaPointerAttributes* out, const void* p) {
    if (!out) return cudaErrorInvalidValue;
    *out = cudaPointerAttributes{};
    const Allocation* a = memory_find(p);
    if (!a || a->freed) {
        out->type = cudaMemoryTypeUnregistered;
        out->device = -2;                    // cudaInvalidDeviceId, as the runtime answers
        out->hostPointer = const_cast<void*>(p);
        return cudaSuccess;
    }
    bool host_too = a->kind == MemoryKind::host || a->kind == MemoryKind::managed;
    out->type = a->kind == MemoryKind::host      ? cudaMemoryTypeHost
                : a->kind == MemoryKind::managed ? cudaMemoryTypeManaged
                                                 : cudaMemoryTypeDevice;
    out->devicePointer = const_cast<void*>(p);
    out->hostPointer = host_too ? const_cast<void*>(p) : nullptr;
    return cudaSuccess;
}

// ---- memory of streams ------------------------------------------------------------------------------------

cudaError_t allocate_in_graph(void** out, size_t bytes, Stream& stream) {
    cudaGraphNodeParams params = child_parameters(nullptr);
    params.type = cudaGraphNodeTypeMemAlloc;
    params.alloc.bytesize = bytes;
    std::unique_ptr<Work> work;
    if (cudaError_t error = make_work(params, &work)) return error;
    *out = params.alloc.dptr;
    return capture_work(stream, std::move(work));
}

cudaError_t allocate_async(void** out, size_t bytes, cudaStream_t handle) {
    Stream* stream = find_stream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (!out) return cudaErrorInvalidValue;
    if (stream->capture) return allocate_in_graph(out, bytes, *stream);
    if (cudaError_t error = refuse_implicit(*stream)) return error;
    *out = nullptr;
    if (!bytes) return cudaSuccess;
    cudaStreamCaptureMode relaxed =
        cudaStreamCaptureModeRelaxed;     // stream-ordered: safe beside captures of other streams
    cudaThreadExchangeStreamCaptureMode(&relaxed);
    cudaError_t error = allocate(out, bytes, MemoryKind::device, "cudaMallocAsync");
    cudaThreadExchangeStreamCaptureMode(&relaxed);
    return error;
}

cudaError_t free_async(void* p, cudaStream_t handle) {
    Stream* stream = find_stream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (!p) return cudaSuccess;
    const Allocation* a = memory_find(p);
    if (!a || a->freed || a->begin != p || !in_arena(p)) return explain_bad_free(p);
    if (stream->capture) {
        ReleaseWork work;
        work.pointer = p;
        return submit(*stream, work);
    }
    FreeWork work;
    work.pointer = p;
    return submit(*stream, work);
}

cudaError_t range_attribute(void* data, size_t bytes, cudaMemRangeAttribute attribute) {
    if (!data || bytes < sizeof(int)) return cudaErrorInvalidValue;
    int value = attribute == cudaMemRangeAttributeReadMostly ? 0 : cudaInvalidDeviceId;
    std::memcpy(data, &value, sizeof value);
    return cudaSuccess;
}

}  // namespace
}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

// ---- device memory ----------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMalloc(void** out, size_t bytes) {
    return call("cudaMalloc", [&] { return allocate(out, bytes, MemoryKind::device, "cudaMalloc"); });
}

cudaError_t CUDARTAPI cudaFree(void* p) {
    return call("cudaFree", [&] { return free_memory(p, false); });
}

cudaError_t CUDARTAPI cudaMallocManaged(void** out, size_t bytes, unsigned flags) {
    return call("cudaMallocManaged", [&]() -> cudaError_t {
        if (!bytes || (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost))
            return cudaErrorInvalidValue;
        return allocate(out, bytes, MemoryKind::managed, "cudaMallocManaged");
    });
}

cudaError_t CUDARTAPI cudaMallocPitch(void** out, size_t* pitch, size_t width, size_t height) {
    return call("cudaMallocPitch",
                [&] { return allocate_pitched(out, pitch, width, height, "cudaMallocPitch"); });
}

cudaError_t CUDARTAPI cudaMalloc3D(cudaPitchedPtr* out, cudaExtent extent) {
    return call("cudaMalloc3D", [&]() -> cudaError_t {
        if (!out) return cudaErrorInvalidValue;
        out->xsize = extent.width;
        out->ysize = extent.height;
        return allocate_pitched(&out->ptr, &out->pitch, extent.width, extent.height * extent.depth,
                                "cudaMalloc3D");
    });
}

cudaError_t CUDARTAPI cudaMallocAsync(void** out, size_t bytes, cudaStream_t stream) {
    return call("cudaMallocAsync", [&] { return allocate_async(out, bytes, stream); });
}

cudaError_t CUDARTAPI cudaMallocFromPoolAsync(void** out, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
    return call("cudaMallocFromPoolAsync", [&] { return allocate_async(out, bytes, stream); });
}

cudaError_t CUDARTAPI cudaFreeAsync(void* p, cudaStream_t stream) {
    return call("cudaFreeAsync", [&] { return free_async(p, stream); });
}

// ---- host memory ------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMallocHost(void** out, size_t bytes) {
    return call("cudaMallocHost", [&] { return allocate(out, bytes, MemoryKind::host, "cudaMallocHost"); });
}

cudaError_t CUDARTAPI cudaHostAlloc(void** out, size_t bytes, unsigned flags) {
    return call("cudaHostAlloc", [&]() -> cudaError_t {
        constexpr unsigned known = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
        return flags & ~known ? cudaErrorInvalidValue
                              : allocate(out, bytes, MemoryKind::host, "cudaHostAlloc");
    });
}

cudaError_t CUDARTAPI cudaFreeHost(void* p) {
    return call("cudaFreeHost", [&] { return free_memory(p, true); });
}

cudaError_t CUDARTAPI cudaHostRegister(void* p, size_t bytes, unsigned) {
    return call("cudaHostRegister", [&] { return register_host(p, bytes); });
}

cudaError_t CUDARTAPI cudaHostUnregister(void* p) {
    return call("cudaHostUnregister", [&] { return unregister_host(p); });
}

cudaError_t CUDARTAPI cudaHostGetDevicePointer(void** out, void* host, unsigned flags) {
    return call("cudaHostGetDevicePointer", [&]() -> cudaError_t {
        const Allocation* a = memory_find(host);
        if (flags || !a || a->freed || !is_host(*a)) return cudaErrorInvalidValue;
        return give(out, host);              // one address space
    });
}

cudaError_t CUDARTAPI cudaHostGetFlags(unsigned* flags, void* host) {
    return call("cudaHostGetFlags", [&]() -> cudaError_t {
        const Allocation* a = memory_find(host);
        if (!a || a->freed || !is_host(*a)) return cudaErrorInvalidValue;
        return give(flags, static_cast<unsigned>(cudaHostAllocMapped));
    });
}

// ---- questions and hints ----------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMemGetInfo(size_t* left, size_t* all) {
    return call("cudaMemGetInfo", [&]() -> cudaError_t {
        size_t bytes = device_memory_bytes();
        if (left) *left = bytes - std::min(bytes, memory_in_use());
        if (all) *all = bytes;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes* out, const void* p) {
    return call("cudaPointerGetAttributes", [&] { return attributes_of(out, p); });
}

cudaError_t CUDARTAPI cudaMemAdvise(const void* p, size_t bytes, cudaMemoryAdvise, cudaMemLocation) {
    return call("cudaMemAdvise", [&] { return check_device_range(p, bytes, "advises on"); });
}

cudaError_t CUDARTAPI cudaMemPrefetchAsync(const void* p, size_t bytes, cudaMemLocation, unsigned,
                                           cudaStream_t stream) {
    return call("cudaMemPrefetchAsync", [&]() -> cudaError_t {
        if (!find_stream(stream)) return cudaErrorInvalidResourceHandle;
        return check_device_range(p, bytes, "prefetches");
    });
}

cudaError_t CUDARTAPI cudaMemRangeGetAttribute(void* data, size_t bytes, cudaMemRangeAttribute attribute,
                                               const void* p, size_t count) {
    return call("cudaMemRangeGetAttribute", [&]() -> cudaError_t {
        if (cudaError_t error = check_device_range(p, count, "asks about")) return error;
        return range_attribute(data, bytes, attribute);
    });
}

}  // extern "C"
