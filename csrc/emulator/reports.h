// Findings.  Equal findings (kind, kernel, both sites) are one report with a count.
#pragma once
#include <string>

#include "device.h"

namespace emu {

struct Report {
    // race out_of_bounds misaligned uninitialized divergence deadlock collective async host_pointer
    std::string kind;
                                 // use_after_free leak step_budget trap assert stack_overflow invalid_launch
                                 // unsynchronized ...
    std::string message;         // what happened, addresses in terms of variables
    std::string fix;             // one sentence: the usual fix
    std::string kernel;          // mangled
    const ModuleDescriptor* module = nullptr;
    uint32_t site = 0, other_site = NO_SITE;
    Dim thread{}, block{};
    bool in_kernel = true;       // false: found in host calls
    static constexpr uint32_t NO_SITE = 0xffffffffu;
    long count = 1;
};

void report(Report);                                          // thread-safe
// filled from the thread
Report finding(const Thread&, const char* kind, uint32_t site, std::string message, std::string fix);
// "tile[12] (byte 48 of 1024, shared)", "byte 516 of the 512 bytes of argument 1 (out)"
std::string describe_address(const Launch&, const Block*, const void* address);
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

std::string reports_json();                                   // see api.h
void clear_reports();
long report_count();

}  // namespace emu
