// The rules around wgmma, and which breaches are found.
//
// wgmma.mma_async runs when the last thread of its warpgroup issues it, so its results are there at once,
// whatever the waits say.  That is deliberate: between the instruction and its wait nvcc copies accumulators
// from register to register (at the end of a loop, for one), copies that ptxas makes disappear, and that
// would copy stale values if D were written at the wait.
//
// Found while the kernel runs, in the modes check and count:
//   - operands in shared memory: bounds, uninitialised reads, races with other threads, writes by ordinary
//     stores without fence.proxy.async (through the accesses announced here);
//   - writes to the operands between the instruction and the wait that covers it: they are in flight;
//   - a first wgmma of a warpgroup without any wgmma.fence before it;
//   - a missing wgmma.commit_group, so that no wait covers anything; a block that ends before its last wait;
//   - descriptors that differ between the threads, and base offsets, which are not emulated.
// Found by the translator (translate/accumulators.py), and reported when the instruction is reached:
//   - a D register that is used before any wait that covers it.
// Not found: a missing wgmma.fence later on, after registers were changed; A registers changed before the
// wait.  ptxas sees these and serialises the instructions, so that results are right but slow (its warning
// C7510).
#include <algorithm>
#include <memory>
#include <vector>

#include "checker.h"
#include "reports.h"
#include "wgmma.h"

