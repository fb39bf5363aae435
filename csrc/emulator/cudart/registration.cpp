// registration.h, and the entry points that nvcc's host code calls to register and to configure launches.
#include "registration.h"

#include <cstring>
#include <fstream>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../memory.h"
#include "../reports.h"
#include "call.h"
#include "translation.h"

namespace emu::cudart {
namespace {

constexpr uint32_t WRAPPER_MAGIC = 0x466243b1, IMAGE_MAGIC = 0xba55ed50;

struct Wrapper {                             // what __cudaRegisterFatBinary is given
    uint32_t magic, version;                 // version 2: linked from relocatable parts
    const char* image;
    const void* parts;
};

struct ImageHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;                          // that follow the header
};

struct Configuration {                       // of one <<<>>>
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

struct Registry {
    std::vector<std::unique_ptr<FatBinary>> binaries;
    std::unordered_map<const void*, std::unique_ptr<Kernel>> kernels;      // by host stub
    std::unordered_map<const void*, Kernel*> handles;     // by cudaKernel_t, which is the Kernel itself
    std::unordered_map<const void*, std::unique_ptr<Symbol>> symbols;      // by host variable
};

Registry& registry() {                       // never destroyed: programs unregister while they end
    static auto* instance = new Registry;
    return *instance;
}

// Of this thread; never destroyed, as destructors of the program may launch kernels.
std::vector<Configuration>& configurations() {
    thread_local auto* stack = new std::vector<Configuration>;
    return *stack;
}

FatBinary* read_wrapper(const void* given) {
    auto binary = std::make_unique<FatBinary>();
    Wrapper wrapper{};
    std::memcpy(&wrapper, given, sizeof wrapper);
    ImageHeader header{};
    if (wrapper.magic == WRAPPER_MAGIC && wrapper.image) std::memcpy(&header, wrapper.image, sizeof header);
    if (header.magic == IMAGE_MAGIC) {
        binary->image = wrapper.image;
        binary->bytes = header.header_bytes + header.bytes;
    }
    binary->relocatable = wrapper.version > 1;
    registry().binaries.push_back(std::move(binary));
    return registry().binaries.back().get();
}

cudaError_t load(FatBinary& binary, std::string* why) {
    if (binary.relocatable) {
        *why = "it was built with -rdc=true (relocatable device code); build it without";
        return cudaErrorNotSupported;
    }
    if (!binary.image) {
        *why = "it is no fat binary of a known form";
        return cudaErrorInvalidKernelImage;
    }
    return translate(binary.image, binary.bytes, &binary.module, why);
}

cudaError_t ensure_loaded(FatBinary& binary, const std::string& user) {
    if (binary.tried) return binary.error;
    binary.tried = true;
    std::string why;
    binary.error = load(binary, &why);
    if (binary.error)
        report_call("translation", "the device code of " + user + " cannot be run: " + why,
                    "Every later use of this code fails with the same error.");
    return binary.error;
}

const Variable* find_variable(const LoadedModule& module, const std::string& name) {
    const ModuleDescriptor& d = *module.descriptor;
    for (uint32_t i = 0; i < d.variable_count; ++i)
        if (name == d.variables[i].name) return &d.variables[i];
    return nullptr;
}

cudaError_t ensure_symbol(Symbol& symbol) {
    if (symbol.address) return cudaSuccess;
    if (cudaError_t error = ensure_loaded(*symbol.binary, "variable " + symbol.name)) return error;
    const Variable* variable = find_variable(*symbol.binary->module, symbol.name);
    if (!variable) return cudaErrorInvalidSymbol;
    symbol.address = reinterpret_cast<char*>(variable->place);
    if (symbol.managed) *symbol.managed = symbol.address;
    return cudaSuccess;
}

// Kernels that could not be translated are left out of the module; a file beside it says why.
cudaError_t report_missing(const Kernel& kernel) {
    std::string file = kernel.binary->module->path;
    std::ifstream refused(file.substr(0, file.rfind('/') + 1) + "refused.txt");
    std::string line, why;
    while (std::getline(refused, line)) why += (why.empty() ? ": " : "; ") + line;
    return reject(cudaErrorInvalidDeviceFunction, "unsupported",
                  "kernel " + kernel.name + " is not in the translated module" + why,
                  "Rewrite what the emulator refuses, or run this kernel on a GPU.");
}

// The program reads and writes the variable next, without asking: where there is no module, it gets memory of
// its own.
void prepare_managed(Symbol& symbol) {
    if (remember(ensure_symbol(symbol)) == cudaSuccess || *symbol.managed) return;
    *symbol.managed = memory_allocate(symbol.bytes, MemoryKind::managed, "variable " + symbol.name);
    if (*symbol.managed) std::memset(*symbol.managed, 0, symbol.bytes);
}

template <class Map> void forget(Map& map, const FatBinary* binary) {
    for (auto entry = map.begin(); entry != map.end();)
        entry = entry->second->binary == binary ? map.erase(entry) : std::next(entry);
}

// The module stays loaded: reports refer to its lines, and they are written after the program unregistered.
void forget_binary(FatBinary* binary) {
    Registry& r = registry();
    forget(r.handles, binary);
    forget(r.kernels, binary);
    forget(r.symbols, binary);
    for (auto entry = r.binaries.begin(); entry != r.binaries.end(); ++entry)
        if (entry->get() == binary) { r.binaries.erase(entry); return; }
}

void add_symbol(void** binary, const void* host, const char* name, size_t bytes, void** managed) {
    auto symbol =
        std::make_unique<Symbol>(Symbol{reinterpret_cast<FatBinary*>(binary), name, bytes, managed, nullptr});
    registry().symbols[host] = std::move(symbol);
}

Kernel* registered_kernel(const void* function) {
    Registry& r = registry();
    auto found = r.kernels.find(function);
    if (found != r.kernels.end()) return found->second.get();
    auto handle = r.handles.find(function);
    return handle == r.handles.end() ? nullptr : handle->second;
}

Symbol* registered_symbol(const void* host) {
    auto& symbols = registry().symbols;
    auto found = symbols.find(host);
    if (found != symbols.end()) return found->second.get();
    for (auto& entry : symbols)              // &variable of a __managed__ one is its address on the device
        if (entry.second->managed && entry.second->address && entry.second->address == host)
            return entry.second.get();
    return nullptr;
}

}  // namespace

cudaError_t find_kernel(const void* function, Kernel** kernel) {
    *kernel = registered_kernel(function);
    if (!*kernel) return cudaErrorInvalidDeviceFunction;
    Kernel& k = **kernel;
    if (k.descriptor) return cudaSuccess;
    if (cudaError_t error = ensure_loaded(*k.binary, "kernel " + k.name)) return error;
    k.descriptor = emu::find_kernel(*k.binary->module, k.name.c_str());
    return k.descriptor ? cudaSuccess : report_missing(k);
}

cudaError_t find_symbol(const void* host_variable, Symbol** symbol) {
    *symbol = registered_symbol(host_variable);
    return *symbol ? ensure_symbol(**symbol) : cudaErrorInvalidSymbol;
}

}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" {

