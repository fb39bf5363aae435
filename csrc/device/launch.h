// Host side of a kernel launch: grids, opt-in shared memory, and the device's limits, asked once.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "library/error.h"

namespace nn {

inline cudaStream_t native(nn_stream stream) { return static_cast<cudaStream_t>(stream); }

constexpr int64_t MAX_GRID_X = 2147483647, MAX_GRID_YZ = 65535;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for so much work, or the most that are wanted: the kernel then takes more than one share per block.
inline unsigned blocks_for(int64_t work, int64_t per_block, int64_t most = MAX_GRID_X) {
    const int64_t blocks = ceil_div(work, per_block);
    return static_cast<unsigned>(blocks < most ? blocks : most);
}

// What kernels decide by, of the current device.
struct Device {
    int capability, multiprocessors, shared_bytes;               // opt-in bytes per block
};

int current_device(Device* device);

// Let a kernel use more than 48 KiB of shared memory, once per kernel and device.
int allow_shared_bytes(const void* kernel, int bytes);

}  // namespace nn
