// Python 3.11's headers declare these two without saying that they are C; what is said first holds.
#include <cstddef>
#include <cstdint>
extern "C" {
int PyTraceMalloc_Track(unsigned int domain, uintptr_t place, size_t bytes);
int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t place);
}

#include "module/calls.h"

#include <bit>
#include <map>
#include <memory>
#include <thread>

#include "core/cpu.h"
#include "core/memory.h"
#include "core/record.h"
#include "core/registry.h"
#include "module/numpy_memory.h"
#include "module/python_error.h"

namespace py = pybind11;

namespace nn {
namespace {

// A kernel as Python sees it.  Made once, never destroyed: the function object points here.
struct Bound {
    const Kernel* kernel;
    PyMethodDef method;
    py::object fallback, self;
};

struct State {
    std::map<std::string, std::unique_ptr<Bound>> bound;
    py::object report;
    py::dtype dtypes[dtype_count];
    int bfloat16 = -1;                     // NumPy's number of the type that ml_dtypes registers
    std::shared_ptr<Recording> recording;  // the one that is active
    std::vector<py::object>* kept = nullptr;   // what it keeps alive
    std::thread::id recorder;              // whose calls it takes
    std::map<void*, PyObject*> owners;     // of buffers that were made while it was, and still live; borrowed
};
State& state() {
    static State* one = new State;
    return *one;
}

// The active recording, if this thread began it: others' calls go on as ever.
std::shared_ptr<Recording> recording_here() {
    State& s = state();
    return s.recording && s.recorder == std::this_thread::get_id() ? s.recording : nullptr;
}

constexpr unsigned trace_domain = 389047;  // NumPy's, so that tracemalloc counts all arrays as one kind
constexpr int64_t lock_bytes = 64 << 10;  // from here on other Python threads may run meanwhile

constexpr char other_order = std::endian::native == std::endian::little ? '>' : '<';

DType dtype_of(const py::array& array) {
    const py::dtype dtype = array.dtype();
    if (dtype.byteorder() == other_order) return DType::none;  // its number is the same
    switch (const int number = dtype.num()) {
        case 0: return DType::boolean;
        case 2: return DType::u8;
        case 11: return DType::f32;
        case 12: return DType::f64;
        case 5: return DType::i32;
        case 7: return DType::i64;
        case 9: return DType::i64;  // long long, where that is as long
        default: return number == state().bfloat16 ? DType::bf16 : DType::none;
    }
}

// Does not look: `object` is an array already.
py::array as_array(PyObject* object) { return py::reinterpret_borrow<py::array>(object); }
bool is_array(PyObject* object) { return py::detail::npy_api::get().PyArray_Check_(object); }

void give_back(PyObject* capsule) {
    void* data = PyCapsule_GetPointer(capsule, nullptr);
    if (state().recording) {
        state().recording->freed(data);
        state().owners.erase(data);
    }
    PyTraceMalloc_Untrack(trace_domain, reinterpret_cast<uintptr_t>(data));
    pool_give(data);
}

// An array in the pool's memory; its owner, a capsule, gives the memory back.
py::array pool_array(const py::dtype& dtype, const std::vector<int64_t>& shape) {
    int64_t bytes = dtype.itemsize();
    for (int64_t size : shape) bytes *= size;
    void* data = pool_take(static_cast<size_t>(bytes));
    PyTraceMalloc_Track(trace_domain, reinterpret_cast<uintptr_t>(data), static_cast<size_t>(bytes));
    const auto owner = py::reinterpret_steal<py::object>(PyCapsule_New(data, nullptr, give_back));
    if (const auto recording = recording_here()) {
        recording->allocated(data, bytes);
        state().owners[data] = owner.ptr();
    }
    return py::array(dtype, shape, data, owner);
}

// What one call is made of, while it is put together.
struct Arguments {
    const Bound& bound;
    PyObject* given[max_arrays + max_numbers] = {};  // by place in the text; null: left out
    Call call{};
    Sizes sizes;
    DType same = DType::none;
    int64_t bytes = 0;
    std::string why;
    std::vector<py::object> copies;  // of arrays that lie as no kernel takes them

