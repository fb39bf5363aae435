// What the checker says of a race, a read of memory never written, a missing proxy fence, a misaligned
// access.
#include <cstring>

#include "describe.h"
#include "findings.h"
#include "watch.h"

namespace emu {

namespace {

const char* const IN_WARP_FIX =
    "Put a barrier between the two accesses, __syncthreads() or, if only one warp is concerned, __syncwarp(): "
    "lanes of a warp do not run in step.";
const char* const IN_BLOCK_FIX = "Put __syncthreads() between the two accesses.";
const char* const IN_CLUSTER_FIX = "Put a barrier of the cluster (cluster.sync()) between the two accesses.";
const char* const BETWEEN_BLOCKS_FIX =
    "Give every block its own output, use atomics, or publish with __threadfence() and an atomic flag; or "
    "split the kernel in two.";
const char* const SAME_PLACE_FIX =
    "Let one thread write, or give each its own element; use an atomic to combine values.";
const char* const ATOMIC_FIX = "Make both accesses atomic, or order them with a barrier.";
const char* const IN_FLIGHT_FIX =
    "Wait for the operation (cp.async.wait_group, wgmma.wait_group, the mbarrier) and then synchronise "
    "before touching its memory.";
const char* const PROXY_FIX =
    "Execute fence.proxy.async after the writes and before the barrier that the issuing thread passes.";

const char* verb_of_info(uint32_t info) {
    if (info & IN_FLIGHT) return info & WROTE ? "asynchronous write" : "asynchronous read";
    if (info & ATOMICALLY) return "atomic";
    return info & WROTE ? "write" : "read";
}

// "thread (3,0,0) of the same block", "thread (3,0,0) of block (1,0,0)".
std::string who(const Accessor& a, uint32_t actor) {
    const Launch& launch = *a.thread.launch;
    std::string text = "thread " + dim_text(thread_index(launch, thread_of_actor(actor)));
    if (block_of_actor(actor) == a.block.ordinal) return text + " of the same block";
    return text + " of block " + dim_text(block_index(launch, watcher().ordinals[block_of_actor(actor)]));
}

std::string target(const Accessor& a) {
    return describe_place(*a.thread.launch, a.thread.block, reinterpret_cast<const void*>(a.address),
                          a.bytes);
}

const char* race_fix(const Accessor& a, uint32_t actor, uint32_t info) {
    const bool same_block = block_of_actor(actor) == a.block.ordinal;
    if (info & IN_FLIGHT) return IN_FLIGHT_FIX;
    if (!same_block && a.in_window) return IN_CLUSTER_FIX;
    if (!same_block) return BETWEEN_BLOCKS_FIX;
    if (info & WROTE && (a.what & KIND) == WRITE && site_of_info(info) == a.site) return SAME_PLACE_FIX;
    if ((info & ATOMICALLY) != 0 || (a.what & KIND) == ATOMIC) return ATOMIC_FIX;
    return actor / WARP == a.me.actor / WARP ? IN_WARP_FIX : IN_BLOCK_FIX;
}

bool exchanges(const Accessor& a) {
    return std::strstr(a.thread.launch->module->sites[a.site].opcode, ".exch");
}

}    // namespace

void report_race(const Accessor& a, uint32_t actor, uint32_t info) {
    const char* kind = info & IN_FLIGHT ? "async" : "race";
    const Launch& launch = *a.thread.launch;
    const uint32_t other = site_of_info(info);
    if (report_again(kind, launch, a.site, other)) return;
    const char* how = info & IN_FLIGHT ? "is still in flight" : "is not ordered with it";
    Report r =
        finding(a.thread, kind, a.site,
                format("%s of %u bytes at %s: the %s by %s%s%s %s", verb(a.what), a.bytes, target(a).c_str(),
                       verb_of_info(info), who(a, actor).c_str(), other == a.site ? "" : " at ",
                       other == a.site ? "" : site_text(launch, other).c_str(), how),
                race_fix(a, actor, info));
    r.other_site = other;
    report(r);
}

void report_uninitialized(const Accessor& a) {
    if (a.what & ATOMIC && exchanges(a)) return;
    const Launch& launch = *a.thread.launch;
    if (!a.in_window) {
        const Allocation* allocation = memory_find(reinterpret_cast<const void*>(a.address));
        if (allocation && allocation->serial <= watcher().trusted_allocation) return;
    }
    if (report_again("uninitialized", launch, a.site, Report::NO_SITE)) return;
    const char* never = a.in_window ? "which no thread of the block has written" : "which was never written";
    report(finding(a.thread, "uninitialized", a.site,
                   format("%s of %u bytes at %s, %s", verb(a.what), a.bytes, target(a).c_str(), never),
                   a.in_window ? "Fill the whole tile, with zeros past the edge, before reading it; mind "
                                 "threads that left early."
                               : "Fill the memory with cudaMemset or cudaMemcpy first, or check which "
                                 "elements the kernel writes."));
}

void report_unfenced_proxy(const Accessor& a, uint32_t actor, uint32_t info) {
    const Launch& launch = *a.thread.launch;
    const uint32_t other = site_of_info(info);
    if (report_again("async", launch, a.site, other)) return;
    Report r = finding(a.thread, "async", a.site,
                       format("read of %s by the async proxy: the ordinary write by %s at %s has no "
                              "fence.proxy.async behind it",
                              target(a).c_str(), who(a, actor).c_str(), site_text(launch, other).c_str()),
                       PROXY_FIX);
    r.other_site = other;
    report(r);
}

void report_misaligned(Thread& t, uintptr_t address, const Wanted& wanted) {
    report(finding(
        t, "misaligned", wanted.site,
        format("%s of %u bytes at %s, which is not a multiple of %u", verb(wanted.what), wanted.bytes,
               describe_place(*t.launch, t.block, reinterpret_cast<const void*>(address), 0).c_str(),
               wanted.bytes),
        "Align the buffer (alignas, __align__), or use narrower accesses where the address may be odd."));
    abandon(t, CUDA_MISALIGNED_ADDRESS);
}

}    // namespace emu
