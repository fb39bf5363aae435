// From Python's arguments to a Call, and back.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "core/record.h"

namespace nn {

pybind11::object kernel_function(const std::string& name);
void set_up(pybind11::object bfloat16, pybind11::dict fallbacks, pybind11::object report);
pybind11::object empty_array(const std::vector<int64_t>& shape, pybind11::dtype dtype);

// The call that a kernel's function would make of these (vectorcall's) arguments, for loops over many calls.
// "" or why it is not taken, where `call` is not set.
std::string take_call(const std::string& kernel, PyObject* const* values, Py_ssize_t positional,
                      PyObject* names, Call& call, DType& same);
std::shared_ptr<Recording> recording_of(pybind11::handle recording);

void bind_clipped_step(pybind11::module_& module);
void bind_recording(pybind11::module_& module);

}  // namespace nn
