// Findings: kept by what and where, counted, told as JSON.  Everything a report needs of its module is copied
// when it is made, so that modules may be unloaded before the reports are read.
#include "reports.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "describe.h"
#include "findings.h"
#include "tally.h"

namespace emu {

namespace {

constexpr size_t MOST_REPORTS = 1000;    // different ones; the rest is only counted

struct Position {    // of one side
    std::string file, opcode;
    uint32_t line = 0, ptx_line = 0;
};

struct Kept {
    Report report;
    Position here, there;
};

struct Pair {    // for report_again(), within one launch
    const char* kind;
    uint32_t site, other;
    bool operator<(const Pair& o) const {
        return std::tie(site, other) != std::tie(o.site, o.other)
                   ? std::tie(site, other) < std::tie(o.site, o.other)
                   : std::strcmp(kind, o.kind) < 0;
    }
};

constexpr size_t UNKNOWN = SIZE_MAX;

struct Reports {
    std::mutex lock;
    std::vector<Kept> kept;    // in order of first appearance
    std::map<std::string, size_t> by_key;
    std::map<Pair, size_t> known;    // of the launch with this serial: index in kept, or UNKNOWN
    uint64_t known_launch = 0;
    long omitted = 0;
};

Reports& reports() {
    static Reports* instance =
        new Reports;    // never destroyed: the last reports are read while the process ends
    return *instance;
}

Position position(const ModuleDescriptor* module, uint32_t site) {
    if (!module || site >= module->site_count) return {};
    const Site& s = module->sites[site];
    return {s.file < module->file_count ? module->files[s.file] : "", s.opcode ? s.opcode : "", s.line,
            s.ptx_line};
}

std::string place_key(const Position& p) {
    if (p.line) return p.file + ":" + std::to_string(p.line);
    return p.ptx_line ? "ptx:" + std::to_string(p.ptx_line) : "";
}

// An unrolled loop has many sites on a line, and a race can be met from either side: one finding.
std::string key_of(const Kept& k) {
    std::string here = place_key(k.here), there = place_key(k.there);
    if (k.report.kind == "race" && there < here) std::swap(here, there);
    std::string key = k.report.kind + "|" + k.report.kernel + "|" + here + "|" + there;
    if (here.empty() && there.empty()) key += "|" + k.report.message;
    return key;
}

std::string dim_json(bool known, const Dim& d) {
    return known ? format("[%u, %u, %u]", d.x, d.y, d.z) : "null";
}

std::string json(const Kept& k) {
    const Report& r = k.report;
    const auto number = [](uint32_t n) { return n ? std::to_string(n) : std::string("null"); };
    std::string text = "{\"kind\": " + json_text(r.kind) + ", \"message\": " + json_text(r.message) +
                       ", \"fix\": " + json_text(r.fix);
    text +=
        ", \"kernel\": " + json_text(r.kernel) + ", \"signature\": " + json_text(signature(r.kernel.c_str()));
    text += ", \"file\": " + json_text(k.here.file) + ", \"line\": " + std::to_string(k.here.line);
    text +=
        ", \"ptx_line\": " + std::to_string(k.here.ptx_line) + ", \"opcode\": " + json_text(k.here.opcode);
    text += ", \"other_file\": " + json_text(k.there.file) + ", \"other_line\": " + number(k.there.line);
    text += ", \"other_ptx_line\": " + number(k.there.ptx_line) +
            ", \"other_opcode\": " + json_text(k.there.opcode);
    text +=
        ", \"thread\": " + dim_json(r.in_kernel, r.thread) + ", \"block\": " + dim_json(r.in_kernel, r.block);
    return text + ", \"count\": " + std::to_string(r.count) + "}";
}

}    // namespace

void report(Report r) {
    Reports& all = reports();
    const std::lock_guard<std::mutex> guard(all.lock);
    Kept made{std::move(r), {}, {}};
    made.here = position(made.report.module, made.report.site);
    made.there = position(made.report.module, made.report.other_site);
    const std::string key = key_of(made);
    const auto known = all.by_key.find(key);
    if (known != all.by_key.end()) {
        all.kept[known->second].report.count += made.report.count;
        return;
    }
    if (all.kept.size() >= MOST_REPORTS) {
        all.omitted += made.report.count;
        return;
    }
    all.by_key[key] = all.kept.size();
    all.kept.push_back(std::move(made));
}

bool report_again(const char* kind, const Launch& launch, uint32_t site, uint32_t other_site) {
    Reports& all = reports();
    const std::lock_guard<std::mutex> guard(all.lock);
    if (all.known_launch != launch.serial) all.known.clear();
    all.known_launch = launch.serial;
    const auto [found, is_new] = all.known.emplace(Pair{kind, site, other_site}, UNKNOWN);
    if (is_new) return false;
    if (found->second == UNKNOWN) {
        Kept same;
        same.report.kind = kind;
        same.report.kernel = launch.kernel->name;
        same.here = position(launch.module, site);
        same.there = position(launch.module, other_site);
        const auto kept = all.by_key.find(key_of(same));
        if (kept == all.by_key.end()) {    // beyond MOST_REPORTS
            ++all.omitted;
            return true;
        }
        found->second = kept->second;
    }
    ++all.kept[found->second].report.count;
    return true;
}

Report finding(const Thread& t, const char* kind, uint32_t site, std::string message, std::string fix) {
    Report r;
    r.kind = kind;
    r.message = std::move(message);
    r.fix = std::move(fix);
    r.kernel = t.launch->kernel->name;
    r.module = t.launch->module;
    r.site = site;
    r.thread = {t.x, t.y, t.z};
    r.block = t.block->index;
    return r;
}

std::string format(const char* pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    char buffer[1024];
    const int length = std::vsnprintf(buffer, sizeof buffer, pattern, arguments);
    va_end(arguments);
    if (length < static_cast<int>(sizeof buffer))
        return std::string(buffer, static_cast<size_t>(std::max(0, length)));
    std::string text(static_cast<size_t>(length) + 1, '\0');
    va_start(arguments, pattern);
    std::vsnprintf(text.data(), text.size(), pattern, arguments);
    va_end(arguments);
    text.pop_back();
    return text;
}

std::string reports_json() {
    Reports& all = reports();
    const std::lock_guard<std::mutex> guard(all.lock);
    std::string text = "[";
    for (const Kept& k : all.kept) text += (text.size() > 1 ? ",\n " : "") + json(k);
    if (all.omitted) {
        Kept more;
        more.report.kind = "omitted";
        more.report.message = format("further findings beyond the %zu kept", MOST_REPORTS);
        more.report.in_kernel = false;
        more.report.count = all.omitted;
        text += ",\n " + json(more);
    }
    return text + "]";
}

void clear_reports() {
    Reports& all = reports();
    const std::lock_guard<std::mutex> guard(all.lock);
    all.kept.clear();
    all.by_key.clear();
    all.known.clear();
    all.omitted = 0;
}

long report_count() {
    Reports& all = reports();
    const std::lock_guard<std::mutex> guard(all.lock);
    return static_cast<long>(all.kept.size()) + (all.omitted != 0);
}

}    // namespace emu
