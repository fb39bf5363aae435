// Addresses and names in the words of the source (describe.h).
#include "describe.h"

#include <cxxabi.h>

#include <cstdlib>

#include "watch.h"

namespace emu {

namespace {

using ull = unsigned long long;

bool power_of_two(uint32_t n) { return n && (n & (n - 1)) == 0; }

// "tile[12]" where offset and size are whole elements of that width; else "tile".
std::string element_text(const std::string& name, uint64_t offset, uint64_t size, uint32_t width) {
    if (!power_of_two(width) || width > 16 || offset % width || size % width) return name;
    return format("%s[%llu]", name.c_str(), static_cast<ull>(offset / width));
}

const Variable* shared_variable_before(const KernelDescriptor& kernel, uint64_t offset) {
    const Variable* best = nullptr;
    for (uint32_t i = 0; i < kernel.shared_count; ++i)
        if (kernel.shared[i].place <= offset && (!best || kernel.shared[i].place > best->place))
            best = &kernel.shared[i];
    return best;
}

struct SharedPlace {
    std::string name;
    uint64_t begin, bytes;
    bool dynamic;
};

SharedPlace shared_place(const Launch& launch, uint64_t offset) {
    const KernelDescriptor& kernel = *launch.kernel;
    const Variable* variable = shared_variable_before(kernel, offset);
    const bool dynamic = offset >= kernel.dynamic_shared_offset && (launch.dynamic_shared || !variable);
    if (dynamic || !variable)
        return {"dynamic shared memory", kernel.dynamic_shared_offset, launch.dynamic_shared, true};
    return {last_name(variable->name), variable->place, variable->bytes, false};
}

std::string rank_text(const Launch& launch, uint64_t offset, const Block* block) {
    const uint32_t rank = static_cast<uint32_t>(offset / WINDOW);
    return launch.explicit_cluster && block && rank * WINDOW != block->window
               ? format(" of block %u of the cluster", rank)
               : "";
}

std::string describe_shared(const Launch& launch, const Block* block, uint64_t offset, uint32_t width) {
    const SharedPlace place = shared_place(launch, offset % WINDOW);
    const uint64_t at = offset % WINDOW - place.begin;
    const std::string owner = rank_text(launch, offset, block);
    if (place.dynamic) {
        return format("byte %llu of the %llu bytes of dynamic shared memory%s", static_cast<ull>(at),
                      static_cast<ull>(place.bytes), owner.c_str());
    }
    return format("%s (byte %llu of %llu, shared%s)",
                  element_text(place.name, at, place.bytes, width).c_str(), static_cast<ull>(at),
                  static_cast<ull>(place.bytes), owner.c_str());
}

std::string describe_global(const Allocation& a, uintptr_t address) {
    const auto at = static_cast<long long>(address - reinterpret_cast<uintptr_t>(a.begin));
    return format("byte %lld of the %llu bytes of %s", at, static_cast<ull>(a.bytes), a.label.c_str());
}

uint64_t windows_bytes(const Launch& launch) {
    return static_cast<uint64_t>(WINDOW) * launch.cluster.x * launch.cluster.y * launch.cluster.z;
}

std::string outermost_text_before(const std::string& text, char bracket) {
    int depth = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == bracket && depth == 0 && i) return text.substr(0, i);
        depth += (text[i] == '<' || text[i] == '(') - (text[i] == '>' || text[i] == ')');
    }
    return text;
}

}    // namespace

const char* verb(uint32_t what) {
    if ((what & KIND) == ATOMIC) return "atomic";
    return (what & KIND) == WRITE ? "write" : "read";
}

std::string signature(const char* mangled) {
    int status = 0;
    char* text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    std::string result = status == 0 && text ? text : mangled;
    std::free(text);
    return result;
}

// Variables of functions demangle to "kernel(float*)::tile"; nvcc numbers equal names "tile__1" or prefixes
// "__shared__".
std::string last_name(const char* mangled) {
    std::string name = signature(mangled);
    const size_t colon = name.rfind("::");
    if (colon != std::string::npos) name = name.substr(colon + 2);
    return outermost_text_before(name, '(');
}

