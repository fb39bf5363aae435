// cp.async: small copies by the threads themselves, in groups; and the store of what completes on mbarriers.
//
// A copy is read and written when it lands, so a kernel that forgets to wait computes with the bytes that lay
// there before. The checker sees both sides in flight from issue to landing: who touches the destination
// between, races.
#include <algorithm>
#include <cstring>

#include "in_flight.h"
#include "options.h"
#include "reports.h"

namespace emu {

namespace {

// States of threads are pooled per OS thread: a fiber never leaves its OS thread.
struct Pool {
    uint64_t launch = 0;  // serial of the launch that the states in use belong to
    std::vector<std::unique_ptr<AsyncState>> all;
    std::vector<AsyncState*> idle;
    std::vector<Deferred> deferred;                      // in order of issue

    void begin_launch(uint64_t serial) {  // an abandoned launch left its states and operations behind
        if (serial == launch) return;
        launch = serial;
        deferred.clear();
        idle.clear();
        for (auto& state : all) {
            *state = AsyncState();
            idle.push_back(state.get());
        }
    }
};

Pool& pool() {
    static thread_local Pool instance;
    return instance;
}

void release_state(Thread& t) {
    if (!t.async) return;
    *t.async = AsyncState();
    pool().idle.push_back(t.async);
    t.async = nullptr;
}

uint64_t oldest_number(const AsyncState& state) { return state.issued - state.copies.size(); }

void land(Thread& t, const SmallCopy& copy) {
    std::memcpy(copy.destination, copy.source, copy.source_bytes);
    std::memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    if (!watched(t)) return;
    if (copy.source_bytes) checker_async_land(t, copy.reading);
    checker_async_land(t, copy.writing);
}

}  // namespace

// ---- state ------------------------------------------------------------------------------------------------

AsyncState& async_state(Thread& t) {
    if (t.async) return *t.async;
    Pool& p = pool();
    p.begin_launch(t.launch->serial);
    if (p.idle.empty()) {
        p.all.push_back(std::make_unique<AsyncState>());
        p.idle.push_back(p.all.back().get());
    }
    t.async = p.idle.back();
    p.idle.pop_back();
    return *t.async;
}

bool lands_at_issue(const Thread& t) { return launch_of(t).chosen.cp_async_eager; }

// A bulk copy's run is one access; others of odd sizes go in aligned pieces, as access() looks at their
// alignment.
void watch(Thread& t, const void* address, uint32_t bytes, uint32_t what, uint32_t site) {
    if (!watched(t)) return;
    if (what & ASYNC_PROXY) return access(t, address, bytes, what, site);
    const char* at = static_cast<const char*>(address);
    for (const char* const end = at + bytes; at < end;) {
        uint32_t piece = 16;
        while (piece > 1 && (reinterpret_cast<uintptr_t>(at) % piece || at + piece > end)) piece /= 2;
        access(t, at, piece, what, site);
        at += piece;
    }
}

void require_aligned(Thread& t, const void* address, uint32_t alignment, const char* what, uint32_t site) {
    if ((reinterpret_cast<uintptr_t>(address) & (alignment - 1)) == 0) return;    // a power of two
    report(finding(t, "misaligned", site,
                   format("%s at %s is not aligned to %u bytes", what,
                          describe_address(*t.launch, t.block, address).c_str(), alignment),
                   "Align the buffer (alignas, __align__) and keep offsets into it multiples of that."));
    abandon(t, CUDA_MISALIGNED_ADDRESS);
}

// ---- cp.async ---------------------------------------------------------------------------------------------

void copy_async(Thread& t, char* destination, const char* source, uint32_t bytes, uint32_t source_bytes,
                uint32_t site) {
    if (source_bytes > bytes) {
        report(finding(t, "async", site,
                       format("cp.async of %u bytes is told to read %u", bytes, source_bytes),
                       "The source size may be at most the copy size."));
        source_bytes = bytes;
    }
    require_aligned(t, destination, bytes, "the destination of cp.async", site);
    if (source_bytes) require_aligned(t, source, bytes, "the source of cp.async", site);
    AsyncState& state = async_state(t);
    SmallCopy copy{destination, source, bytes, source_bytes, site, 0, 0};
    if (watched(t)) {
        watch(t, source, source_bytes, READ | GLOBAL, site);
        if (source_bytes) copy.reading = checker_async_issue(t, source, source_bytes, false, site);
        copy.writing = checker_async_issue(t, destination, bytes, true, site);
    }
    if (lands_at_issue(t)) {
        std::memcpy(destination, source, source_bytes);
        std::memset(destination + source_bytes, 0, bytes - source_bytes);
    }
    state.copies.push_back(copy);
    ++state.issued;
}

void land_copies(Thread& t, uint64_t until) {
    AsyncState& state = async_state(t);
    while (!state.copies.empty() && oldest_number(state) < until) {
        land(t, state.copies.front());
        state.copies.pop_front();
    }
}

void copy_async_commit(Thread& t) {
    AsyncState& state = async_state(t);
    state.groups.push_back(state.issued);
}

void copy_async_wait(Thread& t, uint32_t groups_left) {
    if (!t.async) return;
    AsyncState& state = *t.async;
    while (state.groups.size() > groups_left) {
        land_copies(t, state.groups.front());
        state.groups.pop_front();
    }
}

void copy_async_wait_all(Thread& t) {
    if (!t.async) return;
    land_copies(t, t.async->issued);
    t.async->groups.clear();
}

void copy_async_arrive(Thread& t, char* barrier, bool counted, uint32_t site) {
    barrier_track(t, barrier, counted, site);
    Deferred arrival{barrier, &t, site, async_state(t).issued, nullptr};
    if (lands_at_issue(t) || async_state(t).copies.empty()) land(arrival);
    else defer(std::move(arrival));
}

// ---- what completes on mbarriers --------------------------------------------------------------------------

void defer(Deferred operation) {
    pool().begin_launch(operation.issuer->launch->serial);
    pool().deferred.push_back(std::move(operation));
}

void land(Deferred& operation) {
    if (operation.bulk) return operation.bulk->land();
    land_copies(*operation.issuer, operation.copies_until);
    barrier_arrive_on(*operation.issuer, operation.barrier, operation.site);
}

namespace {

// Takes out the operations that `chosen` picks and lands them, oldest first.
template <class Chosen> void land_chosen(Chosen chosen) {
    std::vector<Deferred>& all = pool().deferred;
    const auto first =
        std::stable_partition(all.begin(), all.end(), [&](const Deferred& d) { return !chosen(d); });
    std::vector<Deferred> taken(std::make_move_iterator(first), std::make_move_iterator(all.end()));
    all.erase(first, all.end());
    for (Deferred& operation : taken) land(operation);
}

}  // namespace

void settle(const char* barrier) {
    if (pool().deferred.empty()) return;
    land_chosen([=](const Deferred& d) { return d.barrier == barrier; });
}

void settle_due_arrivals(const char* barrier) {
    if (pool().deferred.empty()) return;
    land_chosen([=](const Deferred& d) {
        return d.barrier == barrier && !d.bulk && oldest_number(*d.issuer->async) >= d.copies_until;
    });
}

// ---- threads begin and end --------------------------------------------------------------------------------

void async_thread_begin(Thread& t) { t.async = nullptr; }

namespace {

void report_copies_left(Thread& t) {
    const SmallCopy& oldest = t.async->copies.front();
    const std::string place = describe_address(*t.launch, t.block, oldest.destination);
    report(finding(
        t, "async", oldest.site,
        format("cp.async into %s is still in flight when its thread ends: no wait follows it", place.c_str()),
        "Wait before the thread ends: cp.async.wait_all, __pipeline_wait_prior(0) or "
        "pipeline.consumer_wait()."));
}

void report_bulk_left(Thread& t, const BulkOperation& oldest, const char* what, const char* fix) {
    const std::string place = describe_address(*t.launch, t.block, oldest.tile);
    report(finding(t, "async", oldest.site,
                   format("the bulk copy out of %s %s when its thread ends: the shared memory may be gone "
                          "before it is read",
                          place.c_str(), what),
                   fix));
}

const BulkOperation* not_waited_for(const AsyncState& state) {
    for (const BulkGroup& group : state.bulk_groups)
        for (const BulkPointer& operation : group)
            if (!operation->waited_for) return operation.get();
    return nullptr;
}

void finish_bulk(Thread& t) {
    const AsyncState& state = *t.async;
    if (const BulkOperation* operation = not_waited_for(state)) {
        report_bulk_left(t, *operation, "is still in flight",
                         "Wait with cp.async.bulk.wait_group.read 0 before the thread ends.");
    } else if (!state.open.empty()) {
        report_bulk_left(t, *state.open.front(), "was never committed",
                         "Call cp.async.bulk.commit_group after the copies and wait_group.read before the "
                         "thread ends.");
    }
    bulk_commit(t);
    bulk_wait(t, 0, false);
}

// A bulk copy that no one waits for would land in the shared memory of a block that has ended.
void report_abandoned(const Thread& last) {
    const ResidentBlock& block = block_of(last);
    const char* const window = block.shared + block.window;
    std::vector<Deferred>& all = pool().deferred;
    const auto in_window = [=](const Deferred& d) {
        return static_cast<size_t>(d.barrier - window) < WINDOW;
    };
    for (Deferred& d : all) {
        if (!in_window(d) || !d.bulk) continue;
        d.bulk->drop_tokens();
        report(finding(*d.issuer, "async", d.site,
                       format("the copy into %s is still in flight when its block ends: nothing waited for "
                              "its mbarrier",
                              describe_address(*last.launch, last.block, d.bulk->tile).c_str()),
                       "Some thread must wait for the mbarrier's phase before the block ends."));
    }
    all.erase(std::remove_if(all.begin(), all.end(), in_window), all.end());
}

}  // namespace

void async_thread_exit(Thread& t) {
    if (t.async) {
        land_chosen([&](const Deferred& d) { return d.issuer == &t && !d.bulk; });
        if (!t.async->copies.empty()) report_copies_left(t);
        copy_async_wait_all(t);
        finish_bulk(t);
        release_state(t);
    }
    if (!pool().deferred.empty() && block_of(t).live <= 1) report_abandoned(t);
}

// ---- 128-bit atomics where the compiler has no instruction for them ---------------------------------------

b128 atomic_swap_if_locked(char* address, b128 expected, b128 value, bool always) {
    static char lock;
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {}
    const b128 seen = load<b128>(address);
    if (always || (seen.low == expected.low && seen.high == expected.high)) store(address, value);
    __atomic_clear(&lock, __ATOMIC_RELEASE);
    return seen;
}

}  // namespace emu
