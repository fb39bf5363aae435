// Warp collectives: lanes meet, the last one to arrive works for all.
//
// A lane leaves what it brings in its slot of the Warp (simple collectives: values and controls; others: a
// pointer to a struct on its own stack), and waits.  Results are left in the same slots: a lane's slot is its
// own until it has resumed. Lanes meet when all live lanes of a mask have arrived with that same mask;
// disjoint or nested masks proceed independently.
//
// Exited lanes in a mask: the PTX manual lets shfl, vote, match and redux wait for the lanes that have not
// exited only, so naming them is no error in itself.  Reading a value from one is, and so is an exited lane
// in a matrix instruction.
#include <cmath>
#include <cstring>

#include "checker.h"
#include "counters.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

constexpr uint32_t FULL = 0xffffffffu;
constexpr uint32_t POISON = 0x7fc0dead;    // what an undefined shuffle yields: a NaN that is noticed
constexpr uint32_t NO_LANE = 32;

const char* const MASK_FIX =
    "compute the mask before the branch (__ballot_sync) or take the lanes that really "
    "meet here (__activemask)";

uint32_t first_lane(uint32_t lanes) { return static_cast<uint32_t>(__builtin_ctz(lanes)); }

Warp& warp_of(Thread* const* threads, uint32_t mask) { return *threads[first_lane(mask)]->warp; }

// ---- meeting ----------------------------------------------------------------------------------------------

bool same_masks(const Warp& w, uint32_t lanes, uint32_t mask) {
    uint32_t differs = 0;
    for (uint32_t i = 0; i < WARP; ++i) differs |= (w.masks[i] ^ mask) & (0u - (lanes >> i & 1));
    return differs == 0;
}

uint32_t lane_with_other_operation(const Warp& w, uint32_t lanes, Collective operation) {
    uint64_t differs = 0;
    for (uint32_t i = 0; i < WARP; ++i) {
        const uint64_t other =
            reinterpret_cast<uint64_t>(w.operations[i]) ^ reinterpret_cast<uint64_t>(operation);
        differs |= other & (0ull - (lanes >> i & 1));
    }
    if (!differs) return NO_LANE;
    while (w.operations[first_lane(lanes)] == operation) lanes &= lanes - 1;
    return first_lane(lanes);
}

void report_other_operation(Thread& t, uint32_t mask, uint32_t lane, uint32_t site) {
    const Warp& w = *t.warp;
    Report r = finding(
        t, "collective", site,
        format("lanes of one mask (0x%08x) meet in different collectives: %s here, lane %u in %s at %s", mask,
               opcode_of(*t.launch, site), lane, opcode_of(*t.launch, w.sites[lane]),
               site_text(*t.launch, w.sites[lane]).c_str()),
        MASK_FIX);
    r.other_site = w.sites[lane];
    report(r);
}

void report_missing_lanes(Thread& t, uint32_t mask, uint32_t site) {
    const Warp& w = *t.warp;
    const uint32_t missing = mask & ~w.live;
    const uint32_t never = missing & ~w.populated;
    std::string message = format("%s needs all lanes of mask 0x%08x, but", opcode_of(*t.launch, site), mask);
    if (missing & ~never) message += " lanes " + lanes_text(missing & ~never) + " have exited";
    if (never)
        message += std::string(missing & ~never ? " and" : "") + " lanes " + lanes_text(never) +
                   " do not exist in this block";
    report(finding(t, "collective", site, message,
                   "let every thread of the warp reach the instruction; guard only its loads and stores"));
}

[[gnu::noinline]] void refuse_missing_lanes(Thread& t, uint32_t mask, uint32_t site) {
    report_missing_lanes(t, mask, site);
    abandon(t, CUDA_LAUNCH_FAILURE);
}

void report_not_in_mask(Thread& t, uint32_t mask, uint32_t site) {
    report(finding(t, "collective", site,
                   format("lane %u executes %s with mask 0x%08x, which does not name it", t.lane,
                          opcode_of(*t.launch, site), mask),
                   MASK_FIX));
}

