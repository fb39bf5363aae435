#include "core/cpu.h"

#include <atomic>
#include <cstdlib>
#include <thread>

#include "core/registry.h"
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace nn {
namespace {

constexpr const char* names[level_count] = {"generic", "avx2", "avx512", "avx512_bf16", "neon_bf16"};

// The compiler's run-time library asks CPUID, and XGETBV whether the system saves the registers.
bool processor_has(Level level) {
    switch (level) {
        case Level::generic: return true;
#if defined(__x86_64__)
        case Level::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Level::avx512:
            return processor_has(Level::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
        case Level::avx512_bf16:
            return processor_has(Level::avx512) && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vnni");
#elif defined(__linux__) && defined(__aarch64__)
        case Level::neon_bf16: return (getauxval(AT_HWCAP2) & (1UL << 14)) != 0;  // HWCAP2_BF16
#endif
        default: return false;
    }
}

Level first_choice() {
    const std::vector<Level> here = levels_here();
    const char* wanted = std::getenv("NN_NATIVE_LEVEL");
    if (wanted)
        for (Level level : here)
            if (std::string(wanted) == level_name(level)) return level;
    return here.back();
}

std::atomic<Level>& chosen() {
    static std::atomic<Level> level{first_choice()};
    return level;
}

}  // namespace

const char* level_name(Level level) { return names[static_cast<int>(level)]; }

std::vector<Level> levels_here() {
    std::vector<Level> found;
    for (int i = 0; i < level_count; ++i) {
        const Level level = static_cast<Level>(i);
        if (processor_has(level) && level_is_built(level)) found.push_back(level);
    }
    return found;
}

Level level() { return chosen().load(std::memory_order_relaxed); }

bool use_level(const std::string& name) {
    for (Level level : levels_here())
        if (name == level_name(level)) {
            chosen().store(level);
            return true;
        }
    return false;
}

int usable_cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace nn
