#include "module/numpy_memory.h"

#include <Python.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <new>

#include "core/memory.h"
#include "module/python_error.h"

namespace nn {
namespace {

// As in numpy/ndarraytypes.h, whose presence the build need not ask for.
struct Allocator {
    void* context;
    void* (*malloc)(void*, size_t);
    void* (*calloc)(void*, size_t, size_t);
    void* (*realloc)(void*, void*, size_t);
    void (*free)(void*, void*, size_t);
};
struct Handler {
    char name[127];
    uint8_t version;
    Allocator allocator;
};
// Places in NumPy's table of functions
constexpr int set_handler = 304, get_handler = 305, default_handler = 306;
constexpr size_t small = 16 << 10;  // below this NumPy's own is as fast, and keeps the least of them itself

// Stands before a small block; its mark is not the pool's.
struct Small {
    size_t bytes;  // of the block, this included
    size_t mark;
};

Allocator numpys;
thread_local std::unique_ptr<std::map<const char*, size_t>> watched;

void* noted(void* data, size_t bytes) {
    if (watched && data) (*watched)[static_cast<char*>(data)] = std::max<size_t>(bytes, 1);
    return data;
}

void* small_block(void* block, size_t bytes) {
    if (!block) return nullptr;
    Small* const head = static_cast<Small*>(block);
    *head = {bytes, 0};
    return head + 1;
}
Small* head_of(void* data) { return static_cast<Small*>(data) - 1; }

void* take(void*, size_t bytes) {
    if (bytes < small)
        return noted(small_block(numpys.malloc(numpys.context, bytes + sizeof(Small)), bytes + sizeof(Small)),
                     bytes);
    try {
        return noted(pool_take(bytes), bytes);
    } catch (const std::bad_alloc&) { return nullptr; }
}

void* take_zeroed(void* context, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
    if (bytes < small) {
        void* const data = take(context, bytes);
        return data ? std::memset(data, 0, bytes) : nullptr;
    }
    try {
        return noted(pool_take_zeroed(bytes), bytes);
    } catch (const std::bad_alloc&) { return nullptr; }
}

// NumPy's word on the size is not asked for: it is not always the one that was allocated.
void give(void*, void* data, size_t) {
    if (!data) return;
    if (watched) watched->erase(static_cast<char*>(data));
    if (pool_owns(data)) return pool_give(data);
    numpys.free(numpys.context, head_of(data), head_of(data)->bytes);
}

void* resize(void* context, void* data, size_t bytes) {
    if (!data) return take(context, bytes);
    const size_t held = pool_owns(data) ? pool_size(data) : head_of(data)->bytes - sizeof(Small);
    if (bytes <= held && bytes * 2 > held) return data;
    void* const moved = take(context, bytes);
    if (!moved) return nullptr;
    std::memcpy(moved, data, std::min(held, bytes));
    give(context, data, 0);
    return moved;
}

Handler handler = {"nn", 1, {nullptr, take, take_zeroed, resize, give}};

// NumPy's functions; ours is made on the first call, and never destroyed: arrays outlive the module.
struct Functions {
    PyObject* (*set)(PyObject*) = nullptr;
    PyObject* (*get)() = nullptr;
    PyObject* standard = nullptr;
    PyObject* ours = nullptr;

    Functions() {
        PyObject* const core = PyImport_ImportModule("numpy._core._multiarray_umath");
        PyObject* const table = core ? PyObject_GetAttrString(core, "_ARRAY_API") : nullptr;
        void** const api = table ? static_cast<void**>(PyCapsule_GetPointer(table, nullptr)) : nullptr;
        Py_XDECREF(table);
        Py_XDECREF(core);
        if (!api) throw_python_error();
        set = reinterpret_cast<PyObject* (*)(PyObject*)>(api[set_handler]);
        get = reinterpret_cast<PyObject* (*)()>(api[get_handler]);
        standard = *static_cast<PyObject**>(api[default_handler]);
        numpys = static_cast<Handler*>(PyCapsule_GetPointer(standard, "mem_handler"))->allocator;
        ours = PyCapsule_New(&handler, "mem_handler", nullptr);
    }
};

}  // namespace

bool use_pool_in_numpy() {
    static const Functions* const numpy = new Functions;
    PyObject* const here = numpy->get();
    if (!here) throw_python_error();
    const bool is_standard = here == numpy->standard, is_ours = here == numpy->ours;
    Py_DECREF(here);
    if (!is_standard) return is_ours;
    PyObject* const before = numpy->set(numpy->ours);
    if (!before) throw_python_error();
    Py_DECREF(before);
    return true;
}

void use_pool_in_numpy_once() {
    thread_local bool done = false;
    if (done) return;
    done = true;
    use_pool_in_numpy();
}

void watch_numpy(bool on) { watched = on ? std::make_unique<std::map<const char*, size_t>>() : nullptr; }

bool made_by_numpy(const void* data) {
    if (!watched) return false;
    const char* const place = static_cast<const char*>(data);
    auto after = watched->upper_bound(place);
    return after != watched->begin() && (--after, place < after->first + after->second);
}

}  // namespace nn
