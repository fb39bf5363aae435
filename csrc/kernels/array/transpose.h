// Copies between arrays whose dense axes differ.
#pragma once

#include "nn/array.h"

namespace nn::array {

// Whether tiles are worth it: y and x (operands 0 and 1) are dense along different axes, and both are long.
// `count`: of the elements.
bool transposes(const nn_array_layout& layout, int64_t count);

// y = x, elements of so many bytes, of a merged layout that transposes.
int transposed_copy(void* y, const void* x, int64_t bytes, const nn_array_layout& layout, nn_stream stream);

}  // namespace nn::array
