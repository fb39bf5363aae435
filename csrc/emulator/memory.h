// Device memory: one reserved range of addresses, allocations with inaccessible gaps around them, and what is
// known of each.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

enum class MemoryKind : uint32_t {
    device,
    managed,
    host,       // pinned: readable by kernels
    module,     // a __device__ or __constant__ variable
};

struct Allocation {
    char* begin;
    size_t bytes;
    MemoryKind kind;
    bool freed;                  // kept a while (quarantine) so that a use after free can be named
    uint64_t serial;             // the how-manieth allocation of the process
    std::string label;           // "cudaMalloc 3", "argument 1 (out)", "variable counter"
};

char* arena_begin();             // the reserved range; shadow memory is found by arithmetic from it
size_t arena_bytes();
inline bool in_arena(const void* p) {
    return static_cast<size_t>(static_cast<const char*>(p) - arena_begin()) < arena_bytes();
}

// filled with 0xFF; null when exhausted; 256-byte aligned
void* memory_allocate(size_t bytes, MemoryKind, std::string label);
bool memory_free(void*);                                              // false: not an allocation
void memory_label(void*, std::string label);
// the allocation that contains the address, or (freed) did; null
const Allocation* memory_find(const void*);
// the nearest one below or above within the guard gap; null
const Allocation* memory_near(const void*);
// memory not from the arena: module variables, cudaHostRegister
void memory_register(void* begin, size_t bytes, MemoryKind, std::string label);
void memory_unregister(void* begin);
size_t memory_in_use();
// what may be allocated in all: bounded by the machine's memory and the reserved range
size_t memory_capacity();

}  // namespace emu
