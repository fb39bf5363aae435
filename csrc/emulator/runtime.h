// The runtime's own state, which translated code sees only through the base structs of device.h.
//
//   Execution      one OS thread that runs blocks: stacks, windows of shared memory, the fiber that runs now
//   ResidentBlock  a thread block whose threads exist as fibers
//   Warp           32 lanes: who may run, who waits where.  All scheduling is done on its bit masks, never by
//   scanning threads Fiber          a CUDA thread
//
// A blocked lane has its bit in Warp::ready cleared; who releases it sets the bit again.  A release costs
// O(warps).
#pragma once
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "options.h"

namespace emu {

constexpr uint32_t BARRIERS = 16;             // named barriers of a block
constexpr uint32_t WARPGROUP = 128;           // threads

struct Execution;
struct ResidentBlock;
struct Cluster;

// Error codes of the CUDA runtime that a launch can end with.
enum CudaError : int {
    CUDA_SUCCESS = 0,
    CUDA_INVALID_VALUE = 1,
    CUDA_INVALID_CONFIGURATION = 9,
    CUDA_ILLEGAL_ADDRESS = 700,
    CUDA_OUT_OF_RESOURCES = 701,
    CUDA_LAUNCH_TIMEOUT = 702,
    CUDA_ASSERT = 710,
    CUDA_MISALIGNED_ADDRESS = 716,
    CUDA_LAUNCH_FAILURE = 719,
    CUDA_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
};

// ---- threads, warps, blocks -------------------------------------------------------------------------------

enum class Wait : uint8_t { none, barrier, collective, warpgroup, cluster, convergence };

struct Fiber : Thread {
    uint32_t stack;               // number in the pool
    bool cluster_arrived;         // between barrier.cluster.arrive and .wait
    uint32_t cluster_phase;       // of the cluster when it arrived
};

struct alignas(64) Warp {
    uint32_t ready;               // lanes that can run
    uint32_t live;                // lanes that exist and have not exited
    uint32_t yielded;             // ready lanes that spin: they wait for something another thread does
    uint32_t converging;          // lanes waiting in activemask
    uint32_t arrived;             // lanes waiting in a collective
    uint32_t strict;              // those of them whose collective needs every lane it names
    uint32_t populated;           // lanes that exist: all 32 except in the last warp
    uint32_t index;               // within the block
    uint32_t group_arrived;       // lanes of this warp waiting in a warpgroup collective
    ResidentBlock* block;
    Execution* execution;
    Fiber* fibers;                // of lane 0
    void* stack_pointers[WARP];   // saved by the switch; null: not started
    uint32_t sites[WARP];         // where a lane that is not ready waits,
    Wait waits[WARP];             // and in what
    // What each waiting lane brought to its collective; the result of the simple ones is left in values.
    uint32_t masks[WARP];
    Collective operations[WARP];
    void* arguments[WARP];
    uint64_t values[WARP];
    uint32_t controls[WARP];      // second operand: shuffle's lane and clamp
    Thread* threads[WARP];
    uint32_t waiting[BARRIERS];   // lanes that wait at each barrier
    uint32_t counted[BARRIERS];   // lanes that arrived in this phase, waiting or not (where a count is given)
};

struct Barrier {
    uint32_t arrived;             // threads, plus the dead lanes of warps that arrived as a whole
    uint32_t expected;            // threads; 0: all of the block that have not exited
    uint32_t site;                // of the first arrival of this phase
    uint32_t other_site;          // of an arrival elsewhere, or NO_SITE
    uint32_t voters, voted_true;  // of a reduction
    bool reducing;                // bar.red, which may not be mixed with bar.sync
    bool complained;
};

struct ResidentBlock : Block {
    uint32_t thread_count, warp_count;
    uint32_t live;                // threads that have not exited
    uint32_t ready_warps;         // warps with a ready lane
    uint32_t active_barriers;     // bit per barrier at which somebody has arrived
    Barrier barriers[BARRIERS];
    Cluster* cluster_state;
    Execution* execution;
    uint32_t slot;                // index in Execution::resident
    std::vector<Warp> warps;
    std::vector<Fiber> fibers;
    void* wgmma;                  // owned by wgmma.cpp
};

struct Cluster {                  // blocks that share windows; without clusters, one block
    uint32_t phase, arrived, live;
    std::vector<ResidentBlock*> blocks;
};

// ---- a launch and those who run it ------------------------------------------------------------------------

struct LoadedModule {
    void* handle;
    const ModuleDescriptor* descriptor;
    std::string path;
};

struct LaunchRequest {
    const LoadedModule* module;
    const KernelDescriptor* kernel;
    Dim grid, block, cluster;     // cluster 0,0,0: none given
    uint32_t dynamic_shared;
    void** arguments;             // one pointer per parameter
    bool cooperative;
};

struct RunningLaunch : Launch {
    Options chosen;                               // as they were when the launch began
    bool cooperative;
    uint32_t blocks_per_cluster;
    uint64_t units;                               // clusters in the grid: what is handed out to OS threads
    uint64_t permutation_factor, permutation_offset;      // of the random block order
    uint64_t threads_per_block;
    std::atomic<uint64_t> next{0};
    std::atomic<int> error{0};                    // first failure; others stop at their next slice or block
    std::atomic<int64_t> steps_left{0};           // of an explicit budget
    std::vector<char> parameter_buffer;
    std::vector<uint64_t> executions;             // one counter per basic block of the module, while counting
};

struct Fault {                    // left by the signal handler for the code that reports it
    int signal;
    const void* address;
    bool known_address;
};

struct Execution {
    void* main_stack_pointer = nullptr;
    Fiber* current = nullptr;
    RunningLaunch* launch = nullptr;
    int64_t slice = 0;                            // Thread::steps points here
    int64_t slice_length = 0;
    int64_t steps_used = 0;                       // by the blocks resident now
    Schedule schedule = Schedule::forward;
    uint64_t random = 1;                          // state of the schedule's generator
    uint32_t accesses_left = 0;                   // until a random schedule switches at an access
    std::chrono::steady_clock::time_point began;  // of the blocks resident now
    std::vector<std::unique_ptr<ResidentBlock>> resident;     // slots; the first resident_count are in use
    uint32_t resident_count = 0;
    uint32_t unfinished = 0;                      // resident blocks with live threads
    uint32_t vain_turns = 0;                      // given up by spinning threads since the last block began
    std::vector<std::unique_ptr<Cluster>> clusters;
    StackPool stacks;
    Fault fault{};
    char* fault_stack = nullptr;
    // Shared memory: one reserved range, of which each block's window is opened as far as the kernel uses it.
    char* windows = nullptr;
    size_t windows_bytes = 0;
    uint32_t windows_open = 0;                    // clusters whose windows can be touched
    uint64_t windows_key = 0;

