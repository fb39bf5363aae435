// All experts' linear maps: the functions of the C ABI, and which path a call takes.
#include "device/arguments.h"
#include "grouped.cuh"

namespace nn {
namespace {

constexpr int64_t ROWS = 2147483648, EXPERTS = 1024;

bool tensor_path(int capability, int32_t dtype, int64_t inputs, int64_t outputs) {
    const bool type = (dtype == NN_FLOAT16 && capability >= 75) || (dtype == NN_BFLOAT16 && capability >= 80);
    return type && inputs % 8 == 0 && outputs % 8 == 0;
}

int check_widths(int64_t inputs, int64_t outputs) {
    NN_TRY(check_int("inputs", inputs));
    return check_int("outputs", outputs);
}

struct Argument {
    const char* name;
    const void* pointer;
    bool empty;                      // may be null
    int32_t dtype;
};

int check(const Grouped& call, int64_t choices, int64_t num_experts, int32_t dtype,
          const Argument (&arrays)[3]) {
    NN_TRY(check_floating("dtype", dtype));
    NN_TRY(check_widths(call.inputs, call.outputs));
    NN_REQUIRE(call.rows >= 0 && call.rows <= ROWS, "rows: %lld is not in 0 ... 2^31", (long long)call.rows);
    NN_REQUIRE(num_experts >= 1 && num_experts <= EXPERTS, "num_experts: %lld is not in 1 ... %lld",
               (long long)num_experts, (long long)EXPERTS);
    NN_REQUIRE(!call.order || (choices >= 1 && choices <= EXPERTS), "choices: %lld is not in 1 ... %lld",
               (long long)choices, (long long)EXPERTS);
    NN_TRY(check_array(call.offsets, "offsets", NN_INT64));
    if (call.order) NN_TRY(check_array(call.order, "order", NN_INT64));
    if (call.hidden) NN_TRY(check_array(call.hidden, "hidden", dtype));
    for (const Argument& array : arrays)
        if (!array.empty) NN_TRY(check_array(array.pointer, array.name, array.dtype));
    return NN_OK;
}

int run(Grouped& call, Product product, int32_t dtype, nn_stream stream) {
    Device device;
    NN_TRY(current_device(&device));
    const bool all = aligned(call.out, 16) && aligned(call.a, 16) && aligned(call.b, 16) &&
    aligned(call.hidden, 16);
    call.vector = all && call.inputs % 4 == 0 && call.outputs % (product == Product::SWIGLU ? 8 : 4) == 0;
    return all && tensor_path(device.capability, dtype, call.inputs, call.outputs)
               ? grouped_mma(call, product, dtype, native(stream))
               : grouped_ffma(call, product, dtype, native(stream));
}

}  // namespace
}  // namespace nn

using namespace nn;

NN_API int nn_grouped_linear_path(int32_t* path, int64_t inputs, int64_t outputs, int32_t dtype) {
    NN_REQUIRE(path, "path: a null pointer");
    NN_TRY(check_floating("dtype", dtype));
    NN_TRY(check_widths(inputs, outputs));
    Device device;
    NN_TRY(current_device(&device));
    *path = tensor_path(device.capability, dtype, inputs, outputs) ? NN_GROUPED_MMA : NN_GROUPED_FFMA;
    return NN_OK;
}

NN_API int nn_grouped_linear_forward(void* y, const void* x, const void* weight, const int64_t* offsets,
                                     const int64_t* order, int64_t choices, int64_t rows, int64_t num_experts,
                                     int64_t inputs, int64_t outputs, int32_t dtype, nn_stream stream) {
    Grouped call{y, x, weight, offsets, order, rows, inputs, outputs, static_cast<uint32_t>(choices),
                 static_cast<int>(num_experts), false, 0, nullptr};
    NN_TRY(check(call, choices, num_experts, dtype,
                 {{"y", y, rows * outputs == 0, dtype}, {"x", x, rows * inputs == 0, dtype},
                  {"weight", weight, inputs * outputs == 0, dtype}}));
    if (rows == 0 || outputs == 0) return NN_OK;
    return run(call, Product::FORWARD, dtype, stream);
}

NN_API int nn_grouped_swiglu_forward(void* y, void* hidden, const void* x, const void* weight,
                                     const int64_t* offsets, const int64_t* order, int64_t choices,
                                     int64_t rows, int64_t num_experts, int64_t inputs, int64_t width,
                                     int32_t dtype, nn_stream stream) {
    NN_REQUIRE(width >= 0 && width <= MAX_GRID_X / 2, "width: %lld is not in 0 ... 2^30 - 1",
               (long long)width);
    Grouped call{y, x, weight, offsets, order, rows, inputs, 2 * width, static_cast<uint32_t>(choices),
                 static_cast<int>(num_experts), false, 0, hidden};
    NN_TRY(check(call, choices, num_experts, dtype,
                 {{"y", y, rows * width == 0, dtype}, {"x", x, rows * inputs == 0, dtype},
                  {"weight", weight, inputs * width == 0, dtype}}));
    if (rows == 0 || width == 0) return NN_OK;
    return run(call, Product::SWIGLU, dtype, stream);
}

NN_API int nn_grouped_linear_backward_input(void* dx, const void* dy, const void* weight,
                                            const int64_t* offsets, int64_t rows, int64_t num_experts,
                                            int64_t inputs, int64_t outputs, int32_t dtype,
                                            nn_stream stream) {
    Grouped call{dx, dy, weight, offsets, nullptr, rows, inputs, outputs, 1, static_cast<int>(num_experts),
                 false, 0, nullptr};
    NN_TRY(check(call, 1, num_experts, dtype,
                 {{"dx", dx, rows * inputs == 0, dtype}, {"dy", dy, rows * outputs == 0, dtype},
                  {"weight", weight, inputs * outputs == 0, dtype}}));
    if (rows == 0 || inputs == 0) return NN_OK;
    return run(call, Product::INPUT, dtype, stream);
}

NN_API int nn_grouped_linear_backward_weight(float* dweight, const void* dy, const void* x,
                                             const int64_t* offsets, const int64_t* order, int64_t choices,
                                             int64_t rows, int64_t num_experts, int64_t inputs,
                                             int64_t outputs, int32_t dtype, nn_stream stream) {
    Grouped call{dweight, dy, x, offsets, order, rows, inputs, outputs, static_cast<uint32_t>(choices),
                 static_cast<int>(num_experts), false, 0, nullptr};
    NN_TRY(check(call, choices, num_experts, dtype,
                 {{"dweight", dweight, inputs * outputs == 0, NN_FLOAT32},
                  {"dy", dy, rows * outputs == 0, dtype}, {"x", x, rows * inputs == 0, dtype}}));
    if (inputs == 0 || outputs == 0) return NN_OK;
    return run(call, Product::WEIGHT, dtype, stream);
}
