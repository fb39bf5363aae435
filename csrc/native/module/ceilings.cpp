// The machine's ceilings for nn/bench/ceilings.py, which does the timing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "core/ceiling.h"
#include "core/cpu.h"
#include "core/threads.h"
#include "module/calls.h"

namespace py = pybind11;

namespace {

const nn::Ceiling* ceiling_here(const std::string& name) {
    return nn::find_ceiling(name.c_str(), nn::level());
}

std::optional<std::pair<std::string, double>> ceiling(const std::string& name) {
    const nn::Ceiling* const found = ceiling_here(name);
    if (!found) return {};
    return std::pair{std::string(nn::level_name(found->level)), found->operations * nn::threads()};
}

const nn::Ceiling& known(const std::string& name) {
    const nn::Ceiling* const found = ceiling_here(name);
    if (!found) throw py::value_error("ceiling: there is no " + name + " at this level");
    return *found;
}

void multiply_add(const std::string& dtype, int64_t rounds) {
    const nn::Ceiling& loop = known(dtype);
    const py::gil_scoped_release others_may_run;
    nn::run_ceiling(loop, rounds);
}

void read_all(const py::array& array, int streams) {
    const nn::Ceiling& loop = known("read");
    const void* const data = array.data();
    const int64_t bytes = array.nbytes();
    const py::gil_scoped_release others_may_run;
    nn::run_ceiling(loop, bytes, data, streams);
}

}  // namespace

namespace nn {

void bind_ceilings(py::module_& module) {
    module.def("ceiling", &ceiling, py::arg("dtype"),
               "(level whose multiply-adds are used, operations of one round in all threads), or None");
    module.def("multiply_add", &multiply_add, py::arg("dtype"), py::arg("rounds"),
               "nothing but multiply-adds, in all threads");
    module.def("read_all", &read_all, py::arg("array"), py::arg("streams"),
               "read every byte, each thread its share, at so many places in turn");
}

}  // namespace nn
