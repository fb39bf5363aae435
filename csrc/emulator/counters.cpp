// Counters: the launch's accesses by site while it runs; at its end summed by line and kernel, so that
// modules may be unloaded.
#include "counters.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "describe.h"
#include "tally.h"
#include "watch.h"

namespace emu {

namespace {

constexpr size_t LONGEST_LOG =
    4096;    // accesses of one lane; then the others of its warp get their turn to catch up

using Line = std::pair<std::string, uint32_t>;

struct KernelTally {
    uint64_t launches = 0, blocks = 0, threads = 0;
    Tally total;
    std::map<Line, Tally> lines;
};

struct CountedLaunch {
    std::vector<MemoryTally> sites;
    std::vector<uint32_t> line_of_site;    // number of its line, from 1
    std::vector<Line> lines;               // by number - 1
    DistinctBytes distinct;
    uint64_t barriers = 0;
};

CountedLaunch& current() {
    static CountedLaunch* instance = new CountedLaunch;
    return *instance;
}

std::map<std::string, KernelTally>& kernels() {
    static auto* instance = new std::map<std::string, KernelTally>;
    return *instance;
}

// ---- while it runs ----------------------------------------------------------------------------------------

bool logged(uint32_t what) { return !(what & (LOCAL | CONSTANT)); }

// A bulk copy is announced in pieces: one request, as far as they follow each other.
bool continues(const AccessLog& log, uintptr_t address, uint32_t what, uint32_t site) {
    if (!(what & ASYNC_PROXY) || log.empty()) return false;
    const LoggedAccess& last = log.back();
    return last.site == site && last.what == what && last.address + last.bytes == address;
}

void use_request(const Request& r, void*) {
    CountedLaunch& c = current();
    MemoryTally& m = c.sites[r.site];
    if ((r.what & KIND) == ATOMIC) m.atomics += static_cast<uint64_t>(__builtin_popcount(r.lanes));
    if (r.what & SHARED) {
        uint32_t ideal;
        m.bank_wavefronts += wavefronts_of(r, &ideal);
        m.ideal_wavefronts += ideal;
        ++m.shared_requests;
        return;
    }
    static thread_local std::vector<Sector> sectors;
    sectors_of(r, sectors);
    uint64_t asked = 0, distinct = 0;
    for (uint32_t lanes = r.lanes; lanes; lanes &= lanes - 1) asked += r.bytes[__builtin_ctz(lanes)];
    const bool reads = (r.what & KIND) != WRITE, writes = (r.what & KIND) != READ;
    const uint32_t line = c.line_of_site[r.site];
    for (const Sector& s : sectors) {
        distinct += static_cast<uint64_t>(__builtin_popcount(s.bytes));
        for (const uint32_t group : {0u, line}) {
            if (reads) c.distinct.add(group, s.number, s.bytes, false);
            if (writes) c.distinct.add(group, s.number, s.bytes, true);
        }
    }
    ++m.requests;
    m.sectors += sectors.size();
    m.ideal_sectors += (distinct + 31) / 32;
    if (reads) m.bytes_read += asked;
    if (writes) m.bytes_written += asked;
}

void flush_warp(BlockWatch& b, uint32_t warp) {
    AccessLog* logs[WARP];
    const uint32_t begin = warp * WARP;
    const uint32_t lanes = std::min<uint32_t>(WARP, static_cast<uint32_t>(b.threads.size()) - begin);
    for (uint32_t i = 0; i < lanes; ++i) logs[i] = &b.threads[begin + i].log;
    group_requests(logs, lanes, use_request, nullptr);
}

// The lane that runs now is far ahead of the others of its warp.
void let_others_catch_up(Thread& t) {
    if (execution_of(t).current != &t) return;
    pass_turn(t);
    BlockWatch& b = *t.block->watch;
    // The first to come back counts for all of them.
    if (b.threads[t.linear].log.size() >= LONGEST_LOG) flush_warp(b, t.warp->index);
}

}    // namespace

void count_access(Thread& t, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site) {
    BlockWatch& b = *t.block->watch;
    if (!logged(what)) return;
    AccessLog& log = b.threads[t.linear].log;
    if (address - b.shared < b.windows_bytes) {
        what |= SHARED;
        address -= b.shared;
    }
    if (continues(log, address, what, site)) {
        log.back().bytes += bytes;
        return;
    }
    log.push_back({address, bytes, site, what});
    if (log.size() >= LONGEST_LOG && !(what & (MATRIX | ASYNC_PROXY))) let_others_catch_up(t);
}

// A meeting is logged by all lanes or by none: they are told apart by their number.
void count_warp_met(Warp& warp, uint32_t lanes) {
    BlockWatch* b = warp.block->watch;
    if (!b || !b->count || lanes != warp.live) return;
    ThreadWatch* threads = &b->threads[warp.index * WARP];
    bool news = false;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const AccessLog& log = threads[__builtin_ctz(rest)].log;
        news |= !log.empty() && log.back().site != LoggedAccess::MEETING;
    }
    if (!news) return;
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        threads[__builtin_ctz(rest)].log.push_back({0, 0, LoggedAccess::MEETING, 0});
}

void count_barrier(BlockWatch&) { ++current().barriers; }

