// All that translated kernels see of the runtime: the thread they run as, and the calls that block, print or
// are watched.
//
// A translated instruction is one C++ statement over these functions and those of scalar.h, atomics.h,
// matrix.h and async.h.
// EMU_HOOKS=1 compiles the hooks in (modes check and count), EMU_HOOKS=0 leaves nothing of them (mode fast).
// Addresses: a shared address is the 32-bit offset from Thread::shared; all others are plain pointers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "descriptor.h"

#ifndef EMU_HOOKS
#define EMU_HOOKS 0
#endif

namespace emu {

constexpr uint32_t WARP = 32;
// bytes of shared address space per block: what a matrix descriptor can address
constexpr uint32_t WINDOW = 1u << 18;

struct Warp;      // runtime.h
struct AsyncState;    // async.cpp: copies in flight of one thread
struct BlockWatch;    // checker.cpp: what the checker and the counters know of one block

struct Dim { uint32_t x, y, z; };

struct LocalFrame;

struct Launch {                  // one kernel launch; translated code reads only this much of it
    Dim grid, block;             // %nctaid, %ntid
    Dim cluster;                 // blocks per cluster; 1,1,1 without clusters
    bool explicit_cluster;
    uint32_t dynamic_shared;     // bytes
    uint32_t static_shared;
    uint64_t serial;             // %gridid: counts launches of the process, from 1
    bool hooks;                  // the module was compiled with EMU_HOOKS
    bool check, count;           // what the hooks do
    const KernelDescriptor* kernel;
    const ModuleDescriptor* module;
    // %envreg1 (high half), %envreg2 (low half): the grid barrier's memory; 0: not a cooperative launch
    uint64_t grid_workspace;
    const char* parameters;      // the kernel's parameter buffer, kernel->parameter_bytes long
};

// one resident thread block; the runtime's Block state derives from it (runtime.h)
struct Block {
    Dim index;                   // %ctaid
    uint64_t linear;             // number within the grid
    Dim cluster_index;           // %clusterid
    Dim cluster_block;           // %cluster_ctaid
    uint32_t rank;               // %cluster_ctarank
    char* shared;                // base of the *cluster's* windows
    uint32_t window;             // shared address of this block's own window: rank * WINDOW
    Launch* launch;
    BlockWatch* watch = nullptr; // owned by checker.cpp; null where nothing is watched
};

struct Thread {                  // one CUDA thread; the runtime's Fiber derives from it (runtime.h)
    char* shared;                // = block->shared
    uint32_t window;             // = block->window; a static variable's shared address is window + its offset
    uint32_t x, y, z;            // %tid
    uint32_t linear;             // number within the block
    uint32_t lane;
    uint32_t spins;              // strong loads and atomics since the last switch
    int64_t* steps;              // what is left of the present slice of the step budget
    uint64_t* executions;        // a counter per basic block; null unless counting
    LocalFrame* frames;          // local-memory frames of the functions now running, innermost first
    Block* block;
    Warp* warp;
    Launch* launch;
    AsyncState* async;           // owned by async.cpp
};

// ---- control ----------------------------------------------------------------------------------------------

void yield(Thread&);                                       // let another thread run
// a slice of steps is used up: lets others run; ends the launch when the budget is spent
void out_of_steps(Thread&, uint32_t site);
// `exit`, where it is not the end of the kernel itself
[[noreturn]] void exit_thread(Thread&);
[[noreturn]] void trap(Thread&, uint32_t site);            // trap; also what `unreachable` code reaches
[[noreturn]] void assert_fail(Thread&, const char* message, const char* file, uint32_t line, const char* function,
                              uint32_t site);
uint32_t print(Thread&, const char* format, const char* arguments, uint32_t site);     // vprintf
void* device_malloc(Thread&, uint64_t bytes, uint32_t site);
void device_free(Thread&, void* pointer, uint32_t site);

// At every backward branch and call: the step budget, without which a kernel that never ends would never end.
// Steps are handed out in slices, so that threads take turns even in loops that never block.
inline void step(Thread& t, uint32_t site) { if (__builtin_expect(--*t.steps < 0, 0)) out_of_steps(t, site); }
// Before a strong load or an atomic: a thread that spins must let the one it waits for run.
inline void spin(Thread& t) { if (++t.spins & 7) return; *t.steps -= 64; yield(t); }

// ---- barriers and warp collectives (barrier.cpp, warp.cpp) ------------------------------------------------

enum class Reduction : uint32_t { popc, all, any };
void barrier_sync(Thread&, uint32_t id, uint32_t threads /* 0: all of the block */, uint32_t site);
void barrier_arrive(Thread&, uint32_t id, uint32_t threads, uint32_t site);
uint32_t barrier_reduce(Thread&, Reduction, uint32_t id, uint32_t threads, bool value, uint32_t site);
void cluster_arrive(Thread&, bool release, uint32_t site);
void cluster_wait(Thread&, bool acquire, uint32_t site);

void warp_sync(Thread&, uint32_t mask, uint32_t site);
enum class Shuffle : uint32_t { up, down, butterfly, index };
uint32_t shuffle(Thread&, Shuffle, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool* inside,
                 uint32_t site);
uint32_t ballot(Thread&, bool value, uint32_t mask, uint32_t site);
enum class Vote : uint32_t { all, any, uni };
bool vote(Thread&, Vote, bool value, uint32_t mask, uint32_t site);
uint32_t match_any(Thread&, uint64_t value, uint32_t mask, uint32_t site);
uint32_t match_all(Thread&, uint64_t value, uint32_t mask, bool* all, uint32_t site);
enum class Redux : uint32_t {
    add, min_u, max_u, min_s, max_s, bit_and, bit_or, bit_xor, min_f, max_f, min_abs_f, max_abs_f,
    min_nan_f, max_nan_f, min_abs_nan_f, max_abs_nan_f
};
uint32_t redux(Thread&, Redux, uint32_t value, uint32_t mask, uint32_t site);
uint32_t active_mask(Thread&, uint32_t site);
uint32_t elect(Thread&, uint32_t mask, bool* elected, uint32_t site);

// The general collective: when every lane of `mask` has arrived, the last one runs `operation` over all
// arguments (which lie on their threads' stacks), and all go on.  `group` lanes form one group: 32 a warp,
// 128 a warpgroup (mask ignored there).
using Collective = void (*)(uint32_t mask, Thread* const* threads, void* const* arguments, uint32_t site);
void collective(Thread&, uint32_t mask, Collective operation, void* argument, uint32_t site);
void warpgroup_collective(Thread&, Collective operation, void* argument, uint32_t site);

// ---- what the checker and the counters see (checker.cpp, counters.cpp) ------------------------------------

enum Access : uint32_t {         // `what` of an access: one kind, and flags
    READ = 0, WRITE = 1, ATOMIC = 2, KIND = 3,
    STRONG = 1 << 2,             // volatile, relaxed or stronger
    ACQUIRE = 1 << 3, RELEASE = 1 << 4,
    // the state space named; none: generic
    SHARED = 1 << 5, GLOBAL = 1 << 6, LOCAL = 1 << 7, CONSTANT = 1 << 8,
    SCOPE_BLOCK = 1 << 9,        // .cta; otherwise cluster, gpu or system
    MATRIX = 1 << 10,            // a row of ldmatrix/stmatrix: 16 bytes, phases of 8 lanes
    ASYNC_PROXY = 1 << 11,       // by the async proxy: wgmma operands, bulk copies
    // orders nothing by itself: mbarrier operations, which tell the checker when they do
    UNORDERED = 1 << 12,
};

void access(Thread&, const void* address, uint32_t bytes, uint32_t what, uint32_t site);
enum class Fence : uint32_t { block, cluster, device, system, proxy_async, proxy_alias, proxy_tensormap };
void fence(Thread&, Fence, uint32_t site);

struct LocalFrame {              // the local memory of one running function, for bounds
    LocalFrame(Thread& t, const char* b, uint64_t n) : thread(t), begin(b), bytes(n), outer(t.frames) {
        t.frames = this;
    }
    ~LocalFrame() { thread.frames = outer; }
    Thread& thread;
    const char* begin;
    uint64_t bytes;
    LocalFrame* outer;
};

#if EMU_HOOKS
#define EMU_ACCESS(thread, address, bytes, what, site) ::emu::access(thread, address, bytes, what, site)
#define EMU_EXECUTE(thread, basic_block) \
    do { if ((thread).executions) ++(thread).executions[basic_block]; } while (0)
#define EMU_FRAME(thread, begin, bytes) ::emu::LocalFrame frame_(thread, begin, bytes)
#else
#define EMU_ACCESS(thread, address, bytes, what, site) ((void)0)
#define EMU_EXECUTE(thread, basic_block) ((void)0)
#define EMU_FRAME(thread, begin, bytes) ((void)0)
#endif

struct b128 { uint64_t low, high; };      // a .b128 register

// ---- loads and stores -------------------------------------------------------------------------------------

template <class T> inline T load(const char* address) {
    T value;
    std::memcpy(&value, address, sizeof value);
    return value;
}
template <class T> inline void store(char* address, T value) { std::memcpy(address, &value, sizeof value); }
template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace emu

#include "language.h"
#include "formats.h"
#include "scalar.h"
#include "atomics.h"
#include "matrix.h"
#include "async.h"
