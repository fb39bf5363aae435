// error.h, and the two functions of the C ABI that tell what went wrong.
#include "error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "nn/runtime.h"

namespace nn {
namespace {

thread_local char message[1024] = "";

struct Type {
    const char* name;
    int64_t bytes;
};

constexpr Type TYPES[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8}, {"int32", 4},
                          {"uint8", 1},   {"bool", 1},    {"uint32", 4},   {"float64", 8}};

const Type* type_of(int32_t dtype) {
    bool known = dtype >= 0 && dtype < static_cast<int32_t>(sizeof TYPES / sizeof *TYPES);
    return known ? TYPES + dtype : nullptr;
}

}  // namespace

int fail(int status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

int checked(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return NN_OK;
    cudaGetLastError();                      // an error that does not stick is not for the next call to find
    int status = error == cudaErrorMemoryAllocation ? NN_ERROR_MEMORY
               : error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ? NN_ERROR_NO_DEVICE
                                                                                    : NN_ERROR_CUDA;
    const char* more = status == NN_ERROR_NO_DEVICE ? "no CUDA driver or no device here: " : "";
    return fail(status, "%s: %s%s (%s)", what, more, cudaGetErrorString(error), cudaGetErrorName(error));
}

const char* dtype_name(int32_t dtype) { return type_of(dtype) ? type_of(dtype)->name : "no type"; }
int64_t dtype_bytes(int32_t dtype) { return type_of(dtype) ? type_of(dtype)->bytes : 0; }

}  // namespace nn

NN_API int32_t nn_abi_version(void) { return NN_ABI_VERSION; }

NN_API const char* nn_last_error(void) { return nn::message; }

NN_API const char* nn_error_string(int32_t status) {
    switch (status) {
        case NN_OK: return "no error";
        case NN_ERROR_ARGUMENT: return "an argument is wrong";
        case NN_ERROR_UNSUPPORTED: return "not supported on this device or by this kernel";
        case NN_ERROR_WORKSPACE: return "the workspace is too small";
        case NN_ERROR_MEMORY: return "out of device memory";
        case NN_ERROR_NO_DEVICE: return "no CUDA driver or no device";
        case NN_ERROR_CUDA: return "the CUDA runtime failed";
    }
    return "unknown status";
}