void count_block_met(BlockWatch& b) {
    for (uint32_t warp = 0; warp * WARP < b.threads.size(); ++warp) flush_warp(b, warp);
}

void counters_launch_begin(const Launch& launch) {
    CountedLaunch& c = current();
    const ModuleDescriptor& module = *launch.module;
    c.sites.assign(module.site_count, MemoryTally());
    c.line_of_site.assign(module.site_count, 0);
    c.lines.clear();
    c.distinct.clear();
    c.barriers = 0;
    std::unordered_map<uint64_t, uint32_t> numbers;
    for (uint32_t i = 0; i < module.site_count; ++i) {
        const Site& site = module.sites[i];
        uint32_t& number = numbers[static_cast<uint64_t>(site.file) << 32 | site.line];
        if (number == 0) {
            c.lines.emplace_back(site.file < module.file_count ? module.files[site.file] : "", site.line);
            number = static_cast<uint32_t>(c.lines.size());
        }
        c.line_of_site[i] = number;
    }
}

// ---- at its end -------------------------------------------------------------------------------------------

namespace {

bool is_barrier(const char* kind) { return std::strcmp(kind, "barrier") == 0; }
bool is_collective(const char* kind) {
    return std::strcmp(kind, "warp") == 0 || std::strcmp(kind, "tensor") == 0 ||
           std::strcmp(kind, "matrix") == 0;
}

Tally tally_of_site(const Site& site, const MemoryTally& memory, uint64_t executions) {
    Tally t;
    t.memory = memory;
    if (executions == 0) return t;
    const char* kind = instruction_class(site.opcode);
    t.flops[static_cast<uint32_t>(site.flop_kind)] =
        site.flop_kind == FlopKind::none ? 0 : executions * site.flops;
    t.instructions = executions;
    t.mix[kind] = executions;
    if (is_barrier(kind)) t.barriers = executions;    // by thread: made barriers of blocks below
    if (is_collective(kind)) t.collectives = (executions + WARP - 1) / WARP;
    return t;
}

void add_distinct(const CountedLaunch& c, Tally& total, std::vector<Tally>& lines) {
    c.distinct.for_each([&](uint32_t group, uint32_t read, uint32_t written) {
        MemoryTally& m = group ? lines[group - 1].memory : total.memory;
        m.distinct_bytes_read += static_cast<uint64_t>(__builtin_popcount(read));
        m.distinct_bytes_written += static_cast<uint64_t>(__builtin_popcount(written));
    });
}

// Barriers were counted as they opened; lines share them by how many threads arrived there.
void share_barriers(uint64_t opened, Tally& total, std::vector<Tally>& lines) {
    const uint64_t arrivals = total.barriers;
    for (Tally& line : lines)
        line.barriers = arrivals ? (line.barriers * opened + arrivals / 2) / arrivals : 0;
    total.barriers = opened;
}

bool empty(const Tally& t) {
    return t.instructions == 0 && t.memory.requests == 0 && t.memory.shared_requests == 0;
}

}    // namespace

void counters_launch_end(const Launch& launch, const std::vector<uint64_t>& executions) {
    CountedLaunch& c = current();
    const ModuleDescriptor& module = *launch.module;
    Tally total;
    std::vector<Tally> lines(c.lines.size());
    for (uint32_t i = 0; i < module.site_count; ++i) {
        const Site& site = module.sites[i];
        const uint64_t count = site.basic_block < executions.size() ? executions[site.basic_block] : 0;
        const MemoryTally& memory = c.sites[i];
        if (count == 0 && memory.requests == 0 && memory.shared_requests == 0) continue;
        const Tally tally = tally_of_site(site, memory, count);
        total.add(tally);
        lines[c.line_of_site[i] - 1].add(tally);
    }
    add_distinct(c, total, lines);
    share_barriers(c.barriers, total, lines);
    KernelTally& kernel = kernels()[launch.kernel->name];
    const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    ++kernel.launches;
    kernel.blocks += blocks;
    kernel.threads += blocks * launch.block.x * launch.block.y * launch.block.z;
    kernel.total.add(total);
    for (size_t i = 0; i < lines.size(); ++i)
        if (!empty(lines[i])) kernel.lines[c.lines[i]].add(lines[i]);
    c.distinct.clear();
}

std::string counters_json() {
    std::string text = "{";
    for (const auto& [name, kernel] : kernels()) {
        if (text.size() > 1) text += ",\n ";
        text += json_text(name) + ": {\"signature\": " + json_text(signature(name.c_str()));
        text += format(", \"launches\": %llu, \"blocks\": %llu, \"threads\": %llu, ",
                       static_cast<unsigned long long>(kernel.launches),
                       static_cast<unsigned long long>(kernel.blocks),
                       static_cast<unsigned long long>(kernel.threads));
        text += kernel.total.json_fields() + ", \"by_line\": [";
        bool first = true;
        for (const auto& [line, tally] : kernel.lines) {
            text += format("%s\n  {\"file\": %s, \"line\": %u, ", first ? "" : ",",
                           json_text(line.first).c_str(), line.second);
            text += tally.json_fields() + "}";
            first = false;
        }
        text += "]}";
    }
    return text + "}";
}

void clear_counters() { kernels().clear(); }

}    // namespace emu
