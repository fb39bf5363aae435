// mbarrier: a barrier in 8 bytes of shared memory that counts arrivals and bytes, phase after phase.  Layout
// of the word: async.h.
//
// A phase ends when no arrival is pending and no bytes are outstanding.  All blocks of a cluster run on one
// OS thread, and fibers switch only at waits, so plain reads and writes of the word are atomic here.
#include "in_flight.h"
#include "reports.h"

namespace emu {

namespace {

constexpr uint64_t MARK = 2;                                 // bits 62-63 of an initialised barrier
constexpr uint64_t INVALID = ~uint64_t(0);
constexpr int64_t BYTES_LIMIT = (1 << 20) - 1;               // outstanding bytes lie within +- this

struct State {
    uint32_t pending, expected;  // arrivals: of this phase still to come, of every next phase
    int64_t bytes;                                           // expect_tx minus complete_tx
    uint32_t phase;                                          // parity
    bool valid;
};

State unpack(uint64_t word) {
    const int64_t bytes = static_cast<int64_t>(word << 3) >> 43;
    return {static_cast<uint32_t>(word & MBARRIER_COUNT_LIMIT),
            static_cast<uint32_t>(word >> 20 & MBARRIER_COUNT_LIMIT), bytes,
            static_cast<uint32_t>(word >> 61 & 1), word >> 62 == MARK};
}

uint64_t pack(const State& s) {
    const uint64_t bytes = static_cast<uint64_t>(s.bytes) & 0x1fffff;
    return s.pending | uint64_t(s.expected) << 20 | bytes << 40 | uint64_t(s.phase) << 61 | MARK << 62;
}

State peek(const char* barrier) { return unpack(load<uint64_t>(barrier)); }

[[noreturn]] void misuse(Thread& t, const char* barrier, uint32_t site, const std::string& what,
                         const char* fix) {
    const std::string place = describe_address(*t.launch, t.block, barrier);
    report(finding(t, "async", site, format("the mbarrier %s %s", place.c_str(), what.c_str()), fix));
    abandon(t, CUDA_LAUNCH_FAILURE);
}

State read_state(Thread& t, const char* barrier, uint32_t site) {
    const State s = peek(barrier);
    if (!s.valid)
        misuse(t, barrier, site, "is not initialised (or was invalidated)",
               "One thread calls mbarrier.init, then the block synchronises, before anybody uses the "
               "barrier.");
    return s;
}

// The thread's own access to the word: checked, and not a data race with others of its kind.
State touch(Thread& t, char* barrier, uint32_t site) {
    require_aligned(t, barrier, 8, "an mbarrier", site);
    watch(t, barrier, 8, ATOMIC | STRONG | SHARED | UNORDERED, site);
    return read_state(t, barrier, site);
}

// What arrivals of a phase release, those who wait for it acquire.  Phases of the two parities are told
// apart, as arrivals of the next phase may come before a thread that waits for this one runs again: the
// checker knows them by the halves of the word.
const char* ordering_of(const char* barrier, uint32_t parity) { return barrier + 4 * parity; }

void release(Thread& t, const char* barrier, uint32_t parity) {
    if (watched(t)) checker_release(t, ordering_of(barrier, parity));
}

void update(char* barrier, State s) {
    if (s.pending == 0 && s.bytes == 0) {
        s.phase ^= 1;
        s.pending = s.expected;
    }
    store(barrier, pack(s));
}

void add_bytes(Thread& t, const char* barrier, State& s, int64_t bytes, uint32_t site) {
    s.bytes += bytes;
    if (s.bytes >= -BYTES_LIMIT && s.bytes <= BYTES_LIMIT) return;
    misuse(t, barrier, site,
           format("has %lld bytes outstanding, beyond the limit of %lld", static_cast<long long>(s.bytes),
                  static_cast<long long>(BYTES_LIMIT)),
           "Expect exactly the bytes that arrive in a phase, in portions below 1 MiB.");
}

void take_arrivals(Thread& t, const char* barrier, State& s, uint32_t count, uint32_t site) {
    if (count == 0 || count > s.pending)
        misuse(t, barrier, site,
               format("gets %u arrivals in a phase that waits for %u more", count, s.pending),
               "The count given to mbarrier.init must be the number of arrivals per phase.");
    s.pending -= count;
}

bool phase_over(const char* barrier, uint32_t parity) { return peek(barrier).phase != parity; }

// ---- deadlocks --------------------------------------------------------------------------------------------
//
// Threads that poll are ready, so the scheduler sees no deadlock in them.  There is one when all threads that
// could run have polled one barrier each so often that nothing else can be going on, and none of their phases
// is over.

constexpr uint32_t VAIN_POLLS = 1000;

bool polls_in_vain(const Fiber& f) {
    const AsyncState* const s = f.async;
    return s && s->polls >= VAIN_POLLS && !phase_over(s->polled, s->polled_parity);
}

template <class Visit> bool all_ready(Execution& e, Visit visit) {
    for (uint32_t b = 0; b < e.resident_count; ++b)
        for (Warp& w : e.resident[b]->warps)
            for (uint32_t lanes = w.ready; lanes; lanes &= lanes - 1)
                if (!visit(w.fibers[__builtin_ctz(lanes)])) return false;
    return true;
}

[[noreturn]] void report_stuck(Thread& t) {
    std::vector<const char*> named;
    all_ready(execution_of(t), [&](Fiber& f) {
        const char* const barrier = f.async->polled;
        if (std::find(named.begin(), named.end(), barrier) != named.end() || named.size() == 8) return true;
        named.push_back(barrier);
        const State s = peek(barrier);
        report(finding(f, "deadlock", f.async->polled_site,
                       format("threads wait for the phase of parity %u of the mbarrier %s, which never ends: "
                              "%u of %u arrivals and %lld bytes "
                              "are missing",
                              f.async->polled_parity, describe_address(*f.launch, f.block, barrier).c_str(),
                              s.pending, s.expected, static_cast<long long>(s.bytes)),
                       "Every arrival and every expected byte must come: compare the count of mbarrier.init "
                       "and the bytes of expect_tx with what happens in a phase, and the parity with the "
                       "number of phases waited for."));
        return true;
    });
    abandon(t, CUDA_LAUNCH_TIMEOUT);
}

void note_vain_poll(Thread& t, const char* barrier, uint32_t parity, uint32_t site) {
    AsyncState& state = async_state(t);
    if (state.polled != barrier || state.polled_parity != parity) state.polls = 0;
    state.polled = barrier;
    state.polled_parity = parity;
    state.polled_site = site;
    if (++state.polls % VAIN_POLLS == 0 && all_ready(execution_of(t), polls_in_vain)) report_stuck(t);
}

bool poll(Thread& t, Poll how, char* barrier, uint32_t parity, bool acquire, uint32_t site) {
    touch(t, barrier, site);
    bool over = phase_over(barrier, parity);
    if (!over) {
        settle(barrier);
        if (how == Poll::wait) over = phase_over(barrier, parity);
    }
    if (!over) {
        note_vain_poll(t, barrier, parity, site);
        *t.steps -= 64;
        if (*t.steps < 0) out_of_steps(t, site);
        pass_turn(t);    // only blocks of its own cluster arrive there, and those are resident
        if (how == Poll::wait) over = read_state(t, barrier, site).phase != parity;
    }
    if (over && t.async) t.async->polls = 0;
    if (over && acquire && watched(t)) checker_acquire(t, ordering_of(barrier, parity));
    return over;
}

}  // namespace

void mbarrier_init(Thread& t, char* barrier, uint32_t count, uint32_t site) {
    require_aligned(t, barrier, 8, "an mbarrier", site);
    watch(t, barrier, 8, WRITE | SHARED, site);
    if (count == 0 || count > MBARRIER_COUNT_LIMIT)
        misuse(t, barrier, site,
               format("is initialised for %u arrivals; 1 to %u are possible", count, MBARRIER_COUNT_LIMIT),
               "Pass the number of arrivals that end a phase.");
    store(barrier, pack({count, count, 0, 0, true}));
}

// No plain write: who comes too late finds no barrier, and is reported for that.
void mbarrier_invalidate(Thread& t, char* barrier, uint32_t site) {
    touch(t, barrier, site);
    settle_due_arrivals(barrier);
    store(barrier, INVALID);
}

uint64_t mbarrier_arrive(Thread& t, char* barrier, uint32_t count, uint32_t flags, uint32_t site) {
    State s = touch(t, barrier, site);
    const uint64_t before = pack(s);
    if (!(flags & RELAXED)) release(t, barrier, s.phase);
    take_arrivals(t, barrier, s, count, site);
    if (flags & DROP) s.expected -= count;
    if ((flags & NO_COMPLETE) && s.pending == 0 && s.bytes == 0)
        misuse(t, barrier, site, "completes its phase by an arrival marked noComplete",
               "Let another arrival be the last one of the phase.");
    update(barrier, s);
    return before;
}

uint64_t mbarrier_arrive_expect(Thread& t, char* barrier, uint32_t bytes, uint32_t flags, uint32_t site) {
    State s = touch(t, barrier, site);
    const uint64_t before = pack(s);
    if (!(flags & RELAXED)) release(t, barrier, s.phase);
    add_bytes(t, barrier, s, bytes, site);
    take_arrivals(t, barrier, s, 1, site);
    if (flags & DROP) s.expected -= 1;
    update(barrier, s);
    return before;
}

void mbarrier_expect(Thread& t, char* barrier, uint32_t bytes, uint32_t site) {
    State s = touch(t, barrier, site);
    add_bytes(t, barrier, s, bytes, site);
    update(barrier, s);
}

void mbarrier_complete(Thread& t, char* barrier, uint32_t bytes, uint32_t site) {
    State s = touch(t, barrier, site);
    add_bytes(t, barrier, s, -static_cast<int64_t>(bytes), site);
    update(barrier, s);
}

bool mbarrier_wait(Thread& t, Poll how, char* barrier, uint64_t state, bool acquire, uint32_t site) {
    const State then = unpack(state);
    if (!then.valid)
        misuse(t, barrier, site, "is waited for with a state that no arrive returned",
               "Pass the state that mbarrier.arrive returned.");
    return poll(t, how, barrier, then.phase, acquire, site);
}

bool mbarrier_wait_parity(Thread& t, Poll how, char* barrier, uint32_t parity, bool acquire, uint32_t site) {
    return poll(t, how, barrier, parity & 1, acquire, site);
}

// ---- arrivals and bytes that the system brings ------------------------------------------------------------

void barrier_track(Thread& t, char* barrier, bool counted, uint32_t site) {
    State s = touch(t, barrier, site);
    if (!counted) return;
    if (s.pending == MBARRIER_COUNT_LIMIT)
        misuse(t, barrier, site, "waits for too many arrivals", "Use cp.async.mbarrier.arrive.noinc.");
    ++s.pending;
    store(barrier, pack(s));
}

void barrier_arrive_on(Thread& issuer, char* barrier, uint32_t site) {
    State s = read_state(issuer, barrier, site);
    release(issuer, barrier, s.phase);
    take_arrivals(issuer, barrier, s, 1, site);
    update(barrier, s);
}

void barrier_complete(Thread& issuer, char* barrier, uint32_t bytes, uint32_t site) {
    State s = read_state(issuer, barrier, site);
    release(issuer, barrier, s.phase);
    add_bytes(issuer, barrier, s, -static_cast<int64_t>(bytes), site);
    update(barrier, s);
}

}  // namespace emu
