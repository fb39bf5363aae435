// What is done when the library is loaded and when the process ends.
//
// With CUDA_NN_EMULATOR_REPORT=PATH it leaves {"reports": [...], "counters": {...}, "statistics": {...}}
// there (as in api.h), also when the program calls exit() in the middle.  It is written under another name
// and renamed, so that no reader sees half of it.  A second process with the same variable (a child that also
// uses the runtime) appends a dot and its process id to PATH.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "../counters.h"
#include "../reports.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

pid_t loaded_by = 0;     // a forked child that only exits must not write its parent's report

std::string everything() {                   // not by api.h: what is local to a thread is gone by now
    return "{\"reports\": " + reports_json() + ",\n \"counters\": " + counters_json() +
           ",\n \"statistics\": " + statistics_json() + "}\n";
}

bool write_file(const std::string& path, const std::string& text) {
    FILE* file = std::fopen(path.c_str(), "w");
    if (!file) return false;
    bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    return std::fclose(file) == 0 && written;
}

void write_report(const std::string& path) {
    std::string own = path + "." + std::to_string(getpid()), part = own + ".part";
    const std::string& place = ::access(path.c_str(), F_OK) == 0 ? own : path;
    if (write_file(part, everything()) && std::rename(part.c_str(), place.c_str()) == 0) return;
    std::fprintf(stderr, "the emulator's report cannot be written to %s\n", place.c_str());
    unlink(part.c_str());
}

// Registered while the library is loaded, so that it runs after everything the program itself registered.
void at_exit() {
    const char* path = std::getenv("CUDA_NN_EMULATOR_REPORT");
    if (getpid() != loaded_by || !runtime_lock().try_lock())
        return;     // another thread is inside a call: leave it alone
    report_unfinished();
    if (path && *path) write_report(path);
    runtime_lock().unlock();
}

const bool registered = [] {
    loaded_by = getpid();
    return std::atexit(at_exit) == 0;
}();

}  // namespace
}  // namespace emu::cudart
