// Memory pools: enough for programs that create one, set its release threshold and allocate from it.  All
// pools share the device's memory; what they hold back is not modelled, so nothing is ever reserved.
#include <map>
#include <unordered_set>

#include "../memory.h"
#include "call.h"
#include "statistics.h"

namespace emu::cudart {
namespace {

struct Pool {
    std::map<int, uint64_t> attributes;
};

Pool& default_pool() {
    static auto* pool = new Pool;
    return *pool;
}

Pool*& current_pool() {
    static Pool* pool = &default_pool();
    return pool;
}

std::unordered_set<const void*>& pools() {
    static auto* known = new std::unordered_set<const void*>{&default_pool()};
    return *known;
}

template <class Body> cudaError_t with_pool(const char* name, cudaMemPool_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        return pools().count(handle) ? body(*reinterpret_cast<Pool*>(handle)) : cudaErrorInvalidValue;
    });
}

bool is_wide(cudaMemPoolAttr attribute) {            // the others are ints
    return attribute != cudaMemPoolReuseFollowEventDependencies &&
           attribute != cudaMemPoolReuseAllowOpportunistic &&
           attribute != cudaMemPoolReuseAllowInternalDependencies;
}

uint64_t initial(cudaMemPoolAttr attribute) {
    switch (attribute) {
        case cudaMemPoolAttrReservedMemCurrent: case cudaMemPoolAttrUsedMemCurrent: return memory_in_use();
        case cudaMemPoolAttrReservedMemHigh: case cudaMemPoolAttrUsedMemHigh: return statistics().peak_bytes;
        default: return is_wide(attribute) ? 0 : 1;
    }
}

}  // namespace
}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaMemPoolCreate(cudaMemPool_t* out, const cudaMemPoolProps* properties) {
    return call("cudaMemPoolCreate", [&]() -> cudaError_t {
        if (!out || !properties) return cudaErrorInvalidValue;
        if (properties->handleTypes != cudaMemHandleTypeNone)
            return unsupported("sharing a memory pool between processes");
        auto* pool = new Pool;
        pools().insert(pool);
        *out = reinterpret_cast<cudaMemPool_t>(pool);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaMemPoolDestroy(cudaMemPool_t handle) {
    return with_pool("cudaMemPoolDestroy", handle, [](Pool& pool) -> cudaError_t {
        if (&pool == &default_pool()) return cudaErrorInvalidValue;
        if (current_pool() == &pool) current_pool() = &default_pool();
        pools().erase(&pool);
        delete &pool;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int device) {
    return call("cudaDeviceGetDefaultMemPool", [&]() -> cudaError_t {
        if (device) return cudaErrorInvalidDevice;
        return give(out, reinterpret_cast<cudaMemPool_t>(&default_pool()));
    });
}

cudaError_t CUDARTAPI cudaDeviceGetMemPool(cudaMemPool_t* out, int device) {
    return call("cudaDeviceGetMemPool", [&]() -> cudaError_t {
        if (device) return cudaErrorInvalidDevice;
        return give(out, reinterpret_cast<cudaMemPool_t>(current_pool()));
    });
}

cudaError_t CUDARTAPI cudaDeviceSetMemPool(int device, cudaMemPool_t handle) {
    return with_pool("cudaDeviceSetMemPool", handle, [&](Pool& pool) -> cudaError_t {
        if (device) return cudaErrorInvalidDevice;
        current_pool() = &pool;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaMemPoolTrimTo(cudaMemPool_t handle, size_t) {
    return with_pool("cudaMemPoolTrimTo", handle, [](Pool&) { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaMemPoolSetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
    return with_pool("cudaMemPoolSetAttribute", handle, [&](Pool& pool) -> cudaError_t {
        if (!value) return cudaErrorInvalidValue;
        pool.attributes[attribute] = is_wide(attribute) ? *static_cast<uint64_t*>(value)
                                                        : static_cast<uint64_t>(*static_cast<int*>(value));
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaMemPoolGetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
    return with_pool("cudaMemPoolGetAttribute", handle, [&](Pool& pool) -> cudaError_t {
        if (!value) return cudaErrorInvalidValue;
        auto set = pool.attributes.find(attribute);
        uint64_t known = set == pool.attributes.end() ? initial(attribute) : set->second;
        if (is_wide(attribute)) *static_cast<uint64_t*>(value) = known;
        else *static_cast<int*>(value) = static_cast<int>(known);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaMemPoolSetAccess(cudaMemPool_t handle, const cudaMemAccessDesc*, size_t) {
    return with_pool("cudaMemPoolSetAccess", handle, [](Pool&) { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t handle,
                                           cudaMemLocation*) {
    return with_pool("cudaMemPoolGetAccess", handle,
                     [&](Pool&) { return give(flags, cudaMemAccessFlagsProtReadWrite); });
}

}  // extern "C"
