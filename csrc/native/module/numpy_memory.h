// NumPy's own arrays in the pool (NEP 49): what its operations allocate is reused, on huge pages where large.
#pragma once
#include <cstddef>

namespace nn {

// In the current context, unless somebody else's allocator is there; whether it is the pool now.  Arrays
// remember whose they are, so those from before, and those of threads that never call a kernel, are freed as
// they were made.
bool use_pool_in_numpy();

// The same on the first call of each thread, and nothing later.  A context made anew in the thread
// (asyncio.to_thread, Context().run) has NumPy's allocator then, which is slower and does no harm.
void use_pool_in_numpy_once();

// What NumPy has allocated in this thread since watch(true), and not freed: memory that an operation of
// NumPy's has written.  Sees nothing where use_pool_in_numpy() is false.
void watch_numpy(bool on);
bool made_by_numpy(const void* data);

}  // namespace nn