// Runs the collective that the lanes of `mask` (those of them that live) wait in, and makes them ready.
void complete(Thread& t, uint32_t mask, Collective operation, uint32_t site) {
    Warp& w = *t.warp;
    const uint32_t lanes = mask & w.live;
    const uint32_t other = lane_with_other_operation(w, lanes, operation);
    if (other != NO_LANE) {
        report_other_operation(t, mask, other, site);
        abandon(t, CUDA_LAUNCH_FAILURE);
    }
    operation(lanes, w.threads, w.arguments, site);
    if (t.launch->count) count_warp_met(w, lanes);
    w.arrived &= ~lanes;
    w.strict &= ~lanes;
    make_ready(w, lanes);
}

bool all_arrived(const Warp& w, uint32_t mask) {            // with this mask
    const uint32_t lanes = mask & w.live;
    return (w.arrived & lanes) == lanes && same_masks(w, lanes, mask);
}

[[gnu::noinline]] void meet_as_last(Thread& t, uint32_t mask, Collective operation, uint32_t site) {
    Warp& w = *t.warp;
    w.sites[t.lane] = site;
    if (same_masks(w, mask & w.live, mask)) complete(t, mask, operation, site);
    else block_current(t, Wait::collective, site);
}

void meet(Thread& t, uint32_t mask, Collective operation, uint32_t site);

// A lane that its own mask does not name: it goes on by itself.
[[gnu::noinline]] void meet_alone(Thread& t, uint32_t mask, Collective operation, uint32_t site) {
    report_not_in_mask(t, mask, site);
    meet(t, 1u << t.lane, operation, site);
}

// What all collectives of one warp do, after the lane has left its operands.  Like block_current(), it calls
// nothing that returns to it: no registers need saving, which halves what a waiting lane costs.
void meet(Thread& t, uint32_t mask, Collective operation, uint32_t site) {
    Warp& w = *t.warp;
    const uint32_t lane = t.lane, own = 1u << lane;
    if (__builtin_expect(!(mask & own), 0)) return meet_alone(t, mask, operation, site);
    w.masks[lane] = mask;
    w.operations[lane] = operation;
    w.arrived |= own;
    if ((mask & w.live & ~w.arrived) == 0) return meet_as_last(t, mask, operation, site);
    block_current(t, Wait::collective, site);
}

// ---- operations -------------------------------------------------------------------------------------------

void synchronize(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    if (watched(*threads[first_lane(mask)])) checker_warp_sync(w, mask);
}

uint32_t pack_control(uint32_t b, uint32_t c) { return (b & 31) | (c & 0x1f1f) << 8; }

// Lane that `lane` reads, by the manual's formula; `inside` tells whether it lies within the segment.
template <Shuffle mode>
inline uint32_t source_lane(uint32_t lane, uint32_t control, uint32_t* inside) {
    const int32_t own = static_cast<int32_t>(lane);
    const int32_t b = control & 31, clamp = control >> 8 & 31, segment = control >> 16 & 31;
    const int32_t limit = (own & segment) | (clamp & ~segment);
    int32_t source;
    if (mode == Shuffle::up) source = own - b;
    else if (mode == Shuffle::down) source = own + b;
    else if (mode == Shuffle::butterfly) source = own ^ b;
    else source = (own & segment) | (b & ~segment);
    *inside = mode == Shuffle::up ? source >= limit : source <= limit;
    return static_cast<uint32_t>(*inside ? source : own);
}

void report_bad_source(Warp& w, uint32_t lane, uint32_t source, uint32_t mask) {
    Thread& t = *w.threads[lane];
    const char* why = !(w.populated >> source & 1) ? "does not exist in this block"
                      : !(w.live >> source & 1)    ? "has exited"
                                                   : "is not in the mask";
    report(finding(t, "collective", w.sites[lane],
                   format("lane %u reads from lane %u, which %s (mask 0x%08x): the value is undefined", lane,
                          source, why, mask),
                   "name every lane that is read from in the mask, and let it take part"));
}

template <Shuffle mode>
void shuffle_values(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    uint32_t source[WARP], inside[WARP];
    uint64_t result[WARP];
    uint32_t outside = 0;
    for (uint32_t i = 0; i < WARP; ++i) source[i] = source_lane<mode>(i, w.controls[i], &inside[i]);
    for (uint32_t i = 0; i < WARP; ++i) {
        result[i] = static_cast<uint32_t>(w.values[source[i]]) | uint64_t(inside[i]) << 32;
        outside |= (mask >> i & ~(mask >> source[i]) & 1) << i;
    }
    for (; outside; outside &= outside - 1) {
        const uint32_t lane = first_lane(outside);
        report_bad_source(w, lane, source[lane], mask);
        result[lane] = POISON | uint64_t(inside[lane]) << 32;
    }
    for (uint32_t i = 0; i < WARP; ++i) w.values[i] = mask >> i & 1 ? result[i] : w.values[i];
}

