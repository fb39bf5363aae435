// NumPy's own arrays in the pool (NEP 49): what its operations allocate is reused, on huge pages where large.
#pragma once
#include <cstddef>

namespace nn {

// In this thread's context, unless somebody else's allocator is there.  Arrays remember whose they are, so
// those from before, and those of threads that never call a kernel, are freed as they were made.
void use_pool_in_numpy();

// What NumPy has allocated in this thread since watch(true), and not freed: memory that an operation of
// NumPy's has written.
void watch_numpy(bool on);
bool made_by_numpy(const void* data);

}  // namespace nn
