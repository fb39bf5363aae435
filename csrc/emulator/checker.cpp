// The checker's life: launches, blocks, accesses, memory.  Its parts:
//   clocks.h    vector clocks            ordering.cpp   what orders: barriers, fences, flags
//   shadow.h    what memory remembers    races.cpp      accesses against that memory
//   bounds.cpp  variables, allocations   findings.cpp   the texts
//
// Watched launches run on one OS thread, one at a time, so nothing here is locked.
#include "checker.h"

#include <algorithm>
#include <cstring>

#include "findings.h"
#include "glance.h"

namespace emu {

namespace {

constexpr uint32_t TICK_LIMIT = 3u << 30;    // a launch that begins later than this starts time anew

void forget_everything(Watcher& w) {
    w.global.forget();
    w.idle.clear();    // with their shadows of shared memory
    w.tick = 1;
}

void begin_clusters_window(Watcher& w, BlockWatch& b, const Block& block) {
    std::vector<BlockWatch*>& ranks = w.clusters[block.shared];
    if (ranks.size() <= block.rank) ranks.resize(block.rank + 1, nullptr);
    ranks[block.rank] = &b;
}

uint32_t take_ordinal(Watcher& w, uint64_t linear) {
    if (w.ordinals.size() == ORDINALS) {    // four million blocks: those before are forgotten
        w.ordinals.clear();
        w.first = w.next_tick();
    }
    w.ordinals.push_back(linear);
    return static_cast<uint32_t>(w.ordinals.size() - 1);
}

std::unique_ptr<BlockWatch> take_watch(Watcher& w) {
    if (w.idle.empty()) return std::make_unique<BlockWatch>(WINDOW);
    std::unique_ptr<BlockWatch> b = std::move(w.idle.back());
    w.idle.pop_back();
    return b;
}

size_t shared_bytes(const Launch& launch) {
    return std::min<size_t>(WINDOW, size_t{launch.kernel->dynamic_shared_offset} + launch.dynamic_shared);
}

void begin_watch(Watcher& w, BlockWatch& b, Block& block) {
    const Launch& launch = *block.launch;
    b.block = static_cast<ResidentBlock*>(&block);
    b.launch = &launch;
    b.check = launch.check;
    b.count = launch.count;
    b.random = b.block->execution && b.block->execution->schedule == Schedule::random;
    b.met = b.ended = false;
    b.ordinal = take_ordinal(w, block.linear);
    b.first = b.floor = w.next_tick();
    b.shared = reinterpret_cast<uintptr_t>(block.shared);
    b.own_window = b.shared + block.window;
    b.windows_bytes = WINDOW * launch.cluster.x * launch.cluster.y * launch.cluster.z;
    const Variable* kept = system_shared(*launch.kernel);
    b.system = kept ? Extent{kept->place, kept->bytes} : Extent{};
    b.shadow.chunks.clear();
    b.shadow.written.clear(0, shared_bytes(launch));
    b.threads.resize(launch.block.x * launch.block.y * launch.block.z);
    for (uint32_t i = 0; i < b.threads.size(); ++i) b.threads[i].begin(b.ordinal << THREAD_BITS | i, b.first);
    for (BarrierWatch& barrier : b.barriers) barrier = BarrierWatch();
    b.cluster_barrier = BarrierWatch();
    b.cluster_phase = Knowledge();
    b.published.clear();
}

// A watch keeps what it knows until its cluster has ended: others may still look at its window.
void retire(Watcher& w, std::vector<BlockWatch*>& ranks) {
    for (BlockWatch* b : ranks)
        if (b && !b->ended) return;
    for (BlockWatch* b : ranks) {
        if (!b) continue;
        const auto found =
            std::find_if(w.active.begin(), w.active.end(), [&](const auto& one) { return one.get() == b; });
        w.idle.push_back(std::move(*found));
        w.active.erase(found);
    }
    ranks.clear();
}

void retire_all(Watcher& w) {    // after an abandoned launch
    for (auto& b : w.active) w.idle.push_back(std::move(b));
    w.active.clear();
    w.clusters.clear();
    w.published.clear();
    w.in_flight.clear();
    w.landed.clear();
}

InFlight& in_flight(uint32_t token) { return watcher().in_flight[token - 1]; }

}    // namespace

Watcher* make_watcher() { return new Watcher; }

uint32_t Watcher::out_of_ticks() {
    for (auto& b : active) b->check = false;
    return tick;
}

void ThreadWatch::begin(uint32_t a, uint32_t e) {
    actor = a;
    epoch = e;
    clock.reset();
    others.reset();
    fenced.reset();
    log.clear();
}

BlockWatch* watch_of_rank(const BlockWatch& b, uint32_t rank) {
    const auto found = watcher().clusters.find(reinterpret_cast<const char*>(b.shared));
    return found != watcher().clusters.end() && rank < found->second.size() ? found->second[rank] : nullptr;
}

// ---- launches and blocks ----------------------------------------------------------------------------------

void checker_launch_begin(Launch& launch) {
    Watcher& w = watcher();
    retire_all(w);
    if (w.tick > TICK_LIMIT) forget_everything(w);
    w.first = w.next_tick();
    w.ordinals.clear();
    w.global.chunks.clear();
    std::memset(w.shared_extents, 0, sizeof w.shared_extents);
    std::memset(w.global_extents, 0, sizeof w.global_extents);
    if (launch.count) counters_launch_begin(launch);
}

void checker_launch_end(Launch& launch, bool) {
    if (launch.count) counters_launch_end(launch, static_cast<RunningLaunch&>(launch).executions);
    retire_all(watcher());
}

void checker_launch_unwatched() { watcher().trusted_allocation = watcher().newest_allocation; }

void checker_block_begin(Block& block) {
    block.watch = nullptr;
    if (!block.launch->check && !block.launch->count) return;
    Watcher& w = watcher();
    std::unique_ptr<BlockWatch> b = take_watch(w);
    begin_watch(w, *b, block);
    begin_clusters_window(w, *b, block);
    block.watch = b.get();
    w.active.push_back(std::move(b));
}

void checker_block_end(Block& block) {
    if (!block.watch) return;
    if (block.watch->count) count_block_met(*block.watch);
    block.watch->ended = true;
    block.watch = nullptr;
    retire(watcher(), watcher().clusters[block.shared]);
}

void checker_flush(Block& block) {
    BlockWatch* b = block.watch;
    if (!b || !b->count) return;
    count_barrier(*b);
    if (b->met) count_block_met(*b);
}

// ---- accesses ---------------------------------------------------------------------------------------------

void access(Thread& t, const void* pointer, uint32_t bytes, uint32_t what, uint32_t site) {
    BlockWatch* b = t.block->watch;
    if (!b) return;
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    // Not in the middle of a collective, which one lane executes for all.
    if (b->random && !(what & (MATRIX | ASYNC_PROXY)) && b->block->execution->current == &t) preempt(t);
    if (__builtin_expect(address & (bytes - 1), 0) && bytes <= 16 && (bytes & (bytes - 1)) == 0) {
        report_misaligned(t, address, {bytes, what, site});
    }
    Place place;
    if (!locate(t, address, bytes, what, site, place)) return;
    if (b->check) {
        const bool orders = !(what & UNORDERED);
        if (orders && (what & (STRONG | ACQUIRE) || (what & KIND) == ATOMIC)) {
            import(t, address, what & SCOPE_BLOCK);
        }
        const bool systems_own = place.window && place.offset - b->system.begin < b->system.bytes;
        if (!systems_own) check_access(t, place, address, bytes, what, site);
        if (orders && (what & KIND) != READ && (what & (STRONG | RELEASE) || (what & KIND) == ATOMIC)) {
            publish(t, address, what & RELEASE, what & SCOPE_BLOCK);
        }
    }
    if (b->count) count_access(t, address, bytes, what, site);
}

uint32_t checker_async_issue(Thread& t, const void* pointer, uint32_t bytes, bool write, uint32_t site) {
    BlockWatch* b = t.block->watch;
    if (!b || bytes == 0) return 0;
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    Place place;
    if (!locate(t, address, bytes, write ? WRITE : READ, site, place)) return 0;
    if (write && b->count && place.window)
        count_access(t, address, bytes, WRITE | SHARED | ASYNC_PROXY, site);
    if (!b->check) return 0;
    Watcher& w = watcher();
    const InFlight operation{address, bytes, site, b->threads[t.linear].actor, write};
    mark_in_flight(t, place, operation);
    if (w.landed.empty()) {
        w.in_flight.push_back(operation);
        return static_cast<uint32_t>(w.in_flight.size());
    }
    const uint32_t index = w.landed.back();
    w.landed.pop_back();
    w.in_flight[index] = operation;
    return index + 1;
}

static void finish(Thread& t, uint32_t token, bool record) {
    if (token == 0 || !t.block->watch || token > watcher().in_flight.size()) return;
    const InFlight operation = in_flight(token);
    Place place;
    if (!locate(t, operation.address, operation.bytes, operation.write ? WRITE : READ, operation.site, place))
        return;
    unmark_in_flight(t, place, operation, record);
    watcher().landed.push_back(token - 1);
}

void checker_async_land(Thread& t, uint32_t token) { finish(t, token, true); }
void checker_async_drop(Thread& t, uint32_t token) { finish(t, token, false); }

// ---- memory -----------------------------------------------------------------------------------------------

void checker_allocated(const void* begin, size_t bytes) {
    if (!in_arena(begin)) return;
    Watcher& w = watcher();
    ++w.newest_allocation;
    if (const Allocation* allocation = memory_find(begin)) w.newest_allocation = allocation->serial;
    w.global.written.clear(w.global.offset(reinterpret_cast<uintptr_t>(begin)), bytes);
}

void checker_freed(const void*, size_t) {}

void checker_written(const void* begin, size_t bytes) {
    if (!in_arena(begin)) return;
    GlobalShadow& global = watcher().global;
    global.written.set(global.offset(reinterpret_cast<uintptr_t>(begin)), bytes);
}

}    // namespace emu
