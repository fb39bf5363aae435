// From Python's arguments to a Call, and back.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace nn {

pybind11::object kernel_function(const std::string& name);
void set_up(pybind11::object bfloat16, pybind11::dict fallbacks, pybind11::object report);
pybind11::object empty_array(const std::vector<int64_t>& shape, pybind11::dtype dtype);
void bind_recording(pybind11::module_& module);
void bind_ceilings(pybind11::module_& module);

}  // namespace nn
