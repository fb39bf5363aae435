// How a launch is shared among OS threads.  Internal to launch.cpp and workers.cpp.
#pragma once
#include "runtime.h"

namespace emu {

// Takes blocks of the launch until there are none left or one has failed.
void run_share(Execution&, RunningLaunch&);

// The same on this OS thread and on `workers` others, which are kept for later launches.
void run_with_workers(Execution& own, RunningLaunch&, uint32_t workers);

}  // namespace emu
