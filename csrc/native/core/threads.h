// One pool of threads, ours.  A loop is split into chunks; every thread begins with its own contiguous share
// and then helps with what is left of the others', so a thread that the system has put aside delays nobody by
// more than the chunk it holds.  (Measured: with one of two cores busy, a pool that waits for every thread
// was 15 to 400 times slower on small shapes.)
//
// Results do not depend on the number of threads because a body's results for index i depend on i alone: who
// runs it, and with which neighbours, changes nothing.  Sums over indices are formed per fixed block, the
// blocks' sums then added in order (for_blocks in kernels/kernel.h).
//
// What a body throws, the loop throws when all of its chunks have ended; of several the first.
//
// A loop inside a body runs in its own thread, as does one started while another Python thread's loop is
// running. Workers start with the first loop that is worth it; they spin for a moment after each, then sleep.
// While a StayAwake lives (a replay: loop upon loop), they spin on.
#pragma once
#include <stdint.h>

namespace nn {

using Body = void (*)(void* context, int64_t begin, int64_t end);

void parallel_chunks(int64_t count, int64_t chunk, Body body, void* context);

// The same of whatever can be called: body(begin, end).
template <class F>
static inline void parallel_chunks(int64_t count, int64_t chunk, const F& body) {
    parallel_chunks(
        count, chunk, [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

int threads();                // NN_THREADS, else the usable cores
void set_threads(int count);  // at least 1; workers beyond it sleep

struct StayAwake {
    StayAwake();
    ~StayAwake();
    StayAwake(const StayAwake&) = delete;
};

}  // namespace nn
