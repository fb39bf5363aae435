// Translated modules: loading, and finding what is in them.
#include <dlfcn.h>

#include <cstring>

#include "memory.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

// The descriptor, if the file is a translated module of this version; else null and the reason.
const ModuleDescriptor* read_descriptor(void* handle, const char* path, std::string* why) {
    const auto* descriptor = static_cast<const ModuleDescriptor*>(dlsym(handle, "emu_module"));
    if (!descriptor) {
        *why = format("%s is not a translated module: it has no symbol emu_module", path);
        return nullptr;
    }
    if (descriptor->version == DESCRIPTOR_VERSION) return descriptor;
    *why = format("%s was translated for version %u of the runtime, this is version %u: translate it again",
                  path, descriptor->version, DESCRIPTOR_VERSION);
    return nullptr;
}

bool in_device_memory(const Variable& v) { return v.space == Space::global || v.space == Space::constant; }

}  // namespace

LoadedModule* load_module(const char* path, std::string* why) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        *why = format("cannot load %s: %s", path, dlerror());
        return nullptr;
    }
    const ModuleDescriptor* d = read_descriptor(handle, path, why);
    if (!d) {
        dlclose(handle);
        return nullptr;
    }
    for (uint32_t i = 0; i < d->variable_count; ++i) {
        const Variable& v = d->variables[i];
        if (!in_device_memory(v)) continue;
        memory_register(reinterpret_cast<char*>(v.place), v.bytes, MemoryKind::module,
                        std::string("variable ") + v.name);
    }
    return new LoadedModule{handle, d, path};
}

void unload_module(LoadedModule* m) {
    if (!m) return;
    const ModuleDescriptor* d = m->descriptor;
    for (uint32_t i = 0; i < d->variable_count; ++i) {
        if (in_device_memory(d->variables[i]))
            memory_unregister(reinterpret_cast<char*>(d->variables[i].place));
    }
    // The code stays mapped: reports and counters name its kernels, files and lines by pointers into it.
    delete m;
}

const KernelDescriptor* find_kernel(const LoadedModule& m, const char* name) {
    for (uint32_t i = 0; i < m.descriptor->kernel_count; ++i) {
        if (std::strcmp(m.descriptor->kernels[i].name, name) == 0) return &m.descriptor->kernels[i];
    }
    return nullptr;
}

}  // namespace emu
