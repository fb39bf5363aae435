// Which level of instructions the kernels use: the best that this processor has, unless told otherwise.
#pragma once
#include <string>
#include <vector>

#include "core/types.h"

namespace nn {

const char* level_name(Level level);
std::vector<Level> levels_here();         // those that this processor runs and this build has, lowest first
Level level();                            // in use: from NN_NATIVE_LEVEL, else the last of levels_here()
bool use_level(const std::string& name);  // false: not one of levels_here()
int usable_cores();                       // of this process, by affinity

}  // namespace nn