    ~Execution();
};

inline Fiber& fiber_of(Thread& t) { return static_cast<Fiber&>(t); }
inline ResidentBlock& block_of(const Thread& t) { return *static_cast<ResidentBlock*>(t.block); }
inline Execution& execution_of(const Thread& t) { return *t.warp->execution; }
inline RunningLaunch& launch_of(const Thread& t) { return *static_cast<RunningLaunch*>(t.launch); }
inline bool watched(const Thread& t) { return t.launch->hooks && (t.launch->check || t.launch->count); }

#pragma GCC visibility push(hidden)       // calls within the library need no indirection

// launch.cpp: runs to completion.  0 or a CudaError; reports say why.  The caller has called check_launch()
// (profiles.h).
int launch(const LaunchRequest&);
// the next cluster joins the resident ones; false: there is none, or no room
bool admit_next(Execution&);
// module.cpp
LoadedModule* load_module(const char* path, std::string* why);
void unload_module(LoadedModule*);
const KernelDescriptor* find_kernel(const LoadedModule&, const char* name);

// ---- scheduler.cpp ----------------------------------------------------------------------------------------

void run_resident(Execution&);    // runs the resident blocks until all threads exited or one was abandoned
void block_current(Thread&, Wait, uint32_t site); // the thread waits: runs others until it has been released
[[noreturn]] void abandon(Thread&, int cuda_error);      // leaves the fiber for good and ends the launch
uint64_t draw(Execution&);                        // next number of the schedule's random generator
void take_slice(Execution&);                      // of the step budget
void pass_turn(Thread&);          // yield() by a thread that does not wait for other blocks

inline void make_ready(Warp& w, uint32_t lanes) {
    w.ready |= lanes;
    w.block->ready_warps |= 1u << w.index;
}

// Random schedules also switch at accesses now and then, so that more interleavings are seen.  access() calls
// this first, before it looks at the access, so that the hook and the access it announces stay together.
void preempt_now(Thread&);
inline void preempt(Thread& t) {
    Execution& e = execution_of(t);
    if (e.schedule == Schedule::random && e.accesses_left-- == 0) preempt_now(t);
}

// ---- barrier.cpp, warp.cpp --------------------------------------------------------------------------------

void barriers_reset(ResidentBlock&);
void barriers_thread_exited(Fiber&);              // may complete barriers that waited for it only
void cluster_thread_exited(Fiber&);
void collectives_thread_exited(Fiber&);
bool converge(Warp&);                             // releases lanes in activemask; false: there are none

// ---- deadlock.cpp -----------------------------------------------------------------------------------------

void report_deadlock(Execution&);

// ---- faults.cpp -------------------------------------------------------------------------------------------

// While one exists, faults of fibers on this OS thread become reports.
class FaultGuard {
public:
    explicit FaultGuard(Execution&);
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
    FaultGuard& operator=(const FaultGuard&) = delete;

private:
    Execution* outer_;
};

// ---- print.cpp --------------------------------------------------------------------------------------------

void flush_print();                               // what kernels printed so far, to stdout
extern uint64_t device_heap_bytes;                // limit of malloc in kernels (cudaLimitMallocHeapSize)

// ---- texts ------------------------------------------------------------------------------------------------

std::string site_text(const Launch&, uint32_t site);          // "gemm.cu:41" or "PTX line 210"
std::string lanes_text(uint32_t lanes);                       // "0-3, 7"
inline const Site* site_of(const Launch& l, uint32_t site) {
    return site < l.module->site_count ? &l.module->sites[site] : nullptr;
}
inline const char* opcode_of(const Launch& l, uint32_t site) {
    const Site* s = site_of(l, site);
    return s ? s->opcode : "?";
}

#pragma GCC visibility pop

}  // namespace emu
