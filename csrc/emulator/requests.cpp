// From the lanes' logs to requests of warps, and what a request costs (counters.h).
#include <algorithm>

#include "counters.h"

namespace emu {

namespace {

constexpr uint32_t SECTOR = 32;        // bytes: what L2 transfers
constexpr uint32_t BANKS = 32;         // of shared memory, 4 bytes each
constexpr uint32_t WAVEFRONT = 128;    // bytes that all banks deliver together

uint32_t first_lane(uint32_t lanes) { return static_cast<uint32_t>(__builtin_ctz(lanes)); }

// ---- sectors ----------------------------------------------------------------------------------------------

void add_range(uintptr_t begin, uint32_t bytes, std::vector<Sector>& sectors) {
    const uintptr_t end = begin + bytes;
    for (uintptr_t at = begin; at < end;) {
        const uintptr_t next = std::min<uintptr_t>(end, (at / SECTOR + 1) * SECTOR);
        const uint32_t length = static_cast<uint32_t>(next - at);
        const uint32_t mask = (length == SECTOR ? 0xffffffffu : (1u << length) - 1) << at % SECTOR;
        if (!sectors.empty() && sectors.back().number == at / SECTOR) sectors.back().bytes |= mask;
        else sectors.push_back({at / SECTOR, mask});
        at = next;
    }
}

void merge_equal(std::vector<Sector>& sectors) {
    const auto by_number = [](const Sector& a, const Sector& b) { return a.number < b.number; };
    if (!std::is_sorted(sectors.begin(), sectors.end(), by_number))
        std::sort(sectors.begin(), sectors.end(), by_number);
    size_t kept = 0;
    for (size_t i = 1; i < sectors.size(); ++i) {
        if (sectors[i].number == sectors[kept].number) sectors[kept].bytes |= sectors[i].bytes;
        else sectors[++kept] = sectors[i];
    }
    if (!sectors.empty()) sectors.resize(kept + 1);
}

// ---- banks ------------------------------------------------------------------------------------------------

// The most distinct words that one bank must deliver to these lanes.
uint32_t conflicts(const Request& r, uint32_t lanes) {
    uint32_t words[BANKS][WARP];    // a phase has at most 32 words
    uint32_t count[BANKS] = {}, most = 0;
    for (; lanes; lanes &= lanes - 1) {
        const uint32_t lane = first_lane(lanes);
        const auto last = static_cast<uint32_t>((r.address[lane] + r.bytes[lane] - 1) / 4);
        for (auto word = static_cast<uint32_t>(r.address[lane] / 4); word <= last; ++word) {
            const uint32_t bank = word % BANKS;
            uint32_t i = 0;
            while (i < count[bank] && words[bank][i] != word) ++i;
            if (i < count[bank]) continue;
            words[bank][count[bank]++] = word;
            most = std::max(most, count[bank]);
        }
    }
    return most;
}

// ---- grouping ---------------------------------------------------------------------------------------------

struct Position {
    const LoggedAccess* at;
    const LoggedAccess* end;
};

void take(Request& r, uint32_t lane, const LoggedAccess& access) {
    if (r.lanes == 0) {
        r.site = access.site;
        r.what = access.what;
    }
    r.lanes |= 1u << lane;
    r.address[lane] = access.address;
    r.bytes[lane] = access.bytes;
}

// All lanes that logged anything logged the same sites: the usual case.
bool in_lockstep(const Position* lanes, uint32_t count) {
    const Position* model = nullptr;
    for (uint32_t i = 0; i < count; ++i) {
        if (lanes[i].at == lanes[i].end) continue;
        if (!model) {
            model = &lanes[i];
            continue;
        }
        if (lanes[i].end - lanes[i].at != model->end - model->at) return false;
        for (const LoggedAccess *a = lanes[i].at, *b = model->at; a < lanes[i].end; ++a, ++b)
            if (a->site != b->site) return false;
    }
    return true;
}

void group_lockstep(const Position* lanes, uint32_t count, UseRequest use, void* context) {
    for (size_t k = 0;; ++k) {
        Request r;
        r.lanes = 0;
        for (uint32_t lane = 0; lane < count; ++lane)
            if (k < static_cast<size_t>(lanes[lane].end - lanes[lane].at)) take(r, lane, lanes[lane].at[k]);
        if (r.lanes == 0) return;
        use(r, context);
    }
}

// Lanes went different ways: the n-th execution of a site by each lane belongs together.
void group_by_occurrence(const Position* lanes, uint32_t count, UseRequest use, void* context) {
    struct Key {
        uint32_t site, occurrence, lane;
        const LoggedAccess* access;
    };
    static thread_local std::vector<Key> keys;
    static thread_local std::vector<uint32_t> seen;    // by site
    keys.clear();
    for (uint32_t lane = 0; lane < count; ++lane) {
        for (const LoggedAccess* a = lanes[lane].at; a < lanes[lane].end; ++a) {
            if (seen.size() <= a->site) seen.resize(a->site + 1, 0);
            keys.push_back({a->site, seen[a->site]++, lane, a});
        }
        for (const LoggedAccess* a = lanes[lane].at; a < lanes[lane].end; ++a) seen[a->site] = 0;
    }
    std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
        return a.site != b.site               ? a.site < b.site
               : a.occurrence != b.occurrence ? a.occurrence < b.occurrence
                                              : a.lane < b.lane;
    });
    for (size_t i = 0; i < keys.size();) {
        Request r;
        r.lanes = 0;
        const Key& first = keys[i];
        for (; i < keys.size() && keys[i].site == first.site && keys[i].occurrence == first.occurrence; ++i)
            take(r, keys[i].lane, *keys[i].access);
        use(r, context);
    }
}

