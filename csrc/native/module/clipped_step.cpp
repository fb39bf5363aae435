// core/clipped_step.h for nn/optim/together.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/clipped_step.h"
#include "core/record.h"
#include "core/threads.h"
#include "module/calls.h"

namespace py = pybind11;

namespace nn {
namespace {

struct PyClippedStep {
    py::array_t<double> scale;
    ClippedStep step;
    std::vector<py::object> kept;  // what the calls touch

    explicit PyClippedStep(py::array_t<double> place) : scale(place), step(scale.mutable_data()) {}
    std::string take(const char* kernel, const py::args& arguments, const py::kwargs& options,
                     void (ClippedStep::*add)(const Call&, DType));
    double run(double max_norm, const py::object& loss, const py::object& behind);
};

// "" or why the call is not taken
std::string PyClippedStep::take(const char* kernel, const py::args& arguments, const py::kwargs& options,
                                void (ClippedStep::*add)(const Call&, DType)) {
    std::vector<PyObject*> values;
    py::list names;
    for (py::handle value : arguments) values.push_back(value.ptr());
    for (auto [name, value] : options) names.append(name), values.push_back(value.ptr());
    Call call;
    DType same;
    const std::string why = take_call(kernel, values.data(), static_cast<Py_ssize_t>(arguments.size()),
                                      py::tuple(names).ptr(), call, same);
    if (!why.empty()) return why;
    (step.*add)(call, same);
    for (PyObject* value : values) kept.push_back(py::reinterpret_borrow<py::object>(value));
    return {};
}

// A float32 of no axes, or none
const float* number_at(const py::object& loss) {
    if (loss.is_none()) return nullptr;
    if (!py::isinstance<py::array_t<float>>(loss) || loss.cast<py::array>().size() != 1)
        throw py::value_error("loss: not one float32");
    return static_cast<const float*>(loss.cast<py::array>().data());
}

double PyClippedStep::run(double max_norm, const py::object& loss, const py::object& behind) {
    const float* const at = number_at(loss);
    const std::shared_ptr<Recording> recording = behind.is_none() ? nullptr : recording_of(behind);
    const py::gil_scoped_release others_may_run;
    const StayAwake workers_spin_on;
    if (recording) recording->replay();
    return step(max_norm, at);
}

}  // namespace

void bind_clipped_step(py::module_& module) {
    using Self = PyClippedStep;
    py::class_<Self>(module, "ClippedStep", "An optimizer's step over all tensors; see nn/optim/together.py.")
        .def(py::init<py::array_t<double>>(), py::arg("scale").noconvert(), "scale: float64 [], where the factor goes")
        .def("measure_also",
             [](Self& self, const py::args& arguments, const py::kwargs& options) {
                 return self.take("sum_of_squares", arguments, options, &ClippedStep::measure_also);
             })
        .def("update_also",
             [](Self& self, const py::args& arguments, const py::kwargs& options) {
                 return self.take("adamw", arguments, options, &ClippedStep::update_also);
             })
        .def("run", &Self::run, py::arg("max_norm"), py::arg("loss") = py::none(),
             py::arg("behind") = py::none());
    using Dense = py::array_t<double, py::array::c_style | py::array::forcecast>;
    module.def("exact_sum", [](const Dense& x) { return exact_sum(x.data(), x.size()); });
}

}  // namespace nn
