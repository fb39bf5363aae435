// The C interface (api.h) over the runtime: argument checks, the error text, ownership of returned strings.
#include "api.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "checker.h"
#include "counters.h"
#include "cudart/statistics.h"
#include "memory.h"
#include "profiles.h"
#include "reports.h"
#include "runtime.h"

using namespace emu;

namespace {

constexpr int ABI = 1;                       // raised with every change of api.h

std::string& last_error() {
    thread_local std::string text;
    return text;
}

int fail(const std::string& why, int code = CUDA_INVALID_VALUE) {
    last_error() = why;
    return code;
}

// Strings handed out stay valid until the same function is called again on this OS thread.
const char* keep(std::string& place, std::string text) {
    place = std::move(text);
    return place.c_str();
}

LoadedModule* module_of(void* handle) { return static_cast<LoadedModule*>(handle); }

// The allocation that holds the whole range, null for host memory.  False: the range is device memory in part
// only, or no more.
bool check_range(const char* what, const void* address, size_t bytes, const Allocation** found) {
    *found = memory_find(address);
    if (!*found) {
        if (!in_arena(address)) return true;
        fail(format("%s %p lies in device memory, but in no allocation", what, address));
        return false;
    }
    const Allocation& a = **found;
    if (a.freed) {
        fail(format("%s %p lies in %s, which has been freed", what, address, a.label.c_str()));
        return false;
    }
    const size_t offset = static_cast<size_t>(static_cast<const char*>(address) - a.begin);
    if (bytes <= a.bytes - offset) return true;
    fail(format("%s: %zu bytes from byte %zu on exceed the %zu bytes of %s", what, bytes, offset, a.bytes,
                a.label.c_str()));
    return false;
}

bool in_device_memory(const Allocation* a) { return a && a->kind != MemoryKind::host; }

void count_copy(const Allocation* to, const Allocation* from, size_t bytes) {
    Statistics& s = statistics();
    ++s.copies;
    if (in_device_memory(to)) (in_device_memory(from) ? s.bytes_on_device : s.bytes_to_device) += bytes;
    else if (in_device_memory(from)) s.bytes_to_host += bytes;
}

bool launch_arguments_ok(const LoadedModule* m, const char* kernel, const uint32_t* grid,
                         const uint32_t* block, void** args) {
    if (m && kernel && grid && block &&
        (args || !find_kernel(*m, kernel) || find_kernel(*m, kernel)->parameter_count == 0))
        return true;
    fail("emu_launch: a null pointer among the arguments");
    return false;
}

}  // namespace

int emu_abi(void) { return ABI; }

const char* emu_error(void) { return last_error().c_str(); }

int emu_configure(const char* text) {
    std::string why;
    return configure(text, &why) ? 0 : fail(why);
}

void* emu_module_load(const char* path) {
    std::string why;
    LoadedModule* m = load_module(path, &why);
    if (!m) fail(why);
    return m;
}

void emu_module_unload(void* module) { unload_module(module_of(module)); }

int emu_module_symbol(void* module, const char* name, void** address, size_t* bytes) {
    const ModuleDescriptor& d = *module_of(module)->descriptor;
    for (uint32_t i = 0; i < d.variable_count; ++i) {
        if (std::strcmp(d.variables[i].name, name) != 0) continue;
        *address = reinterpret_cast<void*>(d.variables[i].place);
        *bytes = d.variables[i].bytes;
        return 0;
    }
    return fail(format("the module has no variable %s", name));
}

void* emu_malloc(size_t bytes, const char* label) {
    void* memory = memory_allocate(bytes, MemoryKind::device, label ? label : "");
    if (!memory) fail(format("no device memory for %zu bytes (%zu in use)", bytes, memory_in_use()));
    else count_allocation(bytes);
    return memory;
}

int emu_free(void* pointer) {
    if (!memory_free(pointer)) return fail(format("%p is not an allocation", pointer));
    ++statistics().frees;
    return 0;
}

int emu_copy(void* destination, const void* source, size_t bytes) {
    const Allocation *to = nullptr, *from = nullptr;
    if (!check_range("the destination", destination, bytes, &to) ||
        !check_range("the source", source, bytes, &from))
        return CUDA_INVALID_VALUE;
    std::memmove(destination, source, bytes);
    if (to) checker_written(destination, bytes);
    count_copy(to, from, bytes);
    return 0;
}

int emu_fill(void* destination, int byte, size_t bytes) {
    const Allocation* to = nullptr;
    if (!check_range("the destination", destination, bytes, &to)) return CUDA_INVALID_VALUE;
    std::memset(destination, byte, bytes);
    if (to) checker_written(destination, bytes);
    return 0;
}

int emu_launch(void* module, const char* kernel, const uint32_t grid[3], const uint32_t block[3], void** args,
               size_t shared_bytes) {
    const LoadedModule* m = module_of(module);
    if (!launch_arguments_ok(m, kernel, grid, block, args)) return CUDA_INVALID_VALUE;
    const KernelDescriptor* k = find_kernel(*m, kernel);
    if (!k) return fail(format("the module has no kernel %s", kernel));
    LaunchRequest q{};
    q.module = m;
    q.kernel = k;
    q.grid = {grid[0], grid[1], grid[2]};
    q.block = {block[0], block[1], block[2]};
    q.dynamic_shared = static_cast<uint32_t>(std::min<size_t>(shared_bytes, UINT32_MAX));
    q.arguments = args;
    q.cooperative = options().cooperative;
    const size_t allowed = largest_dynamic_shared(*k);
    int error = check_launch(q, static_cast<uint32_t>(allowed), true);
    if (!error) error = launch(q);
    ++statistics().launches;
    flush_print();
    return error ? fail(format("launch of %s ended with error %d; the reports say why", kernel, error), error)
                 : 0;
}

const char* emu_reports(void) {
    thread_local std::string text;
    return keep(text, reports_json());
}

const char* emu_counters(void) {
    thread_local std::string text;
    return keep(text, counters_json());
}

const char* emu_statistics(void) {
    thread_local std::string text;
    return keep(text, statistics_json());
}

void emu_clear(void) {
    clear_reports();
    clear_counters();
    clear_statistics();
}
