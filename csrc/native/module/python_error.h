// For files that do without pybind11, whose headers take ten seconds to read.
#pragma once

namespace nn {

[[noreturn]] void throw_python_error();  // the error that Python has set, as pybind11 throws it (calls.cpp)

}  // namespace nn
