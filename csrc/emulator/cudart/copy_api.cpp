// Entry points that copy and fill memory.
#include <cstring>

#include "../memory.h"
#include "../reports.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

cudaError_t copy_blocking(CopyWork work) {
    if (cudaError_t error = work.check()) return error;
    if (work.empty()) return cudaSuccess;
    ++statistics().blocking_copies;
    return run_blocking(*find_stream(nullptr), work);
}

cudaError_t copy_async(CopyWork work, cudaStream_t stream) {
    if (cudaError_t error = work.check()) return error;
    if (work.empty()) return find_stream(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
    return submit(stream, std::move(work));
}

FillWork linear_fill(void* destination, int value, size_t width, size_t height, size_t pitch) {
    FillWork work;
    work.destination = static_cast<char*>(destination);
    work.pitch = pitch;
    work.value = static_cast<uint32_t>(value) & 0xff;
    work.width = width;
    work.height = height;
    return work;
}

// A memset is asynchronous even without a stream, except that it is ordered in the default one.
cudaError_t fill(FillWork work, cudaStream_t stream) {
    if (cudaError_t error = work.check()) return error;
    if (work.empty()) return find_stream(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
    return submit(stream, std::move(work));
}

FillWork volume_fill(const cudaPitchedPtr& p, int value, const cudaExtent& extent) {
    FillWork work = linear_fill(p.ptr, value, extent.width, extent.height, p.pitch);
    work.slice = p.pitch * p.ysize;
    work.depth = extent.depth;
    return work;
}

cudaError_t symbol_range(const void* host, size_t bytes, size_t offset, char** place) {
    Symbol* symbol = nullptr;
    if (cudaError_t error = find_symbol(host, &symbol)) return error;
    if (offset > symbol->bytes || bytes > symbol->bytes - offset)
        return reject(cudaErrorInvalidValue, "out_of_bounds",
                      format("%zu bytes from byte %zu of the %zu bytes of variable %s", bytes, offset,
                             symbol->bytes, symbol->name.c_str()),
                      "Compare the size and offset given here (in bytes) with the variable's.");
    *place = symbol->address + offset;
    return cudaSuccess;
}

cudaError_t to_symbol(const void* symbol, const void* source, size_t bytes, size_t offset,
                      cudaMemcpyKind kind, CopyWork* work) {
    char* place = nullptr;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    if (cudaError_t error = symbol_range(symbol, bytes, offset, &place)) return error;
    *work = linear_copy(place, source, bytes, kind);
    return cudaSuccess;
}

cudaError_t from_symbol(void* destination, const void* symbol, size_t bytes, size_t offset,
                        cudaMemcpyKind kind, CopyWork* work) {
    char* place = nullptr;
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    if (cudaError_t error = symbol_range(symbol, bytes, offset, &place)) return error;
    *work = linear_copy(destination, place, bytes, kind);
    return cudaSuccess;
}

bool one_device(int destination, int source) { return !destination && !source; }

cudaMemcpy3DParms without_devices(const cudaMemcpy3DPeerParms& p) {
    cudaMemcpy3DParms same{};
    same.srcArray = p.srcArray;
    same.srcPos = p.srcPos;
    same.srcPtr = p.srcPtr;
    same.dstArray = p.dstArray;
    same.dstPos = p.dstPos;
    same.dstPtr = p.dstPtr;
    same.extent = p.extent;
    same.kind = cudaMemcpyDeviceToDevice;
    return same;
}

}  // namespace
}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" {

// ---- copies -----------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return call("cudaMemcpy", [&] { return copy_blocking(linear_copy(to, from, bytes, kind)); });
}

cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream) {
    return call("cudaMemcpyAsync", [&] { return copy_async(linear_copy(to, from, bytes, kind), stream); });
}

cudaError_t CUDARTAPI cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                   size_t width, size_t height, cudaMemcpyKind kind) {
    return call("cudaMemcpy2D", [&] {
        return copy_blocking(pitched_copy(to, to_pitch, from, from_pitch, width, height, kind));
    });
}

cudaError_t CUDARTAPI cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                        size_t width, size_t height, cudaMemcpyKind kind,
                                        cudaStream_t stream) {
    return call("cudaMemcpy2DAsync", [&] {
        return copy_async(pitched_copy(to, to_pitch, from, from_pitch, width, height, kind), stream);
    });
}

cudaError_t CUDARTAPI cudaMemcpy3D(const cudaMemcpy3DParms* p) {
    return call("cudaMemcpy3D", [&]() -> cudaError_t {
        CopyWork work;
        if (!p) return cudaErrorInvalidValue;
        if (cudaError_t error = volume_copy(*p, &work)) return error;
        return copy_blocking(work);
    });
}

cudaError_t CUDARTAPI cudaMemcpy3DAsync(const cudaMemcpy3DParms* p, cudaStream_t stream) {
    return call("cudaMemcpy3DAsync", [&]() -> cudaError_t {
        CopyWork work;
        if (!p) return cudaErrorInvalidValue;
        if (cudaError_t error = volume_copy(*p, &work)) return error;
        return copy_async(work, stream);
    });
}

cudaError_t CUDARTAPI cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device,
                                     size_t bytes) {
    if (!one_device(to_device, from_device)) return remember(cudaErrorInvalidDevice);
    return call("cudaMemcpyPeer",
                [&] { return copy_blocking(linear_copy(to, from, bytes, cudaMemcpyDeviceToDevice)); });
}

