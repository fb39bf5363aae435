// The Python module: nn.backends.native.nn_native.  Kernels are plain built-in functions (calls.cpp); the
// rest is here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "core/blas.h"
#include "core/ceiling.h"
#include "core/cpu.h"
#include "core/memory.h"
#include "core/registry.h"
#include "core/threads.h"
#include "module/calls.h"

namespace py = pybind11;

namespace {

std::vector<std::string> level_names() {
    std::vector<std::string> names;
    for (nn::Level level : nn::levels_here()) names.emplace_back(nn::level_name(level));
    return names;
}

py::dict memory() {
    const nn::PoolCounters c = nn::pool_counters();
    using namespace py::literals;
    return py::dict("bytes_in_use"_a = c.bytes_in_use, "bytes_kept"_a = c.bytes_kept,
                    "peak_bytes"_a = c.peak_bytes, "bytes_huge"_a = c.bytes_huge, "taken"_a = c.taken,
                    "fresh"_a = c.fresh);
}

py::dict describe_kernels() {
    py::dict found;
    for (const nn::Kernel& kernel : nn::kernels()) {
        std::vector<std::string> dtypes, levels;
        for (nn::DType dtype : kernel.dtypes()) dtypes.emplace_back(nn::dtype_name(dtype));
        for (int level = 0; level < nn::level_count; ++level)
            for (nn::Function function : kernel.table[level])
                if (function) {
                    levels.emplace_back(nn::level_name(static_cast<nn::Level>(level)));
                    break;
                }
        found[py::str(kernel.signature.name)] = py::make_tuple(kernel.signature.text, dtypes, levels);
    }
    return found;
}

void use_level(const std::string& name) {
    if (nn::use_level(name)) return;
    std::string known;
    for (const std::string& one : level_names()) known += (known.empty() ? "" : ", ") + one;
    throw py::value_error("level: " + name + " is not one of " + known);
}

// ---- the machine's ceilings, for nn/bench/ceilings.py, which does the timing ----

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

PYBIND11_MODULE(nn_native, module) {
    module.doc() = "CPU kernels: see csrc/native/README.md";
    module.def("kernels", &describe_kernels, "{name: (text, element types, levels that have it)}");
    module.def("function", &nn::kernel_function, "the kernel of that name");
    module.def(
        "set_up", &nn::set_up, py::arg("bfloat16"), py::arg("fallbacks"), py::arg("report"),
        "bfloat16: its dtype; fallbacks: {name: function}; report(name, why): called when one is used");
    module.def("level", [] { return nn::level_name(nn::level()); }, "the level of instructions in use");
    module.def("levels", &level_names, "those that this processor has, lowest first");
    module.def("use_level", &use_level);
    module.def("threads", &nn::threads);
    module.def("set_threads", &nn::set_threads);
    module.def("memory", &memory, "the pool's counters");
    module.def("trim", &nn::pool_trim, "give free buffers back to the system");
    module.def("reset_peak", &nn::pool_reset_peak);
    module.def("empty", &nn::empty_array, py::arg("shape"), py::arg("dtype"),
               "an array in the pool's memory");
    module.def("set_blas", &nn::set_blas);
    module.def("blas_is_there", &nn::blas_is_there);
    module.def("ceiling", &ceiling, py::arg("dtype"),
               "(level whose multiply-adds are used, operations of one round in all threads), or None");
    module.def("multiply_add", &multiply_add, py::arg("dtype"), py::arg("rounds"),
               "nothing but multiply-adds, in all threads");
    module.def("read_all", &read_all, py::arg("array"), py::arg("streams"),
               "read every byte, each thread its share, at so many places in turn");
    nn::bind_recording(module);
    nn::bind_clipped_step(module);
}
