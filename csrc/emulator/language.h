// What PTX itself knows besides arithmetic: strong loads and stores, address spaces, clocks, calls through
// pointers, alloca.
// Part of device.h; only translated code uses it.
#pragma once
#include <new>

#include "device.h"

namespace emu {

// ---- strong loads and stores: blocks may run on several OS threads ----------------------------------------

template <class T> inline T load_strong(const char* address) {
    T value;
    __atomic_load(reinterpret_cast<const T*>(address), &value, __ATOMIC_ACQUIRE);
    return value;
}
template <class T> inline void store_strong(char* address, T value) {
    __atomic_store(reinterpret_cast<T*>(address), &value, __ATOMIC_RELEASE);
}

// ---- address spaces (isspacep) ----------------------------------------------------------------------------

inline bool is_within(uint64_t address, const void* begin, uint64_t bytes) {
    return address - reinterpret_cast<uint64_t>(begin) < bytes;
}
inline uint32_t cluster_blocks(const Thread& t) {
    return t.launch->cluster.x * t.launch->cluster.y * t.launch->cluster.z;
}
inline bool is_shared(const Thread& t, uint64_t address) {
    return is_within(address, t.shared + t.window, WINDOW);
}
inline bool is_cluster_shared(const Thread& t, uint64_t address) {
    return is_within(address, t.shared, uint64_t{WINDOW} * cluster_blocks(t));
}
inline bool is_parameter(const Thread& t, uint64_t address) {
    return is_within(address, t.launch->parameters, t.launch->kernel->parameter_bytes);
}
bool is_local(const Thread&, uint64_t address);         // on the thread's own stack
bool is_constant(const Thread&, uint64_t address);      // in a __constant__ variable of the running module
inline bool is_global(const Thread& t, uint64_t address) {
    return !is_cluster_shared(t, address) && !is_parameter(t, address) && !is_local(t, address) &&
           !is_constant(t, address);
}

// ---- special registers ------------------------------------------------------------------------------------

// Shared memory that the system keeps for cooperative groups (%reserved_smem_offset_1): zeros when a block
// begins, and its users order their accesses in ways of their own.  The translator gives it a name in
// parentheses.  Null: the kernel has none.
inline const Variable* system_shared(const KernelDescriptor& kernel) {
    for (uint32_t i = 0; i < kernel.shared_count; ++i)
        if (kernel.shared[i].name[0] == '(') return &kernel.shared[i];
    return nullptr;
}

// nanoseconds, as cycles of a 1 GHz device; whoever watches a clock lets others run
uint64_t device_clock(Thread&);
uint64_t global_timer(Thread&);
uint32_t hardware_warps();                 // %nwarpid: of the profile's multiprocessor
uint32_t hardware_multiprocessors();       // %nsmid
inline Dim cluster_count(const Thread& t) {
    const Dim &grid = t.launch->grid, &cluster = t.launch->cluster;
    return {grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z};
}

// ---- calls and memory from the stack ----------------------------------------------------------------------

inline Body called(uint64_t pointer) { return reinterpret_cast<Body>(pointer); }

struct FrameMark {                         // drops the frames of alloca when the function returns
    explicit FrameMark(Thread& t) : thread(t), frames(t.frames) {}
    ~FrameMark() { thread.frames = frames; }
    Thread& thread;
    LocalFrame* frames;
};

// The C++ side of alloca: `raw` has room for the piece, its alignment and the frame that describes it.
inline uint64_t local_piece(Thread& t, void* raw, uint64_t bytes, uint64_t alignment) {
    auto* frame = static_cast<LocalFrame*>(raw);
    const uint64_t after = reinterpret_cast<uint64_t>(frame + 1) + alignment - 1;
    char* begin = reinterpret_cast<char*>(after & ~(alignment - 1));
    ::new (static_cast<void*>(frame)) LocalFrame(t, begin, bytes);
    return reinterpret_cast<uint64_t>(begin);
}

}  // namespace emu