cudaError_t CUDARTAPI cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                                          size_t bytes, cudaStream_t stream) {
    if (!one_device(to_device, from_device)) return remember(cudaErrorInvalidDevice);
    return call("cudaMemcpyPeerAsync",
                [&] { return copy_async(linear_copy(to, from, bytes, cudaMemcpyDeviceToDevice), stream); });
}

cudaError_t CUDARTAPI cudaMemcpy3DPeer(const cudaMemcpy3DPeerParms* p) {
    if (!p || !one_device(p->dstDevice, p->srcDevice))
        return remember(p ? cudaErrorInvalidDevice : cudaErrorInvalidValue);
    cudaMemcpy3DParms same = without_devices(*p);
    return cudaMemcpy3D(&same);
}

cudaError_t CUDARTAPI cudaMemcpy3DPeerAsync(const cudaMemcpy3DPeerParms* p, cudaStream_t stream) {
    if (!p || !one_device(p->dstDevice, p->srcDevice))
        return remember(p ? cudaErrorInvalidDevice : cudaErrorInvalidValue);
    cudaMemcpy3DParms same = without_devices(*p);
    return cudaMemcpy3DAsync(&same, stream);
}

cudaError_t CUDARTAPI cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                           size_t count, cudaMemcpyAttributes*, size_t*, size_t,
                                           cudaStream_t stream) {
    return call("cudaMemcpyBatchAsync", [&]() -> cudaError_t {
        if (!to || !from || !bytes || !count) return cudaErrorInvalidValue;
        for (size_t i = 0; i < count; ++i)
            if (cudaError_t error =
                    copy_async(linear_copy(to[i], from[i], bytes[i], cudaMemcpyDefault), stream))
                return error;
        return cudaSuccess;
    });
}

// ---- variables --------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                                         cudaMemcpyKind kind) {
    return call("cudaMemcpyToSymbol", [&]() -> cudaError_t {
        CopyWork work;
        if (cudaError_t error = to_symbol(symbol, from, bytes, offset, kind, &work)) return error;
        return copy_blocking(work);
    });
}

cudaError_t CUDARTAPI cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes,
                                              size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
    return call("cudaMemcpyToSymbolAsync", [&]() -> cudaError_t {
        CopyWork work;
        if (cudaError_t error = to_symbol(symbol, from, bytes, offset, kind, &work)) return error;
        return copy_async(work, stream);
    });
}

cudaError_t CUDARTAPI cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                           cudaMemcpyKind kind) {
    return call("cudaMemcpyFromSymbol", [&]() -> cudaError_t {
        CopyWork work;
        if (cudaError_t error = from_symbol(to, symbol, bytes, offset, kind, &work)) return error;
        return copy_blocking(work);
    });
}

cudaError_t CUDARTAPI cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                                cudaMemcpyKind kind, cudaStream_t stream) {
    return call("cudaMemcpyFromSymbolAsync", [&]() -> cudaError_t {
        CopyWork work;
        if (cudaError_t error = from_symbol(to, symbol, bytes, offset, kind, &work)) return error;
        return copy_async(work, stream);
    });
}

cudaError_t CUDARTAPI cudaGetSymbolAddress(void** out, const void* host) {
    return call("cudaGetSymbolAddress", [&]() -> cudaError_t {
        Symbol* symbol = nullptr;
        if (cudaError_t error = find_symbol(host, &symbol)) return error;
        return give(out, static_cast<void*>(symbol->address));
    });
}

cudaError_t CUDARTAPI cudaGetSymbolSize(size_t* bytes, const void* host) {
    return call("cudaGetSymbolSize", [&]() -> cudaError_t {
        Symbol* symbol = nullptr;
        if (cudaError_t error = find_symbol(host, &symbol)) return error;
        return give(bytes, symbol->bytes);
    });
}

// ---- fills ------------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaMemset(void* p, int value, size_t bytes) {
    return call("cudaMemset", [&] { return fill(linear_fill(p, value, bytes, 1, bytes), nullptr); });
}

cudaError_t CUDARTAPI cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
    return call("cudaMemsetAsync", [&] { return fill(linear_fill(p, value, bytes, 1, bytes), stream); });
}

cudaError_t CUDARTAPI cudaMemset2D(void* p, size_t pitch, int value, size_t width, size_t height) {
    return call("cudaMemset2D", [&] { return fill(linear_fill(p, value, width, height, pitch), nullptr); });
}

cudaError_t CUDARTAPI cudaMemset2DAsync(void* p, size_t pitch, int value, size_t width, size_t height,
                                        cudaStream_t stream) {
    return call("cudaMemset2DAsync",
                [&] { return fill(linear_fill(p, value, width, height, pitch), stream); });
}

cudaError_t CUDARTAPI cudaMemset3D(cudaPitchedPtr p, int value, cudaExtent extent) {
    return call("cudaMemset3D", [&] { return fill(volume_fill(p, value, extent), nullptr); });
}

cudaError_t CUDARTAPI cudaMemset3DAsync(cudaPitchedPtr p, int value, cudaExtent extent, cudaStream_t stream) {
    return call("cudaMemset3DAsync", [&] { return fill(volume_fill(p, value, extent), stream); });
}

}  // extern "C"
