// A pool of buffers: what one operation frees the next one gets, in pages that are mapped already.
//
// Fresh memory costs a page fault per 4 KiB, which is most of what a memory-bound operation takes.  Sizes are
// rounded up to a quarter of an octave (at most a fifth is wasted), so that buffers of nearly the same size
// serve each other; from 2 MiB on they lie on huge pages where the system has them (madvise).  Every buffer
// begins at 64 bytes. A buffer may be taken in one thread and given back in another, or in a forked child.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace nn {

struct PoolCounters {
    int64_t bytes_in_use;  // taken and not given back, rounded up
    int64_t bytes_kept;    // free, waiting
    int64_t peak_bytes;    // largest bytes_in_use
    int64_t bytes_huge;    // of all, those for which huge pages were asked
    int64_t taken, fresh;  // calls of pool_take, and those that the system had to serve
};

void* pool_take(size_t bytes);         // throws std::bad_alloc
void* pool_take_zeroed(size_t bytes);  // what the system has just mapped is zero already
bool pool_owns(const void* data);      // of a pointer with pool_mark or another value in the word before it
void pool_give(void* data) noexcept;   // null is nothing
size_t pool_size(const void* data);    // usable bytes of a buffer
void pool_trim() noexcept;             // give what is kept back to the system
PoolCounters pool_counters();
void pool_reset_peak();

// Whether this processor reads ahead in several places by itself: AMD's, see Reading in kernels/packed_rows.h.
bool follows_streams();
void follow_streams(bool whether);  // for tests: as if it did, or not

}  // namespace nn