template <class Function>
void give_all(Warp& w, uint32_t mask, Function value) {
    for (uint32_t lanes = mask; lanes; lanes &= lanes - 1)
        w.values[first_lane(lanes)] = value(first_lane(lanes));
}

uint32_t lanes_equal_to(const Warp& w, uint32_t mask, uint64_t value) {
    uint32_t equal = 0;
    for (uint32_t i = 0; i < WARP; ++i) equal |= static_cast<uint32_t>(w.values[i] == value) << i;
    return equal & mask;
}

void gather_ballot(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    const uint32_t votes = lanes_equal_to(w, mask, 1);
    give_all(w, mask, [&](uint32_t) { return votes; });
}

template <Vote mode>                         // among the lanes that take part: exited ones have no vote
void count_votes(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    const uint32_t votes = lanes_equal_to(w, mask, 1);
    const bool result = mode == Vote::all   ? votes == mask
                        : mode == Vote::any ? votes != 0
                                            : votes == mask || votes == 0;
    give_all(w, mask, [&](uint32_t) { return result; });
}

void match_any_values(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    uint32_t equal[WARP];
    for (uint32_t i = 0; i < WARP; ++i) equal[i] = lanes_equal_to(w, mask, w.values[i]);
    give_all(w, mask, [&](uint32_t lane) { return equal[lane]; });
}

void match_all_values(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    const uint32_t equal = lanes_equal_to(w, mask, w.values[first_lane(mask)]) == mask ? mask : 0;
    give_all(w, mask, [&](uint32_t) { return equal; });
}

void elect_leader(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    give_all(w, mask, [&](uint32_t) { return first_lane(mask); });
}

// ---- redux ------------------------------------------------------------------------------------------------

// Of floats: -0 is less than +0; a NaN loses against a number, or (nan) wins, in both cases as the canonical
// NaN.
uint32_t extreme(uint32_t a_bits, uint32_t b_bits, bool largest, bool absolute, bool nan) {
    const uint32_t clear = absolute ? 0x7fffffffu : FULL;
    const float a = bits<float>(a_bits & clear), b = bits<float>(b_bits & clear);
    constexpr uint32_t CANONICAL = 0x7fffffffu;
    if (std::isnan(a) && std::isnan(b)) return CANONICAL;
    if (std::isnan(a) || std::isnan(b)) return nan ? CANONICAL : bits<uint32_t>(std::isnan(a) ? b : a);
    const bool a_is_less = a < b || (a == b && std::signbit(a) && !std::signbit(b));
    return bits<uint32_t>(a_is_less == largest ? b : a);
}

uint32_t combine(Redux kind, uint32_t a, uint32_t b) {
    const int32_t sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
    switch (kind) {
        case Redux::add: return a + b;
        case Redux::min_u: return a < b ? a : b;
        case Redux::max_u: return a > b ? a : b;
        case Redux::min_s: return sa < sb ? a : b;
        case Redux::max_s: return sa > sb ? a : b;
        case Redux::bit_and: return a & b;
        case Redux::bit_or: return a | b;
        case Redux::bit_xor: return a ^ b;
        case Redux::min_f: return extreme(a, b, false, false, false);
        case Redux::max_f: return extreme(a, b, true, false, false);
        case Redux::min_abs_f: return extreme(a, b, false, true, false);
        case Redux::max_abs_f: return extreme(a, b, true, true, false);
        case Redux::min_nan_f: return extreme(a, b, false, false, true);
        case Redux::max_nan_f: return extreme(a, b, true, false, true);
        case Redux::min_abs_nan_f: return extreme(a, b, false, true, true);
        case Redux::max_abs_nan_f: return extreme(a, b, true, true, true);
    }
    return 0;
}

bool of_floats(Redux kind) { return kind >= Redux::min_f; }

