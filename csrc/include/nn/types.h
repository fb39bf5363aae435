// Element types, status codes and handles of the C ABI.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define NN_API extern "C" __attribute__((visibility("default")))
#else
#define NN_API
#endif

typedef enum nn_dtype {              // passed as int32_t
    NN_FLOAT32 = 0,
    NN_FLOAT16 = 1,
    NN_BFLOAT16 = 2,
    NN_INT64 = 3,
    NN_INT32 = 4,
    NN_UINT8 = 5,
    NN_BOOL = 6,                     // one byte, 0 or 1
    NN_UINT32 = 7,
    NN_FLOAT64 = 8                   // casts and the generic operations only
} nn_dtype;

typedef enum nn_status {
    NN_OK = 0,
    NN_ERROR_ARGUMENT = 1,           // a value that is wrong on any device: nn_last_error() names it
    NN_ERROR_UNSUPPORTED = 2,        // right, but not on this device or not in this kernel
    NN_ERROR_WORKSPACE = 3,          // the workspace is smaller than nn_..._workspace_size() said
    NN_ERROR_MEMORY = 4,             // the device has not enough memory left
    NN_ERROR_NO_DEVICE = 5,          // no driver, or no device
    NN_ERROR_CUDA = 6                // the CUDA runtime failed; nn_last_error() gives its words
} nn_status;

typedef void* nn_stream;             // a cudaStream_t; never the legacy default stream
typedef void* nn_event;              // a cudaEvent_t
typedef void* nn_graph;              // a cudaGraphExec_t
