// What the machine could do at best: loops of nothing but multiply-adds, and of nothing but reads.  What a
// benchmark reaches is given as a share of them (nn/bench/ceilings.py), measured in the same run.
#pragma once
#include <stdint.h>

#include "core/types.h"

namespace nn {

// One loop at one level: constant data in a linker section, as a kernel's Entry is.
struct Ceiling {
    const char* name;  // the type of the factors (sums are float32, or int32 of int8), or "read"
    Level level;
    double operations;  // of one round in one thread, a multiply-add being two; 0 of "read"
    void (*run)(int64_t count, const char* data, int streams);  // rounds; of "read", bytes at data
};

const Ceiling* find_ceiling(const char* name, Level level);  // of this level or the next lower; null: none

// In every thread of the pool at once.  Bytes are shared out, a share read at `streams` (1, 2, 4, 8) places
// in turn.
void run_ceiling(const Ceiling& ceiling, int64_t count, const void* data = nullptr, int streams = 1);

}  // namespace nn
