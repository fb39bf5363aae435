// The devices that can be emulated: what a program may ask about them, and the limits a launch must keep.
// Chosen by Options::arch ("sm_80", "sm_90a", ...).  Figures: CUDA C++ programming guide, "Compute
// Capabilities", and the vendors' data sheets for the parts named.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

struct LaunchRequest;        // runtime.h
struct KernelDescriptor;

struct Profile {
    const char* name;                    // "sm_80"
    const char* device;                  // a part of that architecture
    int major, minor;
    int multiprocessors;
    int threads_per_multiprocessor;
    int blocks_per_multiprocessor;
    size_t shared_per_multiprocessor;    // bytes
    size_t shared_per_block_optin;       // bytes, with cudaFuncAttributeMaxDynamicSharedMemorySize
    size_t shared_reserved_per_block;    // bytes the system takes of each resident block
    size_t shared_granularity;           // bytes
    size_t l2_bytes;
    size_t persisting_l2_bytes;
    size_t memory_bytes;                 // of the real part; less is offered where the host has less
    int memory_bus_bits;
    int memory_clock_khz;
    int clock_khz;
    int single_to_double;                // fp32 throughput over fp64 throughput
    int copy_engines;
    bool clusters;

    static constexpr int WARP_SIZE = 32;
    static constexpr int MAX_THREADS_PER_BLOCK = 1024;
    static constexpr int MAX_BLOCK_Z = 64;
    static constexpr uint32_t MAX_GRID_X = 0x7fffffff;
    static constexpr uint32_t MAX_GRID_YZ = 65535;
    static constexpr size_t SHARED_PER_BLOCK = 48 << 10;
    static constexpr size_t CONSTANT_BYTES = 64 << 10;
    static constexpr int REGISTERS_PER_BLOCK = 65536;
    static constexpr int REGISTERS_PER_MULTIPROCESSOR = 65536;
    static constexpr int REGISTERS_PER_THREAD = 255;
    static constexpr int REGISTER_GRANULARITY = 256;     // registers are given to warps in these units
    static constexpr int WARP_GRANULARITY = 4;           // warps of a block, by scheduler
    static constexpr int PORTABLE_CLUSTER =
        8;     // blocks; more only where the kernel allows a non-portable size
    static constexpr int LARGEST_CLUSTER = 16;
};

const Profile& profile();                     // of options().arch
const Profile* find_profile(const char* arch);   // null: no such device here
size_t
device_memory_bytes();     // offered by the emulated device: the part's memory, or what the host can give

// Dynamic shared memory this kernel may ask for without and with the opt-in.
size_t default_dynamic_shared(const KernelDescriptor&);
size_t largest_dynamic_shared(const KernelDescriptor&);

// 0, or the cudaError code with which the runtime refuses the launch; then a report of kind invalid_launch
// names the limit. dynamic_shared_allowed: what cudaFuncSetAttribute granted, or largest_dynamic_shared()
// where the caller opts in by itself.
int check_launch(const LaunchRequest&, uint32_t dynamic_shared_allowed, bool non_portable_cluster = false);

struct Occupancy {
    int blocks;                  // resident per multiprocessor
    const char* limit;     // what keeps it from being more: "threads", "blocks", "registers", "shared memory"
};
Occupancy occupancy(const Profile&, int threads_per_block, int registers_per_thread, size_t shared_per_block);

// The same for a kernel, by what its descriptor tells; where its registers are unknown they are no limit
// beyond .maxntid.
Occupancy occupancy(const KernelDescriptor&, int threads_per_block, size_t dynamic_shared);

}  // namespace emu
