// Host side of a kernel's arguments: the checks that most functions of the C ABI share.  Messages name the
// argument.
#pragma once

#include "library/error.h"

namespace nn {

constexpr int64_t MAX_ELEMENTS = int64_t{1} << 60, MAX_INT = 2147483647;

// Elements of a type: not null, and aligned to it.
inline int check_array(const void* pointer, const char* name, int32_t dtype) {
    NN_REQUIRE(pointer, "%s: a null pointer", name);
    NN_REQUIRE(aligned(pointer, static_cast<size_t>(dtype_bytes(dtype))), "%s: %p is not aligned to %s", name,
               pointer, dtype_name(dtype));
    return NN_OK;
}

inline int check_optional(const void* pointer, const char* name, int32_t dtype) {
    return pointer ? check_array(pointer, name, dtype) : NN_OK;
}

inline int check_floating(const char* name, int32_t dtype) {
    NN_REQUIRE(dtype == NN_FLOAT32 || dtype == NN_FLOAT16 || dtype == NN_BFLOAT16,
               "%s: %s (%d); expected float32, float16 or bfloat16", name, dtype_name(dtype), (int)dtype);
    return NN_OK;
}

inline int check_count(const char* name, int64_t n) {
    NN_REQUIRE(n >= 0 && n <= MAX_ELEMENTS, "%s: %lld is not in 0 ... 2^60", name, (long long)n);
    return NN_OK;
}

// What a grid, or an int, must hold.
inline int check_int(const char* name, int64_t n) {
    NN_REQUIRE(n >= 0 && n <= MAX_INT, "%s: %lld is not in 0 ... 2^31 - 1", name, (long long)n);
    return NN_OK;
}

inline int check_index(const char* name, int32_t dtype) {
    NN_REQUIRE(dtype == NN_INT64 || dtype == NN_INT32, "%s: %s (%d); expected int64 or int32", name,
               dtype_name(dtype), (int)dtype);
    return NN_OK;
}

inline int check_flag(const char* name, int32_t value) {
    NN_REQUIRE(value == 0 || value == 1, "%s: %d is not 0 or 1", name, (int)value);
    return NN_OK;
}

// The elements of an array with these two axes.
inline int check_elements(const char* a, int64_t rows, const char* b, int64_t cols) {
    NN_TRY(check_count(a, rows));
    NN_TRY(check_count(b, cols));
    NN_REQUIRE(cols == 0 || rows <= MAX_ELEMENTS / cols, "%s: %lld times %s %lld is over 2^60", a,
               (long long)rows, b, (long long)cols);
    return NN_OK;
}

inline int check_matrix(int64_t rows, int64_t cols) { return check_elements("rows", rows, "cols", cols); }

inline int check_workspace(const void* workspace, int64_t bytes, int64_t needed) {
    if (needed == 0) return NN_OK;
    if (bytes < needed)
        return fail(NN_ERROR_WORKSPACE, "workspace_bytes: %lld, but %lld are needed", (long long)bytes,
                    (long long)needed);
    NN_REQUIRE(workspace, "workspace: a null pointer");
    NN_REQUIRE(aligned(workspace, 16), "workspace: %p is not aligned to 16 bytes", workspace);
    return NN_OK;
}

}  // namespace nn