    explicit Arguments(const Bound& b) : bound(b) { call.kernel = b.kernel; }
    const Signature& signature() const { return bound.kernel->signature; }
    bool place(PyObject* const* values, Py_ssize_t positional, PyObject* names);
    bool take_all();
    bool take_array(const Item& item, PyObject* value, Array& out);
    bool take_number(const Item& item, PyObject* value, Number& out);
    bool make_results(std::vector<py::object>& results);
};

// Puts the values where the text has them; false leaves it to the reference to say what is wrong.
bool Arguments::place(PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    const auto& items = signature().arguments;
    if (positional > signature().positional)
        return why = "more positional arguments than the protocol has", false;
    for (Py_ssize_t i = 0; i < positional; ++i) given[i] = values[i];
    const Py_ssize_t count = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* name = PyTuple_GET_ITEM(names, i);
        size_t at = 0;
        while (at < items.size() && PyUnicode_CompareWithASCIIString(name, items[at].name.c_str()) != 0) ++at;
        if (at == items.size() || given[at]) return why = "an option that is not in its text", false;
        given[at] = values[positional + i];
    }
    return true;
}

bool Arguments::take_array(const Item& item, PyObject* value, Array& out) {
    if (!value || value == Py_None) {
        out = Array{};
        return item.optional || (why = item.name + ": not given", false);
    }
    if (!is_array(value)) return why = item.name + ": not a NumPy array", false;
    const py::array array = as_array(value);
    const DType dtype = dtype_of(array);
    if (dtype == DType::none) return why = item.name + ": an element type without kernels", false;
    if (item.kind == Kind::same && same == DType::none) same = dtype;
    if (item.in_place && !array.writeable()) return why = item.name + ": read-only", false;
    if (array.ndim() > max_axes + 3) return why = item.name + ": too many axes", false;
    int64_t shape[max_axes + 3], stride[max_axes + 3];
    for (py::ssize_t i = 0; i < array.ndim(); ++i) shape[i] = array.shape(i), stride[i] = array.strides(i);
    bytes += array.nbytes();
    const Given as_given{
        const_cast<void*>(array.data()),   static_cast<int>(array.ndim()), shape, stride, dtype,
        static_cast<int>(array.itemsize())};
    if (take(item, as_given, same, sizes, out, why)) return true;
    // A recording could not repeat the copy, and knows only what a kernel writes.
    const bool dense = array.flags() & py::array::c_style;
    if (dense || item.in_place || recording_here()) return false;
    copies.push_back(array.attr("copy")());
    return take_array(item, copies.back().ptr(), out);
}

bool Arguments::take_number(const Item& item, PyObject* value, Number& out) {
    out.at = nullptr;
    if (!value) {
        out.value = item.fallback;
        return item.has_default || (why = item.name + ": not given", false);
    }
    if (is_array(value)) {  // read when the call runs, so that a replay sees changes
        const py::array array = as_array(value);
        if (array.ndim() != 0 || dtype_of(array) != DType::f64)
            return why = item.name + ": not a float64 of no axes", false;
        out.at = static_cast<const double*>(array.data());
        out.value = *out.at;
    } else {
        out.value = PyFloat_AsDouble(value);
        if (out.value == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            return why = item.name + ": not a number", false;
        }
    }
    bind_number(item, out.value, sizes);
    return true;
}

bool Arguments::take_all() {
    int array = static_cast<int>(signature().results.size()), number = 0, i = 0;
    for (const Item& item : signature().arguments) {
        PyObject* value = given[i++];
        if (!(item.is_array ? take_array(item, value, call.array[array++])
                            : take_number(item, value, call.number[number++])))
            return false;
    }
    if (same == DType::none) same = DType::f32;  // integers and bytes alone: registered for float
    return true;
}

bool Arguments::make_results(std::vector<py::object>& results) {
    std::vector<int64_t> shape;
    int index = 0;
    for (const Item& item : signature().results) {
        Array& out = call.array[index++];
        if (signature().returns_number || (item.wanted_by >= 0 && call.number[item.wanted_by].value == 0.0)) {
            results.push_back(py::none());
            continue;
        }
        if (!result_shape(item, sizes, shape)) return why = item.name + ": its shape does not follow", false;
        const DType dtype = dtype_of(item.kind, same);
        py::array array = pool_array(state().dtypes[static_cast<int>(dtype)], shape);
        bytes += array.nbytes();
        int64_t strides[max_axes + 3];
        for (py::ssize_t i = 0; i < array.ndim(); ++i) strides[i] = array.strides(i);
        const Given made{array.mutable_data(),
                         static_cast<int>(array.ndim()),
                         shape.data(),
                         strides,
                         dtype,
                         static_cast<int>(array.itemsize())};
        if (!take(item, made, same, sizes, out, why)) return false;
        results.push_back(std::move(array));
    }
    return true;
}

// Memory from before the recording that the call touches stays as long as the recording.
void keep_arguments(const Recording& recording, const Arguments& arguments) {
    for (PyObject* value : arguments.given)
        if (value && is_array(value) && !recording.is_result(as_array(value).data()))
            state().kept->push_back(py::reinterpret_borrow<py::object>(value));
}

[[noreturn]] void cannot_record(const Bound& bound, const std::string& why) {
    throw std::runtime_error(bound.kernel->signature.name + " cannot be recorded: " + why);
}

bool run(Arguments& arguments, Function function) {
    if (arguments.bytes < lock_bytes) return function(arguments.call);
    const py::gil_scoped_release others_may_run;
    return function(arguments.call);
}

// The call's result; null if it is not taken, with the reason in arguments.why.
PyObject* try_call(Arguments& arguments, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    std::vector<py::object> results;
    double total = 0.0;
    if (!arguments.place(values, positional, names) || !arguments.take_all()) return nullptr;
    const Function function = arguments.bound.kernel->find(level(), arguments.same);
    if (!function) return arguments.why = std::string("no kernel for ") + dtype_name(arguments.same), nullptr;
    if (!arguments.make_results(results)) return nullptr;
    if (arguments.signature().returns_number)
        arguments.call.array[0] = Array{&total, {1}, {1}, 1, DType::f64};
    // Kept in a local: another thread may end the recording while this one computes.
    const std::shared_ptr<Recording> recording = recording_here();
    if (recording) {
        if (arguments.signature().returns_number)
            cannot_record(arguments.bound, "it returns a number to Python");
        if (const std::string why = recording->before(arguments.call); !why.empty())
            cannot_record(arguments.bound, why);
        keep_arguments(*recording, arguments);
    }
    if (!run(arguments, function)) return arguments.why = "these values", nullptr;
    if (recording) recording->add(arguments.call, function);
    if (arguments.signature().returns_number) return PyFloat_FromDouble(total);
    if (results.empty()) Py_RETURN_NONE;
    if (results.size() == 1) return results[0].release().ptr();
    py::tuple all(results.size());
    for (size_t i = 0; i < results.size(); ++i) all[i] = std::move(results[i]);
    return all.release().ptr();
}

PyObject* call_fallback(const Bound& bound, const std::string& why, PyObject* const* values,
                        Py_ssize_t positional, PyObject* names) {
    if (recording_here()) cannot_record(bound, why);
    if (!bound.fallback) throw std::runtime_error(bound.kernel->signature.name + ": " + why);
    if (state().report && !state().report.is_none()) state().report(bound.kernel->signature.name, why);
    return PyObject_Vectorcall(bound.fallback.ptr(), values, static_cast<size_t>(positional), names);
}

PyObject* entry_point(PyObject* self, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    const Bound& bound = *static_cast<Bound*>(PyCapsule_GetPointer(self, nullptr));
    try {
        use_pool_in_numpy_once();
        Arguments arguments(bound);
        if (PyObject* result = try_call(arguments, values, positional, names)) return result;
        if (PyErr_Occurred()) return nullptr;
        return call_fallback(bound, arguments.why, values, positional, names);
    } catch (py::error_already_set& error) { error.restore(); } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) { PyErr_SetString(PyExc_RuntimeError, error.what()); }
    return nullptr;
}

}  // namespace

