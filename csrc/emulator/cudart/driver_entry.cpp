// cudaGetDriverEntryPoint: the way by which programs reach the few driver functions that the runtime has no
// call for. There is no driver here; what kernels need of it is served: tensor maps.
#include <cstring>

#include "../tensor_map.h"
#include "call.h"

namespace emu::cudart {
namespace {

struct Entry {
    const char* name;
    void* function;
};

int initialized(unsigned) { return 0; }

int driver_version(int* version) {
    *version = 13000;
    return 0;
}

const Entry ENTRIES[] = {
    {"cuTensorMapEncodeTiled", reinterpret_cast<void*>(&tensor_map_encode_tiled)},
    {"cuInit", reinterpret_cast<void*>(&initialized)},
    {"cuDriverGetVersion", reinterpret_cast<void*>(&driver_version)},
};

cudaError_t find_entry(const char* name, void** function, cudaDriverEntryPointQueryResult* status) {
    if (!name || !function) return cudaErrorInvalidValue;
    *function = nullptr;
    for (const Entry& entry : ENTRIES)
        if (!std::strcmp(entry.name, name)) *function = entry.function;
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    if (!*function)
        report_call("unsupported", std::string("the driver function ") + name + " is not emulated",
                    "Only cuTensorMapEncodeTiled is; leave this path out when running under the emulator.");
    return cudaSuccess;                      // as the runtime: the answer is in *status
}

}  // namespace
}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" {

cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                       unsigned long long,
                                                       cudaDriverEntryPointQueryResult* status) {
    return call("cudaGetDriverEntryPointByVersion", [&] { return find_entry(name, function, status); });
}

cudaError_t CUDARTAPI cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                              cudaDriverEntryPointQueryResult* status) {
    return call("cudaGetDriverEntryPoint", [&] { return find_entry(name, function, status); });
}

}  // extern "C"
