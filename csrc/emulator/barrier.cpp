// Barriers of a block (bar, barrier) and of a cluster (barrier.cluster).
//
// Arrivals are counted per thread.  Where an instruction gives a number of threads, a warp whose live lanes
// have all arrived counts as 32, as on the hardware, so that `bar.sync 1, 128` works in a block of 100
// threads; where it gives none, all threads of the block that have not exited are waited for.  Releasing sets
// the ready masks of the warps: no thread is visited.
#include <cstring>

#include "checker.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

constexpr uint32_t NO_SITE = Report::NO_SITE;

enum class Style { sync, arrive, reduce };

const char* const DIVERGENCE_FIX =
    "let all threads of the block reach the same __syncthreads(): move it out of the branch, "
    "or use a named barrier with a count";

bool aligned(const Launch& launch, uint32_t site) {
    const char* opcode = opcode_of(launch, site);
    return std::strncmp(opcode, "bar.", 4) == 0 || std::strstr(opcode, ".aligned");
}

// What one thread brings to a barrier.
struct Request {
    uint32_t id, threads;
    Style how;
    bool value;                   // of a reduction
    uint32_t site;
};

std::string problem_with(const Request& q, const ResidentBlock& block) {
    if (q.id >= BARRIERS)
        return format("barrier %u does not exist: a block has barriers 0 to %u", q.id, BARRIERS - 1);
    if (q.threads % WARP)
        return format("barrier %u is given %u threads, which is not a multiple of %u", q.id, q.threads, WARP);
    if (q.threads > block.warp_count * WARP) {
        return format("barrier %u waits for %u threads, but the block has only %u", q.id, q.threads,
                      block.thread_count);
    }
    if (q.how == Style::arrive && q.threads == 0)
        return format("bar.arrive on barrier %u gives no number of threads", q.id);
    return "";
}

bool report_problem(Thread& t, const Request& q) {
    const std::string problem = problem_with(q, block_of(t));
    if (problem.empty()) return false;
    report(finding(t, "divergence", q.site, problem,
                   "give the barrier a number from 0 to 15 and a count of whole warps of this block"));
    return true;
}

void report_mixture(Thread& t, Barrier& b, const Request& q) {
    if (b.complained) return;
    b.complained = true;
    const std::string first = site_text(*t.launch, b.site);
    Report r = finding(
        t, "divergence", q.site,
        b.expected != q.threads
            ? format("barrier %u is used with %u threads here and with %u at %s (0: all of the block)", q.id,
                     q.threads, b.expected, first.c_str())
            : format("barrier %u is used by a reduction and by a plain barrier (%s) at the same time", q.id,
                     first.c_str()),
        "give all who meet at a barrier the same count and the same kind of barrier, or use another number");
    r.other_site = b.site;
    report(r);
}

// Threads of one warp at two instructions of a barrier that must be reached together, or of one block at two
// __syncthreads().
void report_divergence(Thread& t, const Barrier& b, uint32_t id) {
    Report r =
        finding(t, "divergence", b.site,
                format("barrier %u: threads waiting at %s were released together with threads waiting at %s",
                       id, site_text(*t.launch, b.site).c_str(), site_text(*t.launch, b.other_site).c_str()),
                DIVERGENCE_FIX);
    r.other_site = b.other_site;
    report(r);
}

void announce_release(ResidentBlock& block, uint32_t id) {
    std::vector<Thread*> waiting;
    waiting.reserve(block.thread_count);
    for (Warp& w : block.warps) {
        for (uint32_t lanes = w.waiting[id]; lanes; lanes &= lanes - 1)
            waiting.push_back(&w.fibers[__builtin_ctz(lanes)]);
    }
    checker_barrier_release(block, id, waiting.data(), static_cast<uint32_t>(waiting.size()));
    checker_flush(block);
}

// By thread: others may start the barrier's next phase before these resume.
void hand_out_result(Warp& w, uint32_t lanes, const Barrier& b) {
    for (; lanes; lanes &= lanes - 1)
        w.values[__builtin_ctz(lanes)] = b.voted_true | uint64_t(b.voters) << 32;
}

// The phase is complete.  `t` is any thread of the block.
void release(Thread& t, uint32_t id) {
    ResidentBlock& block = block_of(t);
    Barrier& b = block.barriers[id];
    if (b.other_site != NO_SITE) report_divergence(t, b, id);
    if (watched(t)) announce_release(block, id);
    for (Warp& w : block.warps) {
        if (b.reducing) hand_out_result(w, w.waiting[id], b);
        if (w.waiting[id]) make_ready(w, w.waiting[id]);
        w.waiting[id] = w.counted[id] = 0;
    }
    b.arrived = 0;
    block.active_barriers &= ~(1u << id);
}

bool complete(const ResidentBlock& block, const Barrier& b) {
    return b.arrived >= (b.expected ? b.expected : block.live);
}

// Dead lanes of a warp that never arrived at a barrier.
uint32_t lanes_missing(const Warp& w, uint32_t id) {
    return WARP - static_cast<uint32_t>(__builtin_popcount(w.live | w.counted[id]));
}

void note_arrival(Thread& t, const Request& q) {
    ResidentBlock& block = block_of(t);
    Barrier& b = block.barriers[q.id];
    Warp& w = *t.warp;
    const bool reducing = q.how == Style::reduce;
    if (b.arrived == 0) {
        b = Barrier{0, q.threads, q.site, NO_SITE, 0, 0, reducing, false};
        block.active_barriers |= 1u << q.id;
    }
    if (b.expected != q.threads || b.reducing != reducing) report_mixture(t, b, q);
    if (q.site != b.site && q.threads == 0 && aligned(*t.launch, q.site)) b.other_site = q.site;
    ++b.arrived;
    b.voters += reducing;
    b.voted_true += q.value;
    if (q.threads) w.counted[q.id] |= 1u << t.lane;
    if (q.threads && (w.counted[q.id] & w.live) == w.live) b.arrived += lanes_missing(w, q.id);
    if (q.how != Style::arrive) w.waiting[q.id] |= 1u << t.lane;
}