py::object kernel_function(const std::string& name) {
    auto& bound = state().bound[name];
    if (!bound) {
        const Kernel* kernel = find_kernel(name);
        if (!kernel) throw py::key_error(name);
        bound = std::make_unique<Bound>();
        bound->kernel = kernel;
        bound->method = {kernel->signature.name.c_str(),
                         reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry_point)),
                         METH_FASTCALL | METH_KEYWORDS, kernel->signature.text.c_str()};
        const auto self = py::reinterpret_steal<py::object>(PyCapsule_New(bound.get(), nullptr, nullptr));
        const auto module = py::str("nn.backends.native");
        bound->self =
            py::reinterpret_steal<py::object>(PyCFunction_NewEx(&bound->method, self.ptr(), module.ptr()));
    }
    return bound->self;
}

void set_up(py::object bfloat16, py::dict fallbacks, py::object report) {
    State& s = state();
    const py::dtype half = py::dtype::from_args(bfloat16);
    s.bfloat16 = half.num();
    s.dtypes[static_cast<int>(DType::f32)] = py::dtype("float32");
    s.dtypes[static_cast<int>(DType::bf16)] = half;
    s.dtypes[static_cast<int>(DType::i64)] = py::dtype("int64");
    s.dtypes[static_cast<int>(DType::boolean)] = py::dtype("bool");
    s.dtypes[static_cast<int>(DType::u8)] = py::dtype("uint8");
    s.report = std::move(report);
    use_pool_in_numpy_once();
    for (auto [name, function] : fallbacks) {
        kernel_function(name.cast<std::string>());
        s.bound[name.cast<std::string>()]->fallback = py::reinterpret_borrow<py::object>(function);
    }
}

