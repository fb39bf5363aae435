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

// What kernels decide by, of the current device.
struct Device {
    int capability, multiprocessors, shared_bytes;               // opt-in bytes per block
};

int current_device(Device* device);

// Let a kernel use more than 48 KiB of shared memory, once per kernel and device.
int allow_shared_bytes(const void* kernel, int bytes);

}  // namespace nn
