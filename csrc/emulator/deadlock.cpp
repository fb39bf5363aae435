// The report of a launch in which nobody can go on: who waits where, and how many have exited.
#include <map>

#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

struct Place {
    Wait wait;
    uint32_t site;
    bool operator<(const Place& other) const {
        return wait != other.wait ? wait < other.wait : site < other.site;
    }
};

struct Crowd {
    uint32_t threads = 0;
    const Fiber* example = nullptr;
};

struct Census {
    std::map<Place, Crowd> waiting;
    uint64_t exited = 0;
};

Census count_threads(const Execution& e) {
    Census census;
    for (uint32_t slot = 0; slot < e.resident_count; ++slot) {
        const ResidentBlock& block = *e.resident[slot];
        census.exited += block.thread_count - block.live;
        for (const Warp& w : block.warps) {
            for (uint32_t lanes = w.live; lanes; lanes &= lanes - 1) {
                const Fiber& f = w.fibers[__builtin_ctz(lanes)];
                Crowd& crowd = census.waiting[Place{w.waits[f.lane], w.sites[f.lane]}];
                ++crowd.threads;
                if (!crowd.example) crowd.example = &f;
            }
        }
    }
    return census;
}

std::string barrier_text(const Fiber& f) {
    const ResidentBlock& block = block_of(f);
    for (uint32_t id = 0; id < BARRIERS; ++id) {
        if (!(f.warp->waiting[id] >> f.lane & 1)) continue;
        const Barrier& b = block.barriers[id];
        return format("; barrier %u has seen %u of %u threads", id, b.arrived,
                      b.expected ? b.expected : block.live);
    }
    return "";
}

std::string collective_text(const Fiber& f) {
    const Warp& w = *f.warp;
    const uint32_t mask = w.masks[f.lane];
    return format("; mask 0x%08x, lane %u misses lanes ", mask, f.lane) +
           lanes_text(mask & w.live & ~w.arrived);
}

std::string crowd_text(const Place& place, const Crowd& crowd) {
    const Fiber& f = *crowd.example;
    std::string text =
        format("%u wait at %s (%s, the first is thread (%u,%u,%u) of block (%u,%u,%u)", crowd.threads,
               site_text(*f.launch, place.site).c_str(), opcode_of(*f.launch, place.site), f.x, f.y, f.z,
               f.block->index.x, f.block->index.y, f.block->index.z);
    if (place.wait == Wait::barrier) text += barrier_text(f);
    if (place.wait == Wait::collective) text += collective_text(f);
    return text + ")";
}

// A lane that waits for another one which itself waits in a collective of another mask.  Null: that is not
// what happened.
const Fiber* crossed_masks(const Census& census, uint32_t* other_site) {
    for (const auto& [place, crowd] : census.waiting) {
        if (place.wait != Wait::collective) continue;
        const Fiber& f = *crowd.example;
        const Warp& w = *f.warp;
        for (uint32_t lanes = w.masks[f.lane] & w.arrived; lanes; lanes &= lanes - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
            if (w.masks[lane] == w.masks[f.lane]) continue;
            *other_site = w.sites[lane];
            return &f;
        }
    }
    return nullptr;
}

void report_crossed_masks(const Fiber& f, uint32_t other_site) {
    const Warp& w = *f.warp;
    std::string message = "lanes of a warp wait for each other with different masks:";
    for (uint32_t lanes = w.arrived; lanes;) {
        const uint32_t mask = w.masks[__builtin_ctz(lanes)];
        const uint32_t site = w.sites[__builtin_ctz(lanes)];
        uint32_t together = 0;
        for (uint32_t i = 0; i < WARP; ++i)
            together |= static_cast<uint32_t>(w.masks[i] == mask && w.sites[i] == site) << i;
        together &= lanes;
        lanes &= ~together;
        message += format(" lanes %s with mask 0x%08x at %s%s", lanes_text(together).c_str(), mask,
                          site_text(*f.launch, site).c_str(), lanes ? "," : "");
    }
    Report r = finding(f, "collective", w.sites[f.lane], message,
                       "all lanes that meet must give the same mask, and it must name exactly those lanes");
    r.other_site = other_site;
    report(r);
}

}  // namespace

void report_deadlock(Execution& e) {
    const Census census = count_threads(e);
    if (census.waiting.empty()) return;
    uint32_t other_site = Report::NO_SITE;
    if (const Fiber* f = crossed_masks(census, &other_site)) return report_crossed_masks(*f, other_site);

    std::string message = "no thread can go on: ";
    for (const auto& [place, crowd] : census.waiting) {
        message += (&place == &census.waiting.begin()->first ? "" : ", ") + crowd_text(place, crowd);
    }
    if (census.exited)
        message += format(", %llu have exited", static_cast<unsigned long long>(census.exited));
    const auto first = census.waiting.begin();
    Report r = finding(
        *first->second.example, "deadlock", first->first.site, message,
        "let every thread that others wait for arrive: look for an early return or "
        "a branch around a barrier, "
        "and for a barrier count larger than the number of threads that come");
    if (census.waiting.size() > 1) r.other_site = std::next(first)->first.site;
    report(r);
}

}  // namespace emu
