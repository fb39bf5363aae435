// Which variable or allocation an access belongs to.  One that lies in none is reported, and the launch
// abandoned.
//
// Shared memory: an access must lie inside one declared variable or the dynamic part; red zones lie between
// them.  Global: inside one allocation, module variable or registered host range.  Local: inside one frame of
//        a function that now runs.
#include "describe.h"
#include "glance.h"
#include "memory.h"

namespace emu {

namespace {

constexpr uintptr_t NULL_PAGE = 1 << 16;    // an index added to a null pointer still lands here

const char* const INDEX_FIX =
    "Check the index against the size, or guard the access for the last, partly filled block.";

// ---- shared -----------------------------------------------------------------------------------------------

[[noreturn]] void fail_shared(Thread& t, uintptr_t address, const Wanted& wanted) {
    report(finding(t, "out_of_bounds", wanted.site,
                   describe_shared_overrun(*t.launch, *t.block, address, wanted),
                   t.launch->dynamic_shared
                       ? INDEX_FIX
                       : "Check the index; for extern __shared__ give the bytes as third launch argument."));
    abandon(t, CUDA_ILLEGAL_ADDRESS);
}

bool find_shared_extent(const Launch& launch, uint32_t offset, uint32_t bytes, Extent& extent) {
    const KernelDescriptor& kernel = *launch.kernel;
    if (inside(offset, bytes, kernel.dynamic_shared_offset, launch.dynamic_shared)) {
        extent = {kernel.dynamic_shared_offset, launch.dynamic_shared};
        return true;
    }
    for (uint32_t i = 0; i < kernel.shared_count; ++i) {
        if (!inside(offset, bytes, kernel.shared[i].place, kernel.shared[i].bytes)) continue;
        extent = {kernel.shared[i].place, kernel.shared[i].bytes};
        return true;
    }
    return false;
}

[[noreturn]] void fail_exited(Thread& t, uint32_t rank, uint32_t site) {
    report(finding(t, "out_of_bounds", site,
                   format("shared memory of block %u of the cluster, which has exited already", rank),
                   "End the kernel with a barrier of the cluster (cluster.sync()), so that no block leaves "
                   "while others use its memory."));
    abandon(t, CUDA_ILLEGAL_ADDRESS);
}

void locate_shared(Thread& t, uintptr_t address, const Wanted& wanted, Place& place) {
    BlockWatch& b = *t.block->watch;
    const uintptr_t from_base = address - b.shared;
    if (from_base >= b.windows_bytes) fail_shared(t, address, wanted);
    place = {&b, static_cast<uint32_t>(from_base % WINDOW)};
    Extent& extent = watcher().shared_extents[wanted.site % EXTENT_SLOTS];
    if (!inside(place.offset, wanted.bytes, extent.begin, extent.bytes) &&
        !find_shared_extent(*t.launch, place.offset, wanted.bytes, extent)) {
        fail_shared(t, address, wanted);
    }
    const uint32_t rank = static_cast<uint32_t>(from_base / WINDOW);
    if (rank * WINDOW == t.window) return;
    place.window = watch_of_rank(b, rank);
    if (!place.window || place.window->block->live == 0) fail_exited(t, rank, wanted.site);
}

// ---- local ------------------------------------------------------------------------------------------------

bool in_frame(const Thread& t, uintptr_t address, uint32_t bytes) {
    for (const LocalFrame* f = t.frames; f; f = f->outer)
        if (inside(address, bytes, reinterpret_cast<uintptr_t>(f->begin), f->bytes)) return true;
    return false;
}

bool in_parameters(const Launch& launch, uintptr_t address, uint32_t bytes) {
    return inside(address, bytes, reinterpret_cast<uintptr_t>(launch.parameters),
                  launch.kernel->parameter_bytes);
}

[[noreturn]] void fail_local(Thread& t, uintptr_t address, const Wanted& wanted) {
    const LocalFrame& frame = *t.frames;
    const long long at = static_cast<long long>(address - reinterpret_cast<uintptr_t>(frame.begin));
    report(finding(t, "out_of_bounds", wanted.site,
                   format("%s of %u bytes at byte %lld of the %llu bytes of the function's local variables",
                          verb(wanted.what), wanted.bytes, at, static_cast<unsigned long long>(frame.bytes)),
                   "Check the index into the thread's own array."));
    abandon(t, CUDA_ILLEGAL_ADDRESS);
}

// ---- global -----------------------------------------------------------------------------------------------

[[noreturn]] void fail_global(Thread& t, uintptr_t address, const Wanted& wanted, const Allocation* near) {
    const bool freed =
        near && near->freed && inside(address, 1, reinterpret_cast<uintptr_t>(near->begin), near->bytes);
    const char* kind = freed ? "use_after_free"
                       : address < NULL_PAGE || near || in_arena(reinterpret_cast<void*>(address))
                           ? "out_of_bounds"
                           : "host_pointer";
    const char* fix = freed ? "Free the memory only after the last kernel that uses it."
                      : address < NULL_PAGE
                          ? "Pass a pointer from cudaMalloc, and check that the allocation succeeded."
                      : kind[0] == 'h' ? "Pass memory from cudaMalloc, cudaMallocManaged or cudaMallocHost, "
                                         "or copy it to the device first."
                                       : INDEX_FIX;
    report(finding(t, kind, wanted.site,
                   describe_global_overrun(*t.launch, *t.block, address, wanted, near, freed), fix));
    abandon(t, CUDA_ILLEGAL_ADDRESS);
}

// True: remembered memory.  False: local variables or parameters.
bool find_global(Thread& t, uintptr_t address, const Wanted& wanted, Extent& extent) {
    if (in_frame(t, address, wanted.bytes) || in_parameters(*t.launch, address, wanted.bytes)) return false;
    const void* p = reinterpret_cast<const void*>(address);
    const Allocation* found = memory_find(p);
    if (!found || found->freed ||
        !inside(address, wanted.bytes, reinterpret_cast<uintptr_t>(found->begin), found->bytes)) {
        fail_global(t, address, wanted, found ? found : memory_near(p));
    }
    extent = {reinterpret_cast<uintptr_t>(found->begin), found->bytes};
    return true;
}

}    // namespace

bool locate_closely(Thread& t, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site,
                    Place& place) {
    const BlockWatch& b = *t.block->watch;
    const uint32_t space = what & (SHARED | GLOBAL | LOCAL | CONSTANT);
    if (space == SHARED || (space == 0 && address - b.shared < b.windows_bytes)) {
        locate_shared(t, address, {bytes, what, site}, place);
        return true;
    }
    if (space == LOCAL) {
        if (t.frames && !in_frame(t, address, bytes)) fail_local(t, address, {bytes, what, site});
        return false;
    }
    Extent& extent = watcher().global_extents[site % EXTENT_SLOTS];
    if (!inside(address, bytes, extent.begin, extent.bytes) &&
        !find_global(t, address, {bytes, what, site}, extent))
        return false;
    place = {nullptr, 0};
    return space != CONSTANT;
}

}    // namespace emu
