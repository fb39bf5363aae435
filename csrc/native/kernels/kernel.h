// What every kernel file includes: views of a call's arrays, loops, scratch memory, registration.
//
// A kernel is one file kernels/NAME.cpp, compiled once per level:
//
//     #include "kernels/kernel.h"
//     namespace nn::NN_LEVEL {
//     template <class T>
//     static bool silu(const Call& call) {
//         const auto y = flat<T>(call, 0);          // results first, then arguments, in the text's order
//         const auto x = flat<const T>(call, 1);
//         elements(x.size, 2 * sizeof(T), [&](int64_t i, auto n) { put(y + i, n, f(get(x + i, n))); });
//         return true;                              // false: declined, before anything was written
//     }
//     NN_KERNEL("silu(x[...]) -> y[...]", silu, float, bf16)
//     }
//
// Sizes and layouts have been checked against the text (core/signature.h): a kernel checks what a text cannot
// say, such as indices.  Rows, heads or blocks are spread over threads by parallel_for; sums over rows by
// for_blocks.
#pragma once
#include "core/memory.h"
#include "core/threads.h"
#include "core/types.h"
#include "simd/math.h"
#include "simd/vec.h"

namespace nn::NN_LEVEL {

constexpr Level this_level = static_cast<Level>(NN_LEVEL_NUMBER);
template <class T>
constexpr DType dtype_of = DType::none;
template <>
constexpr DType dtype_of<float> = DType::f32;
template <>
constexpr DType dtype_of<bf16> = DType::bf16;

// ---- views ----

template <class T>
struct Flat {  // [...]: dense
    T* data;
    int64_t size;
    T& operator[](int64_t i) const { return data[i]; }
    T* operator+(int64_t i) const { return data + i; }
};

template <class T>
struct Rows {  // [R,D] and [...,D]: rows dense, at any distance
    T* data;
    int64_t rows, cols, stride;
    T* operator[](int64_t r) const { return data + r * stride; }
};

template <class T>
static inline Flat<T> flat(const Call& call, int index) {
    const Array& a = call.array[index];
    return {static_cast<T*>(a.data), a.data ? a.shape[0] : 0};
}

template <class T>
static inline Rows<T> rows(const Call& call, int index) {
    const Array& a = call.array[index];
    return {static_cast<T*>(a.data), a.shape[0], a.shape[1], a.stride[0]};
}

template <class T>
struct Rows4 {  // [B,H,T,D]: rows dense, every other axis at any distance
    T* data;
    int64_t size[4], stride[3];
    T* operator()(int64_t b, int64_t h, int64_t t) const {
        return data + b * stride[0] + h * stride[1] + t * stride[2];
    }
};

template <class T>
static inline Rows4<T> rows4(const Call& call, int index) {
    const Array& a = call.array[index];
    return {static_cast<T*>(a.data),
            {a.shape[0], a.shape[1], a.shape[2], a.shape[3]},
            {a.stride[0], a.stride[1], a.stride[2]}};
}

static inline Flat<const uint8_t> bytes(const Call& call, int index) {  // :bytes
    return flat<const uint8_t>(call, index);
}

struct Ints {  // :int, dense, of either size
    const void* data;
    int64_t size;
    bool is_short;
    int64_t operator[](int64_t i) const {
        return is_short ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
    }
};

static inline Ints ints(const Call& call, int index) {
    const Array& a = call.array[index];
    int64_t size = 1;
    for (int i = 0; i < a.axes; ++i) size *= a.shape[i];
    return {a.data, a.data ? size : 0, a.dtype == DType::i32};
}

// A row of integers [R,C]
static inline Ints int_row(const Array& a, int64_t row) {
    const int64_t first = row * a.stride[0] * (a.dtype == DType::i32 ? 4 : 8);
    return {static_cast<const char*>(a.data) + first, a.shape[1], a.dtype == DType::i32};
}

static inline double number(const Call& call, int index) {
    const Number& n = call.number[index];
    return n.at ? *n.at : n.value;
}

// ---- loops ----

constexpr double bytes_alone = 128 << 10;  // below this one thread is faster than waking another
constexpr double bytes_per_chunk = 64 << 10;

// body(begin, end) over [0, count), on one thread or several; `bytes` is what one index moves, in and out (or
// the same time's worth: ten bytes per nanosecond).  The body's results for i must depend on i alone.
template <class F>
static inline void parallel_for(int64_t count, double bytes, const F& body) {
    if (count * bytes < bytes_alone) {
        if (count > 0) body((int64_t)0, count);
        return;
    }
    const double most = bytes_per_chunk / (bytes + 1.0);
    const int64_t chunk = most < 1.0 ? 1 : (int64_t)most;
    parallel_chunks(count, chunk, body);
}

// body(block, begin, end): fixed blocks of indices, whatever the threads: for sums, one partial sum per
// block.
static inline int64_t block_size(int64_t count) { return count / 64 > 16 ? (count + 63) / 64 : 16; }
static inline int64_t block_count(int64_t count) {
    return (count + block_size(count) - 1) / block_size(count);
}
template <class F>
static inline void for_blocks(int64_t count, double bytes, const F& body) {
    const int64_t size = block_size(count);
    parallel_for(block_count(count), bytes * (double)size, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t stop = (b + 1) * size;
            body(b, b * size, stop < count ? stop : count);
        }
    });
}