std::string take_call(const std::string& kernel, PyObject* const* values, Py_ssize_t positional,
                      PyObject* names, Call& call, DType& same) {
    if (recording_here()) return "a recording is active, which takes calls one by one";
    kernel_function(kernel);
    Arguments arguments(*state().bound[kernel]);
    if (!arguments.place(values, positional, names) || !arguments.take_all()) return arguments.why;
    if (!arguments.copies.empty()) return "an array that is not dense";
    if (!arguments.bound.kernel->find_of_many(level(), arguments.same)) return "no kernel for many calls";
    call = arguments.call, same = arguments.same;
    return {};
}

void throw_python_error() { throw py::error_already_set(); }

py::object empty_array(const std::vector<int64_t>& shape, py::dtype dtype) {
    return pool_array(dtype, shape);
}

// ---- recordings ----

namespace {

struct PyRecording {
    std::shared_ptr<Recording> recording = std::make_shared<Recording>();
    std::vector<py::object> kept;  // declared arrays, and the owners of outputs

    void declare(const py::array& array);
    void begin(bool everything);
    void end(bool check);
};

void PyRecording::declare(const py::array& array) {
    int64_t low = 0, high = array.itemsize();
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        const int64_t span = (array.shape(i) - 1) * array.strides(i);
        (span < 0 ? low : high) += span;
    }
    if (array.size()) recording->declare(static_cast<const char*>(array.data()) + low, high - low);
    kept.push_back(array);
}

void PyRecording::begin(bool everything) {
    if (state().recording) throw std::runtime_error("a recording is active already");
    if (everything) {
        if (!use_pool_in_numpy())
            throw py::value_error(
                "another allocator of NumPy's arrays is in use here: what NumPy makes cannot be seen");
        watch_numpy(true);
        recording->declare_all_but(made_by_numpy);
    }
    state().recording = recording;
    state().kept = &kept;
    state().recorder = std::this_thread::get_id();
}

void PyRecording::end(bool check) {
    for (void* data : recording->outputs())  // replays write there, whoever else still looks
        kept.push_back(py::reinterpret_borrow<py::object>(state().owners.at(data)));
    state().owners.clear();
    state().recording.reset();
    watch_numpy(false);
    if (!check) return;
    std::string found;
    {
        const py::gil_scoped_release others_may_run;
        found = recording->finish();
    }
    if (!found.empty()) throw std::runtime_error(found);
}

}  // namespace

std::shared_ptr<Recording> recording_of(py::handle recording) {
    return recording.cast<PyRecording&>().recording;
}

void bind_recording(py::module_& module) {
    py::class_<PyRecording>(module, "Recording",
                            "A list of kernel calls; see nn/backends/native/recording.py.")
        .def(py::init<>())
        .def("declare", &PyRecording::declare)
        .def("keep", [](PyRecording& self, py::object owner) { self.kept.push_back(std::move(owner)); })
        .def("is_result",
             [](const PyRecording& self, const py::array& array) {
                 return self.recording->is_result(array.data());
             })
        .def("begin", &PyRecording::begin, py::arg("everything") = false)
        .def("end", &PyRecording::end, py::arg("check") = true)
        .def("replay",
             [](const PyRecording& self) {
                 const py::gil_scoped_release others_may_run;
                 self.recording->replay();
             })
        .def("profile",
             [](const PyRecording& self, int rounds) {
                 py::list found;
                 for (const Recording::Timed& one : self.recording->profile(rounds))
                     found.append(py::make_tuple(one.kernel, one.bytes, one.seconds));
                 return found;
             })
        .def_property_readonly("calls", [](const PyRecording& self) { return self.recording->calls(); })
        .def_property_readonly("arena_bytes",
                               [](const PyRecording& self) { return self.recording->arena_bytes(); })
        .def_property_readonly("eager_bytes",
                               [](const PyRecording& self) { return self.recording->eager_bytes(); })
        .def_property_readonly("output_bytes",
                               [](const PyRecording& self) { return self.recording->output_bytes(); });
}

}  // namespace nn
