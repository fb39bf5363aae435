// statistics.h.
#include "statistics.h"

#include <algorithm>
#include <utility>

#include "../memory.h"
#include "../options.h"

namespace emu {
namespace {

bool counted_down(int64_t& left) { return left > 0 && --left == 0; }

}  // namespace

Statistics& statistics() {
    static Statistics* instance = new Statistics;
    return *instance;
}

void clear_statistics() { statistics() = Statistics(); }

void count_allocation(size_t bytes) {
    Statistics& s = statistics();
    ++s.allocations;
    s.bytes_allocated += bytes;
    s.peak_bytes = std::max<uint64_t>(s.peak_bytes, memory_in_use());
}

bool inject_allocation_failure() { return counted_down(options().fail_malloc); }
bool inject_launch_failure() { return counted_down(options().fail_launch); }

std::string statistics_json() {
    const Statistics& s = statistics();
    const std::pair<const char*, uint64_t> figures[] = {
        {"launches", s.launches},
        {"graph_launches", s.graph_launches},
        {"copies", s.copies},
        {"bytes_to_device", s.bytes_to_device},
        {"bytes_to_host", s.bytes_to_host},
        {"bytes_on_device", s.bytes_on_device},
        {"fills", s.fills},
        {"bytes_filled", s.bytes_filled},
        {"synchronizations", s.synchronizations},
        {"blocking_copies", s.blocking_copies},
        {"allocations", s.allocations},
        {"bytes_allocated", s.bytes_allocated},
        {"frees", s.frees},
        {"peak_bytes", s.peak_bytes},
        {"host_functions", s.host_functions},
        {"live_bytes", memory_in_use()},
    };
    std::string json = "{";
    for (const auto& [name, value] : figures)
        json += (json.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + std::to_string(value);
    return json + "}";
}

}  // namespace emu