// A register's worth of elements: n of them, or width, which the compiler knows.
struct All {
    constexpr operator int64_t() const { return width; }
};
template <class T>
static inline Vec get(const T* p, All) {
    return load(p);
}
template <class T>
static inline Vec get(const T* p, int64_t n) {
    return load(p, n);
}
template <class T>
static inline void put(T* p, All, Vec x) {
    store(p, x);
}
template <class T>
static inline void put(T* p, int64_t n, Vec x) {
    store(p, x, n);
}

// body(i, n) for every register of [0, count), the last one shorter
template <class F>
static inline void registers(int64_t count, const F& body) {
    int64_t i = 0;
    for (; i + width <= count; i += width) body(i, All{});
    if (i < count) body(i, count - i);
}

// The same over many elements, on several threads.
template <class F>
static inline void elements(int64_t count, double bytes, const F& body) {
    parallel_for(count, bytes, [&](int64_t begin, int64_t end) {
        registers(end - begin, [&](int64_t i, auto n) { body(begin + i, n); });
    });
}

// Sum over a row of body(i, n), which must be 0 beyond n lanes; four chains, one order.
template <class F>
static inline float row_sum(int64_t count, const F& body) {
    Vec chain[4] = {};
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width)
        for (int c = 0; c < 4; ++c) chain[c] += body(i + c * width, All{});
    for (; i + width <= count; i += width) chain[0] += body(i, All{});
    if (i < count) chain[1] += body(i, count - i);
    return sum((chain[0] + chain[1]) + (chain[2] + chain[3]));
}

// ---- scratch memory, from the pool ----

template <class T>
struct Scratch {
    T* data;
    explicit Scratch(int64_t count) : data(static_cast<T*>(pool_take((size_t)count * sizeof(T)))) {}
    ~Scratch() { pool_give(data); }
    Scratch(const Scratch&) = delete;
    T& operator[](int64_t i) const { return data[i]; }
    T* operator+(int64_t i) const { return data + i; }
};

// ---- registration: constant data, no constructor (core/registry.cpp) ----

#define NN_ENTRY(text, function, type)                                                                 \
    static const Entry entry_##function##_##type = {text, this_level, dtype_of<type>, function<type>}; \
    __attribute__((section(NN_SECTION), used)) static const Entry* at_##function##_##type =            \
        &entry_##function##_##type;
#define NN_KERNEL_1(text, function, a) NN_ENTRY(text, function, a)
#define NN_KERNEL_2(text, function, a, b) NN_ENTRY(text, function, a) NN_ENTRY(text, function, b)
// A kernel written for several calls at once, void f<T>(const Call* calls, int64_t count), which serves one
// call, too.  It declines none.
template <FunctionOfMany many>
static bool one_of_many(const Call& call) {
    many(&call, 1);
    return true;
}
#define NN_ENTRY_OF_MANY(text, function, type)                                                            \
    static const Entry entry_##function##_##type = {text, this_level, dtype_of<type>,                     \
                                                    one_of_many<function<type>>, function<type>};         \
    __attribute__((section(NN_SECTION), used)) static const Entry* at_##function##_##type =               \
        &entry_##function##_##type;
#define NN_KERNEL_OF_MANY(text, function, a, b) \
    NN_ENTRY_OF_MANY(text, function, a) NN_ENTRY_OF_MANY(text, function, b)
#define NN_PICK(a, b, name, ...) name
#define NN_KERNEL(text, function, ...) \
    NN_PICK(__VA_ARGS__, NN_KERNEL_2, NN_KERNEL_1, )(text, function, __VA_ARGS__)
#ifdef __APPLE__
#define NN_SECTION "__DATA,nn_kernels"
#else
#define NN_SECTION "nn_kernels"
#endif

}  // namespace nn::NN_LEVEL