void** CUDARTAPI __cudaRegisterFatBinary(void* wrapper) {
    CallScope scope("__cudaRegisterFatBinary");
    return reinterpret_cast<void**>(read_wrapper(wrapper));
}

void CUDARTAPI __cudaRegisterFatBinaryEnd(void**) {}

void CUDARTAPI __cudaUnregisterFatBinary(void** binary) {
    CallScope scope("__cudaUnregisterFatBinary");
    forget_binary(reinterpret_cast<FatBinary*>(binary));
}

void CUDARTAPI __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*,
                                      uint3*, dim3*, dim3*, int*) {
    CallScope scope("__cudaRegisterFunction");
    auto kernel = std::make_unique<Kernel>(Kernel{reinterpret_cast<FatBinary*>(binary), host, name});
    registry().handles[kernel.get()] = kernel.get();
    registry().kernels[host] = std::move(kernel);
}

void CUDARTAPI __cudaRegisterVar(void** binary, char* host, char*, const char* name, int, size_t bytes, int,
                                 int) {
    CallScope scope("__cudaRegisterVar");
    add_symbol(binary, host, name, bytes, nullptr);
}

void CUDARTAPI __cudaRegisterHostVar(void** binary, const char* name, char* host, size_t bytes) {
    CallScope scope("__cudaRegisterHostVar");
    add_symbol(binary, host, name, bytes, nullptr);
}

void CUDARTAPI __cudaRegisterManagedVar(void** binary, void** host, char*, const char* name, int,
                                        size_t bytes, int, int) {
    CallScope scope("__cudaRegisterManagedVar");
    add_symbol(binary, host, name, bytes, host);
}

void CUDARTAPI __cudaRegisterUnifiedTable(void**, void*) {}

// Called before the program first touches a __managed__ variable: from here on its pointer is valid.
char CUDARTAPI __cudaInitModule(void** binary) {
    CallScope scope("__cudaInitModule");
    for (auto& entry : registry().symbols)
        if (entry.second->managed && reinterpret_cast<void**>(entry.second->binary) == binary)
            prepare_managed(*entry.second);
    return 1;
}

unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    configurations().push_back({grid, block, shared, stream});
    return 0;
}

cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    if (configurations().empty()) return remember(cudaErrorMissingConfiguration);
    const Configuration& top = configurations().back();
    *grid = top.grid;
    *block = top.block;
    *shared = top.shared;
    *static_cast<cudaStream_t*>(stream) = top.stream;
    configurations().pop_back();
    return cudaSuccess;
}

cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t* handle, const void* host) {
    return call_always("__cudaGetKernel", [&]() -> cudaError_t {
        Kernel* kernel = registered_kernel(host);
        if (!kernel) return cudaErrorInvalidDeviceFunction;
        *handle = reinterpret_cast<cudaKernel_t>(kernel);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaGetKernel(cudaKernel_t* handle, const void* host) {
    return __cudaGetKernel(handle, host);
}

cudaError_t CUDARTAPI cudaGetFuncBySymbol(cudaFunction_t* function, const void* host) {
    return __cudaGetKernel(reinterpret_cast<cudaKernel_t*>(function), host);
}

}  // extern "C"
