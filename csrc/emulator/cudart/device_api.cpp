// Entry points about the device: the one there is, its properties and limits, and waiting for all of it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "../profiles.h"
#include "../runtime.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

constexpr int VERSION = 13000;               // of the runtime whose interface this is
constexpr int COPY_PITCH = 0x7fffffff;
constexpr const char* PCI_BUS_ID = "0000:01:00.0";

struct DeviceSettings {
    unsigned flags = cudaDeviceScheduleAuto;
    cudaFuncCache cache = cudaFuncCachePreferNone;
    std::map<int, size_t> limits = {
        {cudaLimitStackSize, 1024},           {cudaLimitPrintfFifoSize, 1 << 20},
        {cudaLimitDevRuntimeSyncDepth, 2},    {cudaLimitDevRuntimePendingLaunchCount, 2048},
        {cudaLimitMaxL2FetchGranularity, 64}, {cudaLimitPersistingL2CacheSize, 0}};
};

DeviceSettings& settings() {
    static auto* instance = new DeviceSettings;
    return *instance;
}

cudaError_t check_device(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

int small(size_t value) { return static_cast<int>(std::min<size_t>(value, 0x7fffffff)); }

void set(int (&to)[2], int x, int y) { to[0] = x; to[1] = y; }
void set(int (&to)[3], int x, int y, int z) { to[0] = x; to[1] = y; to[2] = z; }

void fill_textures(cudaDeviceProp& d) {      // no textures here, but programs print these
    d.textureAlignment = d.surfaceAlignment = 512;
    d.texturePitchAlignment = 32;
    d.maxTexture1D = d.maxTexture1DMipmap = 131072;
    set(d.maxTexture2D, 131072, 65536);
    set(d.maxTexture3D, 16384, 16384, 16384);
}

void fill_limits(cudaDeviceProp& d, const Profile& p) {
    d.sharedMemPerBlock = Profile::SHARED_PER_BLOCK;
    d.sharedMemPerBlockOptin = p.shared_per_block_optin;
    d.sharedMemPerMultiprocessor = p.shared_per_multiprocessor;
    d.reservedSharedMemPerBlock = p.shared_reserved_per_block;
    d.regsPerBlock = Profile::REGISTERS_PER_BLOCK;
    d.regsPerMultiprocessor = Profile::REGISTERS_PER_MULTIPROCESSOR;
    d.warpSize = Profile::WARP_SIZE;
    d.memPitch = COPY_PITCH;
    d.maxThreadsPerBlock = Profile::MAX_THREADS_PER_BLOCK;
    d.maxThreadsPerMultiProcessor = p.threads_per_multiprocessor;
    d.maxBlocksPerMultiProcessor = p.blocks_per_multiprocessor;
    set(d.maxThreadsDim, Profile::MAX_THREADS_PER_BLOCK, Profile::MAX_THREADS_PER_BLOCK,
        Profile::MAX_BLOCK_Z);
    set(d.maxGridSize, Profile::MAX_GRID_X, Profile::MAX_GRID_YZ, Profile::MAX_GRID_YZ);
    d.totalConstMem = Profile::CONSTANT_BYTES;
}

void fill_abilities(cudaDeviceProp& d, const Profile& p) {
    d.canMapHostMemory = d.concurrentKernels = d.unifiedAddressing = d.streamPrioritiesSupported = 1;
    d.globalL1CacheSupported = d.localL1CacheSupported = d.managedMemory = d.concurrentManagedAccess = 1;
    d.computePreemptionSupported = d.canUseHostPointerForRegisteredMem = d.cooperativeLaunch = 1;
    d.hostRegisterSupported = d.memoryPoolsSupported = d.unifiedFunctionPointers = 1;
    d.asyncEngineCount = p.copy_engines;
    d.clusterLaunch = p.clusters;
    d.deviceNumaId = d.hostNumaId = -1;
}

cudaDeviceProp properties() {
    const Profile& p = profile();
    cudaDeviceProp d;
    std::memset(&d, 0, sizeof d);
    std::snprintf(d.name, sizeof d.name, "%s (emulated)", p.device);
    std::memcpy(d.uuid.bytes, "cuda-nn-emulator", sizeof d.uuid.bytes);
    d.totalGlobalMem = device_memory_bytes();
    d.major = p.major;
    d.minor = p.minor;
    d.multiProcessorCount = p.multiprocessors;
    d.pciBusID = 1;
    d.memoryBusWidth = p.memory_bus_bits;
    d.l2CacheSize = small(p.l2_bytes);
    d.persistingL2CacheMaxSize = small(p.persisting_l2_bytes);
    d.accessPolicyMaxWindowSize = p.persisting_l2_bytes ? 128 << 20 : 0;
    fill_limits(d, p);
    fill_abilities(d, p);
    fill_textures(d);
    return d;
}

// Attributes that are not 0; those that cudaDeviceProp has, too, are read from there.
bool attribute(cudaDeviceAttr which, int* value) {
    const Profile& p = profile();
    const cudaDeviceProp d = properties();
    const std::map<int, int> known = {
        {cudaDevAttrMaxThreadsPerBlock, d.maxThreadsPerBlock},
        {cudaDevAttrMaxBlockDimX, d.maxThreadsDim[0]},
        {cudaDevAttrMaxBlockDimY, d.maxThreadsDim[1]},
        {cudaDevAttrMaxBlockDimZ, d.maxThreadsDim[2]},
        {cudaDevAttrMaxGridDimX, d.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, d.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, d.maxGridSize[2]},
        {cudaDevAttrMaxSharedMemoryPerBlock, small(d.sharedMemPerBlock)},
        {cudaDevAttrTotalConstantMemory, small(d.totalConstMem)},
        {cudaDevAttrWarpSize, d.warpSize},
        {cudaDevAttrMaxPitch, small(d.memPitch)},
        {cudaDevAttrMaxRegistersPerBlock, d.regsPerBlock},
        {cudaDevAttrClockRate, p.clock_khz},
        {cudaDevAttrTextureAlignment, small(d.textureAlignment)},
        {cudaDevAttrGpuOverlap, 1},
        {cudaDevAttrMultiProcessorCount, d.multiProcessorCount},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrMaxTexture1DWidth, d.maxTexture1D},
        {cudaDevAttrMaxTexture2DWidth, d.maxTexture2D[0]},
        {cudaDevAttrMaxTexture2DHeight, d.maxTexture2D[1]},
        {cudaDevAttrMaxTexture3DWidth, d.maxTexture3D[0]},
        {cudaDevAttrMaxTexture3DHeight, d.maxTexture3D[1]},
        {cudaDevAttrMaxTexture3DDepth, d.maxTexture3D[2]},
        {cudaDevAttrSurfaceAlignment, small(d.surfaceAlignment)},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrPciBusId, d.pciBusID},
        {cudaDevAttrMemoryClockRate, p.memory_clock_khz},
        {cudaDevAttrGlobalMemoryBusWidth, d.memoryBusWidth},
        {cudaDevAttrL2CacheSize, d.l2CacheSize},
        {cudaDevAttrMaxThreadsPerMultiProcessor, d.maxThreadsPerMultiProcessor},
        {cudaDevAttrAsyncEngineCount, d.asyncEngineCount},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrTexturePitchAlignment, small(d.texturePitchAlignment)},
        {cudaDevAttrComputeCapabilityMajor, d.major},
        {cudaDevAttrComputeCapabilityMinor, d.minor},
        {cudaDevAttrStreamPrioritiesSupported, 1},
        {cudaDevAttrGlobalL1CacheSupported, 1},
        {cudaDevAttrLocalL1CacheSupported, 1},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, small(d.sharedMemPerMultiprocessor)},
        {cudaDevAttrMaxRegistersPerMultiprocessor, d.regsPerMultiprocessor},
        {cudaDevAttrManagedMemory, 1},
        {cudaDevAttrSingleToDoublePrecisionPerfRatio, p.single_to_double},
        {cudaDevAttrConcurrentManagedAccess, 1},
        {cudaDevAttrComputePreemptionSupported, 1},
        {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
        {cudaDevAttrCooperativeLaunch, 1},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, small(d.sharedMemPerBlockOptin)},
        {cudaDevAttrHostRegisterSupported, 1},
        {cudaDevAttrMaxBlocksPerMultiprocessor, d.maxBlocksPerMultiProcessor},
        {cudaDevAttrMaxPersistingL2CacheSize, d.persistingL2CacheMaxSize},
        {cudaDevAttrMaxAccessPolicyWindowSize, d.accessPolicyMaxWindowSize},
        {cudaDevAttrReservedSharedMemoryPerBlock, small(d.reservedSharedMemPerBlock)},
        {cudaDevAttrMemoryPoolsSupported, 1},
        {cudaDevAttrClusterLaunch, d.clusterLaunch},
        {cudaDevAttrMemSyncDomainCount, 1},
        {cudaDevAttrNumaId, -1},
        {cudaDevAttrHostNumaId, -1},
    };
    auto found = known.find(which);
    *value = found == known.end() ? 0 : found->second;
    return which > 0 && which < cudaDevAttrMax;
}