std::string dim_text(const Dim& d) { return format("(%u,%u,%u)", d.x, d.y, d.z); }

Dim thread_index(const Launch& launch, uint32_t linear) {
    const Dim& n = launch.block;
    return {linear % n.x, linear / n.x % n.y, linear / n.x / n.y};
}

Dim block_index(const Launch& launch, uint64_t linear) {
    const Dim& n = launch.grid;
    return {static_cast<uint32_t>(linear % n.x), static_cast<uint32_t>(linear / n.x % n.y),
            static_cast<uint32_t>(linear / n.x / n.y)};
}

std::string describe_place(const Launch& launch, const Block* block, const void* address, uint32_t width) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (block) {
        const uint64_t offset = at - reinterpret_cast<uintptr_t>(block->shared);
        if (offset < windows_bytes(launch)) return describe_shared(launch, block, offset, width);
    }
    const Allocation* found = memory_find(address);
    if (!found) found = memory_near(address);
    if (found) return describe_global(*found, at) + (found->freed ? " (freed)" : "");
    return at < (1 << 16) ? format("the null pointer plus %llu", static_cast<ull>(at))
                          : format("address 0x%llx", static_cast<ull>(at));
}

std::string describe_address(const Launch& launch, const Block* block, const void* address) {
    return describe_place(launch, block, address, 4);
}

std::string describe_shared_overrun(const Launch& launch, const Block& block, uintptr_t address,
                                    const Wanted& wanted) {
    const uint64_t offset = address - reinterpret_cast<uintptr_t>(block.shared);
    const std::string access = format("%s of %u bytes at", verb(wanted.what), wanted.bytes);
    if (offset >= windows_bytes(launch)) {
        return format("%s shared address 0x%llx, outside the block's shared memory", access.c_str(),
                      static_cast<ull>(offset));
    }
    const SharedPlace place = shared_place(launch, offset % WINDOW);
    const long long at = static_cast<long long>(offset % WINDOW - place.begin);
    if (place.dynamic && place.bytes == 0)
        return access + " dynamic shared memory, of which the launch gives none";
    if (place.dynamic) {
        return format("%s byte %lld of dynamic shared memory: past its end (%llu bytes)", access.c_str(), at,
                      static_cast<ull>(place.bytes));
    }
    const std::string name = element_text(place.name, static_cast<uint64_t>(at), place.bytes, wanted.bytes);
    if (name == place.name) {
        return format("%s byte %lld of %s: past its end (%llu bytes)", access.c_str(), at, name.c_str(),
                      static_cast<ull>(place.bytes));
    }
    return format("%s %s: past its end (%llu elements of %u bytes)", access.c_str(), name.c_str(),
                  static_cast<ull>(place.bytes / wanted.bytes), wanted.bytes);
}

std::string describe_global_overrun(const Launch& launch, const Block& block, uintptr_t address,
                                    const Wanted& wanted, const Allocation* near, bool freed) {
    const std::string access = format("%s of %u bytes at ", verb(wanted.what), wanted.bytes);
    if (freed) return access + describe_global(*near, address) + ", which was freed";
    if (near) {
        const bool before = address < reinterpret_cast<uintptr_t>(near->begin);
        return access + describe_global(*near, address) + (before ? ": before its start" : ": past its end");
    }
    if (address < (1 << 16)) return access + format("the null pointer plus %llu", static_cast<ull>(address));
    if (address - reinterpret_cast<uintptr_t>(block.shared) < windows_bytes(launch)) {
        return access + "a shared address, by an instruction for global memory";
    }
    if (in_arena(reinterpret_cast<void*>(address)))
        return access + format("0x%llx, which is in no allocation", static_cast<ull>(address));
    return access +
           format("0x%llx, which is not device memory: a host pointer, or another thread's local variable",
                  static_cast<ull>(address));
}

}    // namespace emu