// True: the barrier opened, and the thread need not wait.
bool arrive(Thread& t, const Request& q) {
    if ((q.id >= BARRIERS || q.threads || q.how == Style::arrive) && report_problem(t, q))
        abandon(t, CUDA_LAUNCH_FAILURE);
    note_arrival(t, q);
    if (watched(t)) checker_barrier_arrive(t, q.id);
    if (!complete(block_of(t), block_of(t).barriers[q.id])) return false;
    release(t, q.id);
    return true;
}

[[gnu::noinline]] void arrive_or_wait(Thread& t, const Request& q) {
    if (!arrive(t, q)) block_current(t, Wait::barrier, q.site);
}

void release_cluster(Cluster& c) {
    if (c.blocks[0]->launch->hooks) {
        std::vector<Block*> blocks(c.blocks.begin(), c.blocks.end());
        checker_cluster_release(blocks.data(), static_cast<uint32_t>(blocks.size()));
    }
    ++c.phase;
    c.arrived = 0;
    for (ResidentBlock* block : c.blocks) {
        for (Warp& w : block->warps) {
            for (uint32_t lanes = w.live & ~w.ready; lanes; lanes &= lanes - 1) {
                const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
                if (w.waits[lane] == Wait::cluster) make_ready(w, 1u << lane);
            }
        }
    }
}

void misused_cluster_barrier(Thread& t, const char* what, uint32_t site) {
    report(finding(t, "divergence", site, what,
                   "pair every barrier.cluster.arrive with one barrier.cluster.wait of the same thread"));
}

}  // namespace

void barrier_sync(Thread& t, uint32_t id, uint32_t threads, uint32_t site) {
    ResidentBlock& block = block_of(t);
    // The usual case by itself, short and without a call that returns: neither the first nor the last to come
    // to __syncthreads().
    if (id < BARRIERS && threads == 0 && !t.launch->hooks) {
        Barrier& b = block.barriers[id];
        if (b.arrived && b.arrived + 1 < block.live && b.site == site && b.expected == 0 && !b.reducing) {
            ++b.arrived;
            t.warp->waiting[id] |= 1u << t.lane;
            return block_current(t, Wait::barrier, site);
        }
    }
    arrive_or_wait(t, {id, threads, Style::sync, false, site});
}

void barrier_arrive(Thread& t, uint32_t id, uint32_t threads, uint32_t site) {
    arrive(t, {id, threads, Style::arrive, false, site});
}

uint32_t barrier_reduce(Thread& t, Reduction reduction, uint32_t id, uint32_t threads, bool value,
                        uint32_t site) {
    arrive_or_wait(t, {id, threads, Style::reduce, value, site});
    const uint64_t result = t.warp->values[t.lane];
    const uint32_t voted_true = static_cast<uint32_t>(result), voters = static_cast<uint32_t>(result >> 32);
    if (reduction == Reduction::popc) return voted_true;
    return reduction == Reduction::any ? voted_true != 0 : voted_true == voters;
}

void barriers_reset(ResidentBlock& block) {
    block.active_barriers = 0;
    for (Barrier& b : block.barriers) b.arrived = 0;
}

void barriers_thread_exited(Fiber& f) {
    ResidentBlock& block = block_of(f);
    Warp& w = *f.warp;
    for (uint32_t active = block.active_barriers; active; active &= active - 1) {
        const uint32_t id = static_cast<uint32_t>(__builtin_ctz(active));
        Barrier& b = block.barriers[id];
        const uint32_t counted = w.counted[id], were_live = w.live | 1u << f.lane;
        // The lanes left are now all of the warp's: it counts as a whole.  Those that arrived and exited have
        // been counted.
        if (b.expected && counted && (counted & w.live) == w.live && (counted & were_live) != were_live)
            b.arrived += lanes_missing(w, id);
        if (complete(block, b)) release(f, id);
    }
}

void cluster_arrive(Thread& t, bool, uint32_t site) {
    Fiber& me = fiber_of(t);
    Cluster& c = *block_of(t).cluster_state;
    if (me.cluster_arrived)
        misused_cluster_barrier(t, "barrier.cluster.arrive twice without a barrier.cluster.wait between",
                                site);
    me.cluster_arrived = true;
    me.cluster_phase = c.phase;
    checker_cluster_arrive(t);
    ++c.arrived;
    if (c.arrived >= c.live) release_cluster(c);
}

void cluster_wait(Thread& t, bool, uint32_t site) {
    Fiber& me = fiber_of(t);
    Cluster& c = *block_of(t).cluster_state;
    if (!me.cluster_arrived) {
        misused_cluster_barrier(t, "barrier.cluster.wait without a barrier.cluster.arrive before it", site);
        return;
    }
    me.cluster_arrived = false;
    if (me.cluster_phase == c.phase) block_current(me, Wait::cluster, site);
    if (watched(t)) checker_cluster_wait(t);
}

void cluster_thread_exited(Fiber& f) {
    Cluster& c = *block_of(f).cluster_state;
    --c.live;
    if (f.cluster_arrived && f.cluster_phase == c.phase) --c.arrived;
    if (c.arrived && c.arrived >= c.live) release_cluster(c);
}

}  // namespace emu
