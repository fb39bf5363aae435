// The kernel table: which kernels there are, and the function of each for a level and an element type.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "core/signature.h"
#include "core/types.h"

namespace nn {

constexpr int dtype_count = 8;

struct Kernel {
    Signature signature;
    Function table[level_count][dtype_count] = {};  // null: this level has none of its own
    FunctionOfMany of_many[level_count][dtype_count] = {};

    Function find(Level level, DType dtype) const;  // here or at a level below; null: none
    FunctionOfMany find_of_many(Level level, DType dtype) const;
    std::vector<DType> dtypes() const;
};

const std::vector<Kernel>& kernels();  // sorted by name
const Kernel* find_kernel(const std::string& name);
bool level_is_built(Level level);

}  // namespace nn