cudaError_t get_limit(size_t* value, cudaLimit limit) {
    if (!value) return cudaErrorInvalidValue;
    if (limit == cudaLimitMallocHeapSize) { *value = device_heap_bytes; return cudaSuccess; }
    auto found = settings().limits.find(limit);
    if (found == settings().limits.end()) return cudaErrorUnsupportedLimit;
    *value = found->second;
    return cudaSuccess;
}

cudaError_t set_limit(cudaLimit limit, size_t value) {
    if (limit == cudaLimitMallocHeapSize) { device_heap_bytes = value; return cudaSuccess; }
    auto found = settings().limits.find(limit);
    if (found == settings().limits.end()) return cudaErrorUnsupportedLimit;
    found->second = value;     // stacks are sized by what kernels need: the others only answer questions
    return cudaSuccess;
}

}  // namespace
}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
    return call_always("cudaGetDeviceCount", [&]() -> cudaError_t {
        return give(count, 1);
    });
}

cudaError_t CUDARTAPI cudaSetDevice(int device) {
    return call("cudaSetDevice", [&] { return check_device(device); });
}

cudaError_t CUDARTAPI cudaInitDevice(int device, unsigned, unsigned) {
    return call("cudaInitDevice", [&] { return check_device(device); });
}

cudaError_t CUDARTAPI cudaSetValidDevices(int*, int) { return cudaSuccess; }