template <Redux kind>
void reduce_values(uint32_t mask, Thread* const* threads, void* const*, uint32_t) {
    Warp& w = warp_of(threads, mask);
    uint32_t result = static_cast<uint32_t>(w.values[first_lane(mask)]);
    if (of_floats(kind))
        result = combine(kind, result, result);    // a single lane: absolute value, canonical NaN
    for (uint32_t rest = mask & (mask - 1); rest; rest &= rest - 1) {
        result = combine(kind, result, static_cast<uint32_t>(w.values[first_lane(rest)]));
    }
    give_all(w, mask, [&](uint32_t) { return result; });
}

constexpr Collective REDUCTIONS[] = {
    // in the order of Redux
    reduce_values<Redux::add>,           reduce_values<Redux::min_u>,     reduce_values<Redux::max_u>,
    reduce_values<Redux::min_s>,         reduce_values<Redux::max_s>,     reduce_values<Redux::bit_and>,
    reduce_values<Redux::bit_or>,        reduce_values<Redux::bit_xor>,   reduce_values<Redux::min_f>,
    reduce_values<Redux::max_f>,         reduce_values<Redux::min_abs_f>, reduce_values<Redux::max_abs_f>,
    reduce_values<Redux::min_nan_f>,     reduce_values<Redux::max_nan_f>, reduce_values<Redux::min_abs_nan_f>,
    reduce_values<Redux::max_abs_nan_f>,
};

constexpr Collective VOTES[] = {count_votes<Vote::all>, count_votes<Vote::any>,
                                count_votes<Vote::uni>};    // in the order of Vote

constexpr Collective SHUFFLES[] = {
    // in the order of Shuffle
    shuffle_values<Shuffle::up>,
    shuffle_values<Shuffle::down>,
    shuffle_values<Shuffle::butterfly>,
    shuffle_values<Shuffle::index>,
};

// One operand in, one result out.
uint64_t meet_with(Thread& t, uint64_t value, uint32_t mask, Collective operation, uint32_t site) {
    uint64_t& slot = t.warp->values[t.lane];
    slot = value;
    meet(t, mask, operation, site);
    return slot;
}

// ---- warpgroups -------------------------------------------------------------------------------------------

constexpr uint32_t GROUP_WARPS = WARPGROUP / WARP;

void report_incomplete_warpgroup(Thread& t, uint32_t site) {
    report(finding(
        t, "collective", site,
        format(
            "%s is executed by the 128 threads of a warpgroup (four warps from a multiple of 4), "
            "but not all of warps "
            "%u-%u exist and are still running",
            opcode_of(*t.launch, site), t.warp->index / GROUP_WARPS * GROUP_WARPS,
            t.warp->index / GROUP_WARPS * GROUP_WARPS + GROUP_WARPS - 1),
        "launch whole warpgroups, and let all of their threads reach the instruction"));
}

// The four warps of the thread's group, or null when they are not all there.
Warp* warpgroup(Thread& t) {
    ResidentBlock& block = block_of(t);
    const uint32_t first = t.warp->index / GROUP_WARPS * GROUP_WARPS;
    if (first + GROUP_WARPS > block.warp_count) return nullptr;
    for (uint32_t i = 0; i < GROUP_WARPS; ++i) {
        if (block.warps[first + i].live != FULL) return nullptr;
    }
    return &block.warps[first];
}

void complete_warpgroup(Thread& t, Warp* group, Collective operation, uint32_t site) {
    Thread* threads[WARPGROUP];
    void* arguments[WARPGROUP];
    for (uint32_t i = 0; i < GROUP_WARPS; ++i) {
        const uint32_t other = lane_with_other_operation(group[i], FULL, operation);
        if (other != NO_LANE) {
            report_other_operation(*group[i].threads[other], FULL, other, site);
            abandon(t, CUDA_LAUNCH_FAILURE);
        }
        std::memcpy(threads + i * WARP, group[i].threads, sizeof group[i].threads);
        std::memcpy(arguments + i * WARP, group[i].arguments, sizeof group[i].arguments);
    }
    operation(FULL, threads, arguments, site);
    for (uint32_t i = 0; i < GROUP_WARPS; ++i) {
        group[i].group_arrived = 0;
        make_ready(group[i], FULL);
    }
}

}  // namespace

// ---- what translated code calls ---------------------------------------------------------------------------

void warp_sync(Thread& t, uint32_t mask, uint32_t site) { meet(t, mask, synchronize, site); }

