// What the runtime tells the checker.  All do nothing unless Launch::check (or, for counters, Launch::count)
// is set; callers may skip them then. access() and fence(), which translated code calls too, are declared in
// device.h.
#pragma once
#include "device.h"

namespace emu {

void checker_launch_begin(Launch&);
void checker_launch_end(Launch&, bool completed);
void checker_launch_unwatched();                             // instead of both: what it writes is not seen
void checker_block_begin(Block&);
// every thread has exited (or the block was abandoned)
void checker_block_end(Block&);

// Barriers.  A thread's warp joins the clock of barrier `id` on arrival; on release every waiting thread
// takes the joined clock.
void checker_barrier_arrive(Thread&, uint32_t id);
void checker_barrier_release(Block&, uint32_t id, Thread* const* waiting, uint32_t count);
void checker_cluster_arrive(Thread&);
void checker_cluster_release(Block* const* blocks, uint32_t count);
// has passed barrier.cluster.wait: takes the joined clock of the phase
void checker_cluster_wait(Thread&);
// __syncwarp: orders the lanes of mask among each other
void checker_warp_sync(Warp&, uint32_t mask);
// after checker_barrier_release: group the logged accesses into requests
void checker_flush(Block&);

// Acquire and release through an object in memory (mbarrier, flags, atomics): what was released there happens
// before what acquires it.
void checker_release(Thread&, const void* object);
void checker_acquire(Thread&, const void* object);

// Asynchronous writes and reads (cp.async, bulk copies, wgmma): in flight from issue to landing; any
// conflicting access between is a race.
// The token names the operation; landing makes it a write (or read) by `thread` at that moment.
uint32_t checker_async_issue(Thread&, const void* address, uint32_t bytes, bool write, uint32_t site);
void checker_async_land(Thread&, uint32_t token);
void checker_async_drop(Thread& issuer, uint32_t token);     // it is over and leaves no access behind

// Memory events: what the stand-in runtime does to device memory.
void checker_allocated(const void* begin, size_t bytes);     // never written
void checker_freed(const void* begin, size_t bytes);
// by cudaMemcpy, cudaMemset: initialised, ordered before later launches
void checker_written(const void* begin, size_t bytes);

}  // namespace emu