namespace emu {
namespace {

constexpr uint32_t MAX_GROUPS = 1024 / WARPGROUP;

struct Issued {                          // one wgmma that no thread has waited for yet
    uint64_t group;  // which commit_group covers it: the how-manieth of each thread, from 1
    uint32_t site;
    std::vector<uint32_t> tokens;
};

struct Warpgroup {
    std::vector<Issued> issued;
    uint64_t commits[WARPGROUP] = {};    // by thread
    bool fenced = false, complained = false;
};

struct BlockState {
    Warpgroup groups[MAX_GROUPS];
};

BlockState& state_of(ResidentBlock& block) {
    if (!block.wgmma) block.wgmma = new BlockState;
    return *static_cast<BlockState*>(block.wgmma);
}
Warpgroup& warpgroup_of(Thread& t) { return state_of(block_of(t)).groups[t.linear / WARPGROUP]; }

// The operands count as read by the issuing threads, and once more by the thread that comes to the wait
// first.  The other threads of the warpgroup learn of these reads at their own waits, as any one of them may
// be the one that lets the operands be overwritten.  Where they meet is an address that no kernel can use:
// the last bytes of the window.
const void* meeting_point(const Thread& t) {
    return t.shared + t.window + WINDOW - 16 * (1 + t.linear / WARPGROUP);
}

bool checked(const Thread& t) { return t.launch->hooks && t.launch->check; }
const Wgmma& of(void* const* arguments, uint32_t thread) {
    return *static_cast<const Wgmma*>(arguments[thread]);
}

// ---- descriptors ------------------------------------------------------------------------------------------

void check_descriptors(Thread* const* threads, void* const* arguments, uint32_t site) {
    const Wgmma& first = of(arguments, 0);
    const bool a_in_memory = !first.shape.a_in_registers;
    for (uint32_t i = 1; i < WARPGROUP; ++i) {
        const Wgmma& m = of(arguments, i);
        const bool same =
            m.b_descriptor == first.b_descriptor && (!a_in_memory || m.a_descriptor == first.a_descriptor);
        if (same && m.accumulate == first.accumulate) continue;
        report(finding(*threads[i], "collective", site,
                       format("thread %u of the warpgroup brings another %s to wgmma than thread 0", i,
                              same ? "scale-d" : "matrix descriptor"),
                       "Compute descriptors and scale-d from values that are the same in all 128 threads."));
        return;
    }
}

[[noreturn]] void refuse_base_offset(Thread& t, uint32_t base_offset, uint32_t site) {
    report(finding(t, "async", site,
                   format("a matrix descriptor has the base offset %u, which is not emulated", base_offset),
                   "Align swizzled tiles to 1024 bytes (128-byte swizzle), 512 (64) or 256 (32), and leave "
                   "the base offset 0."));
    abandon(t, CUDA_LAUNCH_FAILURE);
}

// ---- operands in shared memory ----------------------------------------------------------------------------

struct Range { uint32_t begin, end; };

std::vector<Range> merged(std::vector<Range> ranges) {
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    std::vector<Range> result;
    for (const Range& r : ranges) {
        if (!result.empty() && r.begin <= result.back().end)
            result.back().end = std::max(result.back().end, r.end);
        else result.push_back(r);
    }
    return result;
}

// The four warps read independently of each other.  A's rows are read by the warp they belong to; of B each
// warp is made the reader of every fourth chunk, which is enough to see who wrote it without a barrier.
void read_operand(Thread& t, const SharedMatrix& m, uint32_t lines, bool is_a, uint32_t site) {
    const uint32_t own = t.warp->index % 4;
    uint32_t number = 0;
    each_chunk(m, lines, [&](uint32_t address, uint32_t line, uint32_t) {
        const uint32_t reader = is_a ? line / 16 : number++ % 4;
        if (reader == own) access(t, t.shared + t.window + address, 16, READ | SHARED | ASYNC_PROXY, site);
    });
}

void put_in_flight(Thread& t, const SharedMatrix& m, uint32_t lines, Issued& issued) {
    std::vector<Range> ranges;
    each_chunk(m, lines,
               [&](uint32_t address, uint32_t, uint32_t) { ranges.push_back({address, address + 16}); });
    for (const Range& r : merged(std::move(ranges))) {
        const char* begin = t.shared + t.window + r.begin;
        issued.tokens.push_back(checker_async_issue(t, begin, r.end - r.begin, false, issued.site));
    }
}

SharedMatrix matrix_a(const Wgmma& m) { return SharedMatrix(m.a_descriptor, m.shape.transposed_a); }
SharedMatrix matrix_b(const Wgmma& m) { return SharedMatrix(m.b_descriptor, m.shape.transposed_b); }

void land(Thread& t, const Issued& issued) {
    for (const uint32_t token : issued.tokens) checker_async_land(t, token);
}

void check_fence(Warpgroup& group, Thread& t, uint32_t site) {
    if (group.fenced || group.complained) return;
    group.complained = true;
    report(finding(
        t, "async", site, "the first wgmma of the warpgroup has no wgmma.fence before it",
        "Issue wgmma.fence.sync.aligned after the registers were set and before the first wgmma.mma_async."));
}

}  // namespace

void wgmma_begin(Thread& t, const Wgmma& m, uint32_t site) {
    const uint32_t offset = matrix_b(m).base_offset | (m.shape.a_in_registers ? 0 : matrix_a(m).base_offset);
    if (offset) refuse_base_offset(t, offset, site);
    if (!checked(t) || t.lane) return;
    if (!m.shape.a_in_registers) read_operand(t, matrix_a(m), 64, true, site);
    read_operand(t, matrix_b(m), m.shape.n, false, site);
}

void wgmma_issued(Thread* const* threads, void* const* arguments, uint32_t site) {
    Thread& t = *threads[0];
    if (!checked(t)) return;
    Warpgroup& group = warpgroup_of(t);
    check_descriptors(threads, arguments, site);
    check_fence(group, t, site);
    const Wgmma& m = of(arguments, 0);
    Issued issued{group.commits[0] + 1, site, {}};
    if (!m.shape.a_in_registers) put_in_flight(t, matrix_a(m), 64, issued);
    put_in_flight(t, matrix_b(m), m.shape.n, issued);
    for (uint32_t warp = 0; warp < 4; ++warp) checker_release(*threads[warp * WARP], meeting_point(t));
    group.issued.push_back(std::move(issued));
}

void wgmma_fence(Thread& t, uint32_t) {
    if (checked(t)) warpgroup_of(t).fenced = true;
}

void wgmma_commit(Thread& t, uint32_t) {
    if (checked(t)) ++warpgroup_of(t).commits[t.linear % WARPGROUP];
}

// All groups but the `pending` youngest are complete for this thread.
void wgmma_wait(Thread& t, uint32_t pending, uint32_t) {
    if (!checked(t)) return;
    Warpgroup& group = warpgroup_of(t);
    const uint64_t committed = group.commits[t.linear % WARPGROUP];
    const uint64_t complete = committed > pending ? committed - pending : 0;
    auto remaining = std::stable_partition(group.issued.begin(), group.issued.end(),
                                           [&](const Issued& i) { return i.group <= complete; });
    for (auto i = group.issued.begin(); i != remaining; ++i) land(t, *i);
    if (remaining != group.issued.begin()) checker_release(t, meeting_point(t));
    group.issued.erase(group.issued.begin(), remaining);
    checker_acquire(t, meeting_point(t));
}

void wgmma_early_use(Thread& t, uint32_t product, uint32_t site) {
    if (!checked(t)) return;
    Report r = finding(
        t, "async", site, "a result of wgmma is used before wgmma.wait_group covers it",
        "After the last wgmma of the group: wgmma.commit_group, then wgmma.wait_group; only then use D.");
    r.other_site = product;
    report(r);
}

void wgmma_block_begin(Block& block) { wgmma_block_exit(block); }

void wgmma_block_exit(Block& block) {
    auto& resident = static_cast<ResidentBlock&>(block);
    const std::unique_ptr<BlockState> state(static_cast<BlockState*>(resident.wgmma));
    resident.wgmma = nullptr;
    if (!state || static_cast<RunningLaunch*>(block.launch)->error) return;
    for (uint32_t g = 0; g < MAX_GROUPS; ++g) {
        Warpgroup& group = state->groups[g];
        if (group.issued.empty()) continue;
        Thread& t = resident.fibers[g * WARPGROUP];
        const Issued& first = group.issued.front();
        const bool committed = first.group <= group.commits[0];
        for (const Issued& issued : group.issued) land(t, issued);
        report(finding(t, "async", first.site,
                       committed ? "the block ended before wgmma.wait_group covered this wgmma"
                                 : "no wgmma.commit_group follows this wgmma: no wait ever covers it",
                       "After the last wgmma: wgmma.commit_group, then wgmma.wait_group before D is used."));
    }
}

}  // namespace emu
