// What a user can choose about a run.  Set by emu_configure() ("key=value;...") and, at load, by the
// environment variable CUDA_NN_EMULATOR in the same form.  A new launch sees the values set before it.
#pragma once
#include <cstdint>
#include <string>

namespace emu {

enum class Schedule : uint32_t { forward, reverse, random };

struct Options {
    std::string arch = "sm_80";              // profile of the emulated device
    Schedule schedule = Schedule::forward;   // order in which threads and blocks run
    uint64_t seed = 1;                       // of the random schedule
    uint32_t threads = 1;                    // OS threads that share the blocks of a launch (mode fast only)
    int64_t steps = -1;                      // loop iterations and calls; 0: unlimited; -1: automatic
    bool check = false;                      // races, bounds, initialisation (modules compiled with hooks)
    bool count = false;                      // sectors, bank conflicts, instruction mix (likewise)
    bool cp_async_eager = false;             // cp.async copies at issue (eager) or as late as allowed (lazy)
    bool defer = false;                      // asynchronous host calls happen at the next synchronisation
    int64_t fail_malloc = 0;                 // the n-th allocation from now fails; 0: none
    int64_t fail_launch = 0;                 // the n-th launch from now fails; 0: none
    bool cooperative = false;                // all blocks of launches through api.h are resident together
    uint64_t stack = 0;                      // bytes per CUDA thread; 0: by the kernel's local memory
};

Options& options();

// Applies "key=value;key=value".  False, with the reason, at an unknown key or a value out of range; then
// nothing is changed.
bool configure(const char* text, std::string* why);

}  // namespace emu
