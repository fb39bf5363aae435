// What crosses the line between the core, the kernels and the Python module: plain data, no inline functions.
//
// Kernel files are compiled once per level of instructions.  An inline function defined here would be
// compiled at every level, and the linker would keep any one of them: AVX-512 on a machine without it.  So
// helpers with bodies live in namespace nn::NN_LEVEL (kernels/kernel.h) or in core/*.cpp, never here
// (tests/native/test_build.py looks).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace nn {

struct bf16 {
    uint16_t bits;
};  // the upper half of a float32

enum class DType : int32_t { none, f32, bf16, f64, i32, i64, boolean, u8 };

// In order of preference; a kernel that a level lacks is taken from the one below.
enum class Level : int32_t { generic, avx2, avx512, avx512_bf16, amx, neon_bf16 };
constexpr int level_count = 6;

constexpr int max_axes = 5, max_arrays = 16, max_numbers = 12;

struct Array {
    void* data;  // null: an optional argument that was not given, or a result nobody wants
    int64_t shape[max_axes];
    int64_t stride[max_axes];  // in elements
    int32_t axes;
    DType dtype;
};

struct Number {
    double value;
    const double* at;  // not null: read there each time the call runs (recorded steps)
};

// One call of a kernel, complete: what a recording keeps.  Arrays: results, then arguments, in the text's
// order.
struct Call {
    const struct Kernel* kernel;
    Array array[max_arrays];
    Number number[max_numbers];
};

// False: declined, before anything was written; the reference runs instead.
using Function = bool (*)(const Call&);

// Several calls of one kernel as one loop over the threads.  Each result has the bits of its call alone.
using FunctionOfMany = void (*)(const Call* calls, int64_t count);

// One instance of a kernel: at one level, for one element type.  Constant data; see NN_KERNEL.
struct Entry {
    const char* text;  // the line of nn/backends/protocol.py, with native's own marks
    Level level;
    DType dtype;
    Function run;
    FunctionOfMany run_many = nullptr;  // few kernels have one: NN_KERNEL_OF_MANY
};

}  // namespace nn
