// What a program asked of the device, in counts.  One object for the process; kernels launched through api.h
// count as well.
#pragma once
#include <cstdint>
#include <string>

namespace emu {

struct Statistics {
    uint64_t launches = 0;               // kernels, those of graphs included
    uint64_t graph_launches = 0;
    uint64_t copies = 0;                 // of any direction
    uint64_t bytes_to_device = 0, bytes_to_host = 0, bytes_on_device = 0;
    uint64_t fills = 0, bytes_filled = 0;
    uint64_t synchronizations = 0;       // calls that wait for a stream, an event or the device
    uint64_t blocking_copies = 0;        // copies that make the host wait, beside those calls
    uint64_t allocations = 0, bytes_allocated = 0, frees = 0;
    uint64_t peak_bytes = 0;             // most device memory in use at once
    uint64_t host_functions = 0;
};

Statistics& statistics();
void clear_statistics();
std::string statistics_json();           // {"launches": 3, ...}, and live_bytes, the device memory in use now

void count_allocation(size_t bytes);     // after it succeeded

// Failure injection (Options::fail_malloc, fail_launch): true for the one call that is to fail.
bool inject_allocation_failure();
bool inject_launch_failure();

}  // namespace emu
