// Kernel launches and host functions (work.h).
#include <cstring>

#include "../memory.h"
#include "../profiles.h"
#include "../reports.h"
#include "call.h"
#include "statistics.h"
#include "work.h"

namespace emu::cudart {
namespace {

Dim dim(const dim3& d) { return {d.x, d.y, d.z}; }

uint32_t allowed_shared(const Kernel& kernel) {
    if (kernel.dynamic_shared >= 0) return static_cast<uint32_t>(kernel.dynamic_shared);
    return static_cast<uint32_t>(default_dynamic_shared(*kernel.descriptor));
}

}  // namespace

KernelWork::KernelWork(const KernelWork& other)
    : WorkOf<KernelWork>(other),
      kernel(other.kernel),
      grid(other.grid),
      block(other.block),
      cluster(other.cluster),
      shared(other.shared),
      cooperative(other.cooperative),
      priority(other.priority),
      arguments(other.arguments),
      own_bytes_(other.own_bytes_) {
    if (!own_bytes_.empty()) point();
}

LaunchRequest KernelWork::request() const {
    return {kernel->binary->module,
            kernel->descriptor,
            dim(grid),
            dim(block),
            dim(cluster),
            shared,
            arguments,
            cooperative};
}

cudaError_t KernelWork::check() {
    if (kernel->descriptor->parameter_count && !arguments) return cudaErrorInvalidValue;
    return static_cast<cudaError_t>(
        check_launch(request(), allowed_shared(*kernel), kernel->non_portable_cluster));
}

cudaError_t KernelWork::run() {
    ++statistics().launches;
    int error = launch(request());
    flush_print();
    return static_cast<cudaError_t>(error);
}

std::string KernelWork::describe() const { return "kernel " + kernel->name; }

void KernelWork::keep() {
    const KernelDescriptor& d = *kernel->descriptor;
    std::vector<char> bytes(d.parameter_bytes + 1);                     // never empty: that means "not kept"
    for (uint32_t i = 0; i < d.parameter_count; ++i)
        std::memcpy(&bytes[d.parameter_offsets[i]], arguments[i], d.parameter_sizes[i]);
    own_bytes_ = std::move(bytes);
    point();
}

void KernelWork::point() {
    const KernelDescriptor& d = *kernel->descriptor;
    own_pointers_.resize(d.parameter_count);
    for (uint32_t i = 0; i < d.parameter_count; ++i) own_pointers_[i] = &own_bytes_[d.parameter_offsets[i]];
    arguments = own_pointers_.data();
}

// Whatever in the parameters looks like an address of an allocation counts as one; structs may hold pointers
// anywhere.
std::vector<Range> KernelWork::ranges() const {
    std::vector<Range> found;
    const KernelDescriptor& d = *kernel->descriptor;
    for (uint32_t i = 0; i < d.parameter_count; ++i)
        for (uint32_t at = 0; at + sizeof(void*) <= d.parameter_sizes[i]; at += sizeof(void*)) {
            const void* value;
            std::memcpy(&value, static_cast<const char*>(arguments[i]) + at, sizeof value);
            const Allocation* a = memory_find(value);
            if (a && !a->freed) found.push_back({a->begin, a->bytes, true, false});
        }
    return found;
}

cudaError_t HostWork::run() {
    CallbackScope callback;
    ++statistics().host_functions;
    function(data);
    return cudaSuccess;
}

cudaError_t CallbackWork::run() {
    CallbackScope callback;
    ++statistics().host_functions;
    function(stream, device_error(), data);
    return cudaSuccess;
}

cudaError_t FreeWork::run() {
    ++statistics().frees;
    return memory_free(pointer) ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace emu::cudart
