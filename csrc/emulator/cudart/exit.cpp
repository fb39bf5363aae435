// What is done when the library is loaded and when the process ends.
//
// With CUDA_NN_EMULATOR_REPORT=PATH it leaves {"reports": [...], "counters": {...}, "statistics": {...}}
// there (as in api.h), also when the program calls exit() in the middle.  A program that is killed, or aborts
// because a call failed, runs nothing at its end: so the file is also written with the first call and with
// every new finding, then with "unfinished": true.  It is written under another name and renamed, so that no
// reader sees half of it.  A second process with the same variable (a child that also uses the runtime)
// appends a dot and its process id to PATH.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "../counters.h"
#include "../reports.h"
#include "call.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

pid_t loaded_by = 0;     // a forked child that only exits must not write its parent's report

long saved = -1;         // findings in the file; -1: not written yet

const std::string& asked_for() {             // the report's path; empty: none is wanted
    static const auto* path = [] {           // never destroyed: calls come until the process has ended
        const char* given = std::getenv("CUDA_NN_EMULATOR_REPORT");
        return new std::string(given ? given : "");
    }();
    return *path;
}

const std::string& own_place() {             // where this process writes it
    static const auto* place = [] {
        const std::string& path = asked_for();
        const bool taken = ::access(path.c_str(), F_OK) == 0;
        return new std::string(taken ? path + "." + std::to_string(getpid()) : path);
    }();
    return *place;
}

std::string everything(bool finished) {      // not by api.h: what is local to a thread is gone by now
    return "{\"reports\": " + reports_json() + ",\n \"counters\": " + counters_json() +
           ",\n \"statistics\": " + statistics_json() +
           (finished ? "}\n" : ",\n \"unfinished\": true}\n");
}

bool write_file(const std::string& path, const std::string& text) {
    FILE* file = std::fopen(path.c_str(), "w");
    if (!file) return false;
    bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    return std::fclose(file) == 0 && written;
}

void write_report(bool finished) {
    const std::string& place = own_place();
    const std::string part = asked_for() + "." + std::to_string(getpid()) + ".part";
    if (write_file(part, everything(finished)) && std::rename(part.c_str(), place.c_str()) == 0) return;
    std::fprintf(stderr, "the emulator's report cannot be written to %s\n", place.c_str());
    unlink(part.c_str());
}

// Registered while the library is loaded, so that it runs after everything the program itself registered.
void at_exit() {
    if (getpid() != loaded_by || !runtime_lock().try_lock())
        return;     // another thread is inside a call: leave it alone
    report_unfinished();
    if (!asked_for().empty()) write_report(true);
    runtime_lock().unlock();
}

const bool registered = [] {
    loaded_by = getpid();
    return std::atexit(at_exit) == 0;
}();

}  // namespace

void keep_findings() {
    if (asked_for().empty() || report_count() == saved || getpid() != loaded_by) return;
    saved = report_count();
    write_report(false);
}

}  // namespace emu::cudart
