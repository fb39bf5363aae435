// How a function of the C ABI fails: a code for the caller, words for nn_last_error().
#pragma once

#include <cuda_runtime.h>

#include "nn/types.h"

namespace nn {

// Keep the message for nn_last_error() and return the code.
int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The code for what the CUDA runtime answered; `what` names the call or the kernel.
int checked(cudaError_t error, const char* what);

// After a launch: its error, if the configuration was refused.
inline int launched(const char* kernel) { return checked(cudaGetLastError(), kernel); }

const char* dtype_name(int32_t dtype);
int64_t dtype_bytes(int32_t dtype);      // 0 for a code that is no type

// Whether a pointer may be read in units of that many bytes.
inline bool aligned(const void* pointer, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace nn

// Inside a function of the C ABI:  NN_REQUIRE(rows >= 0, "rows: %lld is negative", (long long)rows);
#define NN_REQUIRE(condition, ...) \
    do { if (!(condition)) return nn::fail(NN_ERROR_ARGUMENT, __VA_ARGS__); } while (0)
#define NN_SUPPORT(condition, ...) \
    do { if (!(condition)) return nn::fail(NN_ERROR_UNSUPPORTED, __VA_ARGS__); } while (0)
#define NN_TRY(call) \
    do { if (int status_ = (call)) return status_; } while (0)
