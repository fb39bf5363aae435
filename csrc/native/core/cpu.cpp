#include "core/cpu.h"

#include <atomic>
#include <cstdlib>
#include <thread>

#include "core/registry.h"
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace nn {
namespace {

constexpr const char* names[level_count] = {"generic", "avx2", "avx512", "avx512_bf16", "amx", "neon_bf16"};

#if defined(__x86_64__) && defined(__linux__)
// Tiles are 8 KiB of state per thread, for which Linux wants to be asked, once per process.
bool may_use_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, all = bf16 | tile | int8;
    return (d & all) == all && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#elif defined(__x86_64__)
bool may_use_tiles() { return false; }
#endif

#if defined(__x86_64__)
// F16C: not every compiler's run-time library knows it by name.
bool converts_halves() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// The compiler's run-time library asks CPUID, and XGETBV whether the system saves the registers.
bool processor_has(Level level) {
    switch (level) {
        case Level::generic: return true;
#if defined(__x86_64__)
        case Level::avx2:  // every flag that build.py compiles a level with
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && converts_halves();
        case Level::avx512:
            return processor_has(Level::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        case Level::avx512_bf16:
            return processor_has(Level::avx512) && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vnni");
        case Level::amx: return processor_has(Level::avx512_bf16) && may_use_tiles();
#elif defined(__linux__) && defined(__aarch64__)
        case Level::neon_bf16: {
            constexpr unsigned long dot_products = 1UL << 20;  // HWCAP_ASIMDDP
            constexpr unsigned long more = 1UL << 13 | 1UL << 14;  // HWCAP2_I8MM, HWCAP2_BF16
            return (getauxval(AT_HWCAP) & dot_products) && (getauxval(AT_HWCAP2) & more) == more;
        }
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
