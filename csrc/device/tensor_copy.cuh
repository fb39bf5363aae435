// Copies of boxes of a tensor from global to shared memory by the tensor memory accelerator (sm_90): one
// thread asks, nobody computes an address, and what lies outside the tensor arrives as zeros.  The maps are
// made on the host: tensor_map.h.  PTX ISA, "cp.async.bulk.tensor".
//
//     __global__ void kernel(const __grid_constant__ CUtensorMap map) ...
//     if (one thread) barrier_expect(full, BOX_BYTES), copy_box(to, map, full, x, y, z);
//
// Boxes with the 128-byte swizzle: `to` is aligned to 1024 bytes, rows lie as swizzle.cuh says.  All bytes of
// the box complete on the barrier, those outside the tensor too.
#pragma once

#include <cuda.h>

#include "mbarrier.cuh"

namespace nn {

// The box that begins at x, y, z, counted from the innermost dimension; they may be outside the tensor.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, Barrier* full, int x, int y,
                                         int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];"
                 :: "r"(shared_address(to)), "l"(&map), "r"(shared_address(full)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// Fetches the map itself, early.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory");
}

}  // namespace nn
