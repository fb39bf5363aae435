// State of the checker and the counters: of the process, of the launch under watch, of each resident block,
// of each thread.  Internal.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "counters.h"
#include "runtime.h"
#include "shadow.h"

namespace emu {

struct ThreadWatch {
    uint32_t actor = 0;
    uint32_t epoch = 0;    // stamps its accesses
    Ref<Clock> clock;      // known of its own block beyond BlockWatch::floor
    Ref<Blocks> others;    // known of other blocks
    Ref<Fenced> fenced;    // what it may publish
    AccessLog log;         // accesses not yet counted

    void begin(uint32_t actor, uint32_t epoch);
};

// What one thread brought to a barrier.
struct Knowledge {
    uint32_t thread = 0, epoch = 0;
    Ref<Clock> clock;
    Ref<Blocks> others;
    Ref<Fenced> fenced;
};

struct BarrierWatch {
    uint32_t pending = 0;    // epoch of those who arrived and run on; 0: nobody has arrived
    std::vector<Knowledge> arrived;
};

// What was released at an address for the threads of one block.
struct PublishedInBlock {
    uint32_t block;
    View view;             // of itself
    Ref<Blocks> others;    // and of others: order is handed on, whatever the scopes it came through
};

// What was released at an address.
struct Published {
    Ref<Blocks> everyone;                    // for all blocks
    std::vector<PublishedInBlock> blocks;    // at block scope
    Ref<Fenced> fenced;                      // of the block whose ordinal is next to it
    uint32_t fenced_block = 0;
};
using PublishedTable = std::unordered_map<uintptr_t, Published>;

struct Extent {    // an allocation or variable that an instruction touched last
    uintptr_t begin, bytes;
};

struct InFlight {    // an asynchronous operation between issue and landing
    uintptr_t address;
    uint32_t bytes, site, actor;
    bool write;
};

struct BlockWatch {
    explicit BlockWatch(size_t window) : shadow(window) {}
    ResidentBlock* block = nullptr;
    const Launch* launch = nullptr;
    bool check = false, count = false;
    bool random = false;    // the schedule also switches at accesses
    bool met = false;       // the last barrier was one of all threads
    bool ended = false;     // all threads have exited
    uint32_t ordinal = 0;
    uint32_t first = 0;      // tick at which it began
    uint32_t floor = 0;      // tick of the last barrier of all its threads
    uintptr_t shared = 0;    // base of the cluster's windows
    uintptr_t own_window = 0;
    uint32_t windows_bytes = 0;    // of the whole cluster
    // in its window: the system's own shared memory, in which no races are looked for
    Extent system{};
    SharedShadow shadow;
    std::vector<ThreadWatch> threads;
    BarrierWatch barriers[BARRIERS];
    BarrierWatch cluster_barrier;
    Knowledge cluster_phase;     // what those who wait for the cluster's last barrier learn
    PublishedTable published;    // at addresses in its window
};

// One site slot per instruction, modulo this: enough that the hot loop's instructions rarely share one.
constexpr uint32_t EXTENT_SLOTS = 1024;

struct Watcher {
    GlobalShadow global;
    uint32_t tick = 1;
    uint32_t first = 1;                 // tick at which the launch began
    uint64_t newest_allocation = 0;     // serial
    uint64_t trusted_allocation = 0;    // older ones may have been written by kernels that were not watched
    std::vector<uint64_t> ordinals;     // block number in the grid by ordinal
    std::vector<std::unique_ptr<BlockWatch>> idle;
    std::vector<std::unique_ptr<BlockWatch>> active;
    std::unordered_map<const char*, std::vector<BlockWatch*>>
        clusters;                           // by base of the windows: watches by rank
    PublishedTable published;               // at global addresses
    std::vector<InFlight> in_flight;        // a token is an index + 1
    std::vector<uint32_t> landed;           // free indices
    Extent shared_extents[EXTENT_SLOTS];    // begin: offset in the window
    Extent global_extents[EXTENT_SLOTS];

    uint32_t next_tick() { return __builtin_expect(tick < UINT32_MAX, 1) ? ++tick : out_of_ticks(); }
    uint32_t out_of_ticks();    // no more race checks in this launch
};

Watcher* make_watcher();
inline Watcher& watcher() {    // never destroyed: memory is freed while the process ends
    static Watcher* const instance = make_watcher();
    return *instance;
}

inline ThreadWatch& watch_of(const Thread& t) { return t.block->watch->threads[t.linear]; }
BlockWatch* watch_of_rank(const BlockWatch&,
                          uint32_t rank);    // another block of the cluster; null: there is none

// ---- ordering (ordering.cpp) ------------------------------------------------------------------------------

// Did what `actor` did at `epoch` happen before what thread `me` does now?
inline bool happened_before(const BlockWatch& block, const ThreadWatch& me, uint32_t actor, uint32_t epoch) {
    if (block_of_actor(actor) == block.ordinal) {
        return actor == me.actor || epoch < block.floor ||
               (me.clock && me.clock->knows(thread_of_actor(actor), epoch));
    }
    if (!me.others) return false;
    const View* view = me.others->find(block_of_actor(actor));
    return view && view->knows(thread_of_actor(actor), epoch);
}

void publish(Thread&, uintptr_t address, bool release, bool block_scope);    // a strong store or atomic
void import(Thread&, uintptr_t address, bool block_scope);                   // a strong load or atomic

// ---- places (bounds.cpp) ----------------------------------------------------------------------------------

struct Place {             // where an access goes
    BlockWatch* window;    // shared: whose window; null: global memory
    uint32_t offset;       // in the window
};

// ---- cells (races.cpp) ------------------------------------------------------------------------------------

struct Accessor {    // one access, as the cells see it
    Thread& thread;
    BlockWatch& block;
    ThreadWatch& me;
    uintptr_t address;    // as announced
    uint32_t bytes, what, site;
    bool in_window;    // shared memory
    uint32_t first;    // records before this tick are void
    Chunks& chunks;
};

void mark_in_flight(Thread&, const Place&, const InFlight&);
void unmark_in_flight(Thread&, const Place&, const InFlight&,
                      bool record);    // record: what it did is an access now
void report_race(const Accessor&, uint32_t actor, uint32_t info);
void report_uninitialized(const Accessor&);
void report_unfenced_proxy(const Accessor&, uint32_t actor, uint32_t info);

}    // namespace emu