cudaError_t CUDARTAPI cudaChooseDevice(int* device, const cudaDeviceProp*) {
    return remember(give(device, 0));
}

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
    return call_always("cudaGetDevice", [&]() -> cudaError_t {
        return give(device, 0);
    });
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
    return call_always("cudaGetDeviceProperties", [&]() -> cudaError_t {
        if (cudaError_t error = check_device(device)) return error;
        return give(out, properties());
    });
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
    return call_always("cudaDeviceGetAttribute", [&]() -> cudaError_t {
        if (!value) return cudaErrorInvalidValue;
        if (cudaError_t error = check_device(device)) return error;
        return attribute(which, value) ? cudaSuccess : cudaErrorInvalidValue;
    });
}

cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char* out, int bytes, int device) {
    return call_always("cudaDeviceGetPCIBusId", [&]() -> cudaError_t {
        if (!out || bytes < 13) return cudaErrorInvalidValue;
        if (cudaError_t error = check_device(device)) return error;
        std::snprintf(out, static_cast<size_t>(bytes), "%s", PCI_BUS_ID);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaDeviceGetByPCIBusId(int* device, const char* id) {
    return call_always("cudaDeviceGetByPCIBusId", [&]() -> cudaError_t {
        if (!device || !id) return cudaErrorInvalidValue;
        if (std::strcmp(id, PCI_BUS_ID) != 0) return cudaErrorInvalidDevice;
        *device = 0;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
    return remember(give(version, VERSION));
}

cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

// ---- waiting, starting over -------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaDeviceSynchronize() {
    return call("cudaDeviceSynchronize", []() -> cudaError_t {
        if (cudaError_t error = refuse_unsafe()) return error;
        ++statistics().synchronizations;
        run_all();
        return device_error();
    });
}

// Forgets errors and what is queued.  Allocations stay: a program that resets the device has no more use for
// them.
cudaError_t CUDARTAPI cudaDeviceReset() {
    return call_always("cudaDeviceReset", []() -> cudaError_t {
        run_all();
        drop_all();
        set_device_error(cudaSuccess);
        forget_last_error();
        settings() = DeviceSettings();
        return cudaSuccess;
    });
}

// ---- settings ---------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaDeviceSetLimit(cudaLimit limit, size_t value) {
    return call("cudaDeviceSetLimit", [&] { return set_limit(limit, value); });
}

cudaError_t CUDARTAPI cudaDeviceGetLimit(size_t* value, cudaLimit limit) {
    return call("cudaDeviceGetLimit", [&] { return get_limit(value, limit); });
}

cudaError_t CUDARTAPI cudaDeviceSetCacheConfig(cudaFuncCache cache) {
    return call("cudaDeviceSetCacheConfig", [&] { settings().cache = cache; return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaDeviceGetCacheConfig(cudaFuncCache* cache) {
    return call("cudaDeviceGetCacheConfig", [&] { return give(cache, settings().cache); });
}

cudaError_t CUDARTAPI cudaDeviceSetSharedMemConfig(cudaSharedMemConfig) { return cudaSuccess; }

cudaError_t CUDARTAPI cudaDeviceGetSharedMemConfig(cudaSharedMemConfig* config) {
    return remember(give(config, cudaSharedMemBankSizeFourByte));
}

cudaError_t CUDARTAPI cudaSetDeviceFlags(unsigned flags) {
    return call("cudaSetDeviceFlags", [&]() -> cudaError_t {
        if (flags & ~static_cast<unsigned>(cudaDeviceMask)) return cudaErrorInvalidValue;
        settings().flags = flags;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGetDeviceFlags(unsigned* flags) {
    return call("cudaGetDeviceFlags", [&]() -> cudaError_t {
        return give(flags, settings().flags);
    });
}

cudaError_t CUDARTAPI cudaCtxResetPersistingL2Cache() { return cudaSuccess; }
cudaError_t CUDARTAPI cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTarget,
                                                         cudaFlushGPUDirectRDMAWritesScope) {
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDeviceGraphMemTrim(int device) { return remember(check_device(device)); }
cudaError_t CUDARTAPI cudaProfilerStart() { return cudaSuccess; }
cudaError_t CUDARTAPI cudaProfilerStop() { return cudaSuccess; }

// ---- other devices: there are none ------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int* can, int device, int peer) {
    return call("cudaDeviceCanAccessPeer", [&]() -> cudaError_t {
        if (!can) return cudaErrorInvalidValue;
        *can = 0;
        return device || peer ? cudaErrorInvalidDevice : cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaDeviceEnablePeerAccess(int, unsigned) { return remember(cudaErrorInvalidDevice); }
cudaError_t CUDARTAPI cudaDeviceDisablePeerAccess(int) { return remember(cudaErrorInvalidDevice); }

cudaChannelFormatDesc CUDARTAPI cudaCreateChannelDesc(int x, int y, int z, int w,
                                                      cudaChannelFormatKind kind) {
    return {x, y, z, w, kind};
}

}  // extern "C"