const LoggedAccess* next_meeting(const LoggedAccess* at, const LoggedAccess* end) {
    while (at < end && at->site != LoggedAccess::MEETING) ++at;
    return at;
}

}    // namespace

void sectors_of(const Request& r, std::vector<Sector>& sectors) {
    sectors.clear();
    for (uint32_t lanes = r.lanes; lanes; lanes &= lanes - 1)
        add_range(r.address[first_lane(lanes)], r.bytes[first_lane(lanes)], sectors);
    merge_equal(sectors);
}

uint32_t wavefronts_of(const Request& r, uint32_t* ideal) {
    uint32_t widest = 0;
    for (uint32_t lanes = r.lanes; lanes; lanes &= lanes - 1)
        widest = std::max(widest, r.bytes[first_lane(lanes)]);
    *ideal = 0;
    if (widest > 16) {    // a bulk copy: contiguous
        for (uint32_t lanes = r.lanes; lanes; lanes &= lanes - 1)
            *ideal += (r.bytes[first_lane(lanes)] + WAVEFRONT - 1) / WAVEFRONT;
        return *ideal;
    }
    const uint32_t per_phase = widest <= 4 ? 32 : widest == 8 ? 16 : 8;
    const uint32_t phase = per_phase == 32 ? 0xffffffffu : (1u << per_phase) - 1;
    uint32_t wavefronts = 0;
    for (uint32_t start = 0; start < WARP; start += per_phase) {
        const uint32_t lanes = r.lanes & phase << start;
        if (!lanes) continue;
        ++*ideal;
        wavefronts += conflicts(r, lanes);
    }
    return wavefronts;
}

void group_requests(AccessLog* const* logs, uint32_t lanes, UseRequest use, void* context) {
    Position whole[WARP], part[WARP];
    for (uint32_t i = 0; i < lanes; ++i) whole[i] = {logs[i]->data(), logs[i]->data() + logs[i]->size()};
    for (bool more = true; more;) {
        more = false;
        for (uint32_t i = 0; i < lanes; ++i) {
            const LoggedAccess* end = next_meeting(whole[i].at, whole[i].end);
            part[i] = {whole[i].at, end};
            more |= end < whole[i].end;
            whole[i].at = end < whole[i].end ? end + 1 : end;
        }
        if (in_lockstep(part, lanes)) group_lockstep(part, lanes, use, context);
        else group_by_occurrence(part, lanes, use, context);
    }
    for (uint32_t i = 0; i < lanes; ++i) logs[i]->clear();
}

}    // namespace emu