uint32_t shuffle(Thread& t, Shuffle mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool* inside,
                 uint32_t site) {
    t.warp->controls[t.lane] = pack_control(b, c);
    const uint64_t result = meet_with(t, value, mask, SHUFFLES[static_cast<uint32_t>(mode)], site);
    if (inside) *inside = result >> 32 & 1;
    return static_cast<uint32_t>(result);
}

uint32_t ballot(Thread& t, bool value, uint32_t mask, uint32_t site) {
    return static_cast<uint32_t>(meet_with(t, value, mask, gather_ballot, site));
}

bool vote(Thread& t, Vote mode, bool value, uint32_t mask, uint32_t site) {
    return meet_with(t, value, mask, VOTES[static_cast<uint32_t>(mode)], site) != 0;
}

uint32_t match_any(Thread& t, uint64_t value, uint32_t mask, uint32_t site) {
    return static_cast<uint32_t>(meet_with(t, value, mask, match_any_values, site));
}

uint32_t match_all(Thread& t, uint64_t value, uint32_t mask, bool* all, uint32_t site) {
    const uint32_t equal = static_cast<uint32_t>(meet_with(t, value, mask, match_all_values, site));
    if (all) *all = equal != 0;
    return equal;
}

uint32_t redux(Thread& t, Redux kind, uint32_t value, uint32_t mask, uint32_t site) {
    return static_cast<uint32_t>(meet_with(t, value, mask, REDUCTIONS[static_cast<uint32_t>(kind)], site));
}

uint32_t elect(Thread& t, uint32_t mask, bool* elected, uint32_t site) {
    const uint32_t leader = static_cast<uint32_t>(meet_with(t, 0, mask, elect_leader, site));
    if (elected) *elected = leader == t.lane;
    return leader;
}

// The lanes that execute this instruction together: those that are here when no other lane of the warp can
// run any further.
uint32_t active_mask(Thread& t, uint32_t site) {
    Warp& w = *t.warp;
    w.converging |= 1u << t.lane;
    block_current(t, Wait::convergence, site);
    return static_cast<uint32_t>(w.values[t.lane]);
}

bool converge(Warp& w) {
    if (!w.converging) return false;
    const uint32_t site = w.sites[first_lane(w.converging)];
    uint32_t together = 0;
    for (uint32_t i = 0; i < WARP; ++i) together |= static_cast<uint32_t>(w.sites[i] == site) << i;
    together &= w.converging;
    w.converging &= ~together;
    give_all(w, together, [&](uint32_t) { return together; });
    make_ready(w, together);
    return true;
}

void collective(Thread& t, uint32_t mask, Collective operation, void* argument, uint32_t site) {
    Warp& w = *t.warp;
    if (__builtin_expect(mask & ~w.live, 0)) return refuse_missing_lanes(t, mask, site);
    w.arguments[t.lane] = argument;
    w.strict |= 1u << t.lane;
    meet(t, mask, operation, site);
}

void warpgroup_collective(Thread& t, Collective operation, void* argument, uint32_t site) {
    Warp& w = *t.warp;
    Warp* group = warpgroup(t);
    if (!group) {
        report_incomplete_warpgroup(t, site);
        abandon(t, CUDA_LAUNCH_FAILURE);
    }
    w.arguments[t.lane] = argument;
    w.operations[t.lane] = operation;
    w.sites[t.lane] = site;
    w.group_arrived |= 1u << t.lane;
    uint32_t everybody = FULL;
    for (uint32_t i = 0; i < GROUP_WARPS; ++i) everybody &= group[i].group_arrived;
    if (everybody == FULL) complete_warpgroup(t, group, operation, site);
    else block_current(t, Wait::warpgroup, site);
}

void collectives_thread_exited(Fiber& f) {
    Warp& w = *f.warp;
    const uint32_t own = 1u << f.lane;
    for (uint32_t lanes = w.arrived; lanes; lanes &= lanes - 1) {
        const uint32_t lane = first_lane(lanes);
        if (!(w.arrived >> lane & 1) || !(w.masks[lane] & own))
            continue;    // completed meanwhile, or not waiting for it
        if (w.strict >> lane & 1) {
            report_missing_lanes(*w.threads[lane], w.masks[lane], w.sites[lane]);
            abandon(f, CUDA_LAUNCH_FAILURE);
        }
        if (all_arrived(w, w.masks[lane]))
            complete(*w.threads[lane], w.masks[lane], w.operations[lane], w.sites[lane]);
    }
}

}  // namespace emu
