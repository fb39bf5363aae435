// Memory as host calls see it: which side an address belongs to, whether a range stays within its allocation,
// and what to say if not.
#include <algorithm>

#include "../memory.h"
#include "../reports.h"
#include "call.h"
#include "work.h"

namespace emu::cudart {
namespace {

constexpr const char* FIX_RANGE = "Compare the size given here (in bytes) with the size allocated.";

std::string title(const Allocation& a) { return format("the %zu bytes of %s", a.bytes, a.label.c_str()); }

cudaError_t reject_range(const Allocation& a, const void* p, size_t bytes, const char* verb) {
    long long offset = static_cast<const char*>(p) - a.begin;
    return reject(cudaErrorInvalidValue, "out_of_bounds",
                  format("%s %zu bytes from byte %lld of %s", verb, bytes, offset, title(a).c_str()),
                  FIX_RANGE);
}

cudaError_t reject_freed(const Allocation& a, const char* verb) {
    return reject(cudaErrorInvalidValue, "use_after_free",
                  format("%s %s, which has been freed", verb, title(a).c_str()),
                  "Free the memory after its last use.");
}

cudaError_t check_within(const Allocation& a, const void* p, size_t bytes, const char* verb) {
    if (a.freed) return reject_freed(a, verb);
    size_t offset = static_cast<size_t>(static_cast<const char*>(p) - a.begin);
    return bytes <= a.bytes - offset ? cudaSuccess : reject_range(a, p, bytes, verb);
}

}  // namespace

bool is_device_accessible(const void* p) {
    const Allocation* a = memory_find(p);
    return a && !a->freed;
}

bool is_device_only(const void* p) {
    const Allocation* a = memory_find(p);
    return a && (a->kind == MemoryKind::device || a->kind == MemoryKind::module);
}

std::string describe_memory(const void* p) {
    const Allocation* a = memory_find(p);
    if (!a) return format("address %p", p);
    return format("byte %td of %s", static_cast<const char*>(p) - a->begin, title(*a).c_str());
}

cudaError_t check_device_range(const void* p, size_t bytes, const char* verb) {
    if (const Allocation* a = memory_find(p)) return check_within(*a, p, bytes, verb);
    if (const Allocation* near = in_arena(p) ? memory_near(p) : nullptr)
        return near->freed ? reject_freed(*near, verb) : reject_range(*near, p, bytes, verb);
    return reject(cudaErrorInvalidValue, "host_pointer",
                  p ? format("%s %zu bytes at %p, which is not device memory", verb, bytes, p)
                    : format("%s at a null pointer", verb),
                  p ? "Pass a pointer from cudaMalloc on this side, or correct the cudaMemcpyKind."
                    : "Check the allocation's result.");
}

cudaError_t check_host_range(const void* p, size_t bytes, const char* verb) {
    if (!p)
        return reject(cudaErrorInvalidValue, "host_pointer", format("%s at a null pointer", verb),
                      "Check the host buffer.");
    const Allocation* a = memory_find(p);
    if (!a && in_arena(p)) return check_device_range(p, bytes, verb);
    if (!a) return cudaSuccess;
    if (a->kind == MemoryKind::device && !a->freed)
        return reject(cudaErrorInvalidValue, "host_pointer",
                      format("%s %s as host memory", verb, describe_memory(p).c_str()),
                      "That is device memory: correct the cudaMemcpyKind, or use cudaMemcpyDefault.");
    return check_within(*a, p, bytes, verb);
}

}  // namespace emu::cudart
