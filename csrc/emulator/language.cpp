// The parts of language.h that need the runtime's state.
#include "language.h"

#include <ctime>

#include "profiles.h"
#include "runtime.h"

namespace emu {

bool is_local(const Thread& t, uint64_t address) {
    const Fiber& fiber = static_cast<const Fiber&>(t);
    const StackPool& stacks = execution_of(t).stacks;
    return is_within(address, stacks.top(fiber.stack) - stacks.bytes(), stacks.bytes());
}

bool is_constant(const Thread& t, uint64_t address) {
    const ModuleDescriptor& module = *t.launch->module;
    for (uint32_t i = 0; i < module.variable_count; ++i) {
        const Variable& variable = module.variables[i];
        if (variable.space == Space::constant && address - variable.place < variable.bytes) return true;
    }
    return false;
}

static uint64_t nanoseconds(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

uint64_t device_clock(Thread& t) {
    spin(t);
    return nanoseconds(CLOCK_MONOTONIC);
}

uint64_t global_timer(Thread& t) {
    spin(t);
    return nanoseconds(CLOCK_REALTIME);
}

uint32_t hardware_warps() { return profile().threads_per_multiprocessor / WARP; }
uint32_t hardware_multiprocessors() { return profile().multiprocessors; }

}  // namespace emu
