// Elementwise operations on arrays of any strides and types.
//
// one element per thread, a kernel per operation and type -> the operation a run-time argument: a switch that
// is the same for all threads, hidden behind the memory -> neighbours along the innermost axis 16 bytes at a
// time, also where an operand repeats along it (used)
#include "element.cuh"
#include "layout.cuh"
#include "operation.cuh"
#include "transpose.h"

#include <algorithm>

namespace nn::array {

struct Map {
    void* y;
    const void* x[3];                                // null: the number instead
    double number[3];
    int32_t y_dtype, x_dtype[3];
    int32_t op, operands;
    int64_t packs;
    Places<4> places;                                // the innermost axis counts packs
};

template <class C, int N>
__device__ __forceinline__ void operand(C (&x)[N], const Map& m, int k, int64_t at, bool repeats) {
    if (k >= m.operands) return;
    if (!m.x[k] || repeats) {
        const C one = m.x[k] ? load<C>(m.x[k], m.x_dtype[k], at) : static_cast<C>(m.number[k]);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = one;
    } else {
        load_many<N>(x, m.x[k], m.x_dtype[k], at);
    }
}

template <class C, int N>
__global__ void __launch_bounds__(THREADS) array_map(const __grid_constant__ Map m) {
    const int inner = m.places.ndim - 1;
    for (int64_t i = first_thread(); i < m.packs; i += all_threads()) {
        int64_t at[4];
        places(at, m.places, i);
        C x[3][N] = {}, y[N] = {};
        operand(x[0], m, 0, at[1], m.places.strides[1][inner] == 0);
        operand(x[1], m, 1, at[2], m.places.strides[2][inner] == 0);
        operand(x[2], m, 2, at[3], m.places.strides[3][inner] == 0);
        light(y, x[0], x[1], x[2], m.op);
        store_many(m.y, m.y_dtype, at[0], y);
    }
}

template <class C> __global__ void __launch_bounds__(THREADS) array_map_heavy(const __grid_constant__ Map m) {
    for (int64_t i = first_thread(); i < m.packs; i += all_threads()) {
        int64_t at[4];
        places(at, m.places, i);
        C x[2][1] = {};
        operand(x[0], m, 0, at[1], false);
        operand(x[1], m, 1, at[2], false);
        store(m.y, m.y_dtype, at[0], heavy(x[0][0], x[1][0], m.op));
    }
}

__global__ void __launch_bounds__(THREADS) array_arange(void* y, double start, double step, int64_t count,
                                                        int dtype) {
    for (int64_t i = first_thread(); i < count; i += all_threads())
        store(y, dtype, i, start + step * static_cast<double>(i));
}

namespace {

bool is_light(int32_t op) {
    return op == NN_WHERE || (op >= NN_ADD && op <= NN_XOR) || (op >= NN_COPY && op <= NN_TANH) ||
           (op >= NN_LOGICAL_AND && op <= NN_LOGICAL_XOR) || (op >= NN_ISFINITE && op <= NN_LOGICAL_NOT);
}

bool of_floats_only(int32_t op) {
    return (op >= NN_SQRT && op <= NN_TANH) || (op >= NN_EXPM1 && op <= NN_ERF) || op == NN_DIVIDE;
}

bool of_integers_only(int32_t op) { return op == NN_INVERT || (op >= NN_AND && op <= NN_SHIFT_RIGHT); }

// Whether n neighbours can be moved as one: the innermost axis is dense or repeats, all else keeps alignment.
bool divides(const Map& m, const nn_array_layout& l, int n) {
    const int inner = static_cast<int>(l.ndim) - 1;
    if (l.shape[inner] % n != 0) return false;
    for (int k = 0; k <= m.operands; ++k) {
        const void* pointer = k == 0 ? m.y : m.x[k - 1];
        if (!pointer || (k > 0 && l.strides[k][inner] == 0)) continue;
        const int64_t bytes = dtype_bytes(k == 0 ? m.y_dtype : m.x_dtype[k - 1]);
        if (l.strides[k][inner] != 1 || !aligned(pointer, std::min<int64_t>(16, n * bytes))) return false;
        for (int axis = 0; axis < inner; ++axis)
            if (l.strides[k][axis] % n != 0) return false;
    }
    return true;
}

template <class C, int N> void launch(Map m, nn_array_layout layout, int64_t count, nn_stream stream) {
    const int inner = static_cast<int>(layout.ndim) - 1;
    layout.shape[inner] /= N;
    for (auto& strides : layout.strides) strides[inner] *= N;
    m.packs = count / N;
    m.places = as_parameter<4>(layout, m.packs);
    array_map<C, N><<<blocks_for(m.packs), THREADS, 0, native(stream)>>>(m);
}

template <class C> int launch_heavy(Map m, const nn_array_layout& layout, int64_t count, nn_stream stream) {
    m.packs = count;
    m.places = as_parameter<4>(layout, count);
    array_map_heavy<C><<<blocks_for(count), THREADS, 0, native(stream)>>>(m);
    return launched("array_map_heavy");
}

int64_t widest(const Map& m) {
    int64_t bytes = dtype_bytes(m.y_dtype);
    for (int k = 0; k < m.operands; ++k)
        if (m.x[k]) bytes = std::max(bytes, dtype_bytes(m.x_dtype[k]));
    return bytes;
}

int launch_light(const Map& m, const nn_array_layout& layout, int64_t count, char kind, nn_stream stream) {
    const int64_t bytes = widest(m);
    const int n = bytes == 8 ? 2 : bytes == 4 ? 4 : 8;
    const bool packs = divides(m, layout, n);
    if (kind == 'd') {
        launch<double, 1>(m, layout, count, stream);
    } else if (kind == 'i') {
        if (packs && n == 2) launch<int64_t, 2>(m, layout, count, stream);
        else if (packs && n == 4) launch<int64_t, 4>(m, layout, count, stream);
        else if (packs) launch<int64_t, 8>(m, layout, count, stream);
        else launch<int64_t, 1>(m, layout, count, stream);
    } else {
        if (packs && n == 8) launch<float, 8>(m, layout, count, stream);
        else if (packs && n == 4) launch<float, 4>(m, layout, count, stream);
        else launch<float, 1>(m, layout, count, stream);
    }
    return launched("array_map");
}

// What is computed with: 'd'ouble, 'f'loat or 'i'nteger.  `from` is the first operand that counts.
char kind_of(const Map& m, int from) {
    bool any_double = false, any_float = false;
    for (int k = from; k < m.operands; ++k) {
        any_double |= m.x_dtype[k] == NN_FLOAT64, any_float |= floating(m.x_dtype[k]);
    }
    if (m.op != NN_COPY && m.y_dtype == NN_FLOAT64) any_double = true;
    if (m.op != NN_COPY && floating(m.y_dtype)) any_float = true;
    return any_double ? 'd' : any_float ? 'f' : 'i';
}

// The first `arrays` operands must be arrays, the others may be numbers.
int run(Map& m, const nn_array_layout* layout, int arrays, const char* const (&names)[3], nn_stream stream) {
    NN_TRY(check_known("y_dtype", m.y_dtype));
    for (int k = 0; k < m.operands; ++k)
        NN_REQUIRE(known(m.x_dtype[k]), "%s_dtype: %d is no type", names[k], (int)m.x_dtype[k]);
    nn_array_layout l;
    int64_t count = 0;
    NN_TRY(merged(&l, layout, 1 + m.operands, &count));
    if (count == 0) return NN_OK;
    NN_TRY(check_array(m.y, "y", m.y_dtype));
    for (int k = 0; k < m.operands; ++k)
        NN_TRY(k < arrays ? check_array(m.x[k], names[k], m.x_dtype[k])
                          : check_optional(m.x[k], names[k], m.x_dtype[k]));
    if (m.op == NN_COPY && m.x[0] && m.y_dtype == m.x_dtype[0] && transposes(l, count))
        return transposed_copy(m.y, m.x[0], dtype_bytes(m.y_dtype), l, stream);
    const char kind = kind_of(m, m.op == NN_WHERE ? 1 : 0);
    NN_REQUIRE(kind != 'i' || !of_floats_only(m.op), "op: %d is not for integers", m.op);
    NN_REQUIRE(kind == 'i' || !of_integers_only(m.op), "op: %d is for integers only", m.op);
    if (kind == 'i' && m.op >= NN_FLOOR && m.op <= NN_ROUND) m.op = NN_COPY;
    if (is_light(m.op) && !(kind == 'd' && m.op >= NN_RSQRT && m.op <= NN_TANH))
        return launch_light(m, l, count, kind, stream);
    NN_SUPPORT(kind != 'd', "op: %d is not made for float64; cast to float32", m.op);
    if (kind == 'i') return launch_heavy<int64_t>(m, l, count, stream);
    return launch_heavy<float>(m, l, count, stream);
}

}  // namespace
}  // namespace nn::array

NN_API int nn_array_unary(void* y, const void* x, const nn_array_layout* layout, int32_t op, int32_t y_dtype,
                          int32_t x_dtype, nn_stream stream) {
    NN_REQUIRE(op >= NN_COPY && op <= NN_ERF, "op: %d is no operation of one operand", op);
    nn::array::Map m{y, {x}, {}, y_dtype, {x_dtype}, op, 1, 0, {}};
    return nn::array::run(m, layout, 1, {"x"}, stream);
}

NN_API int nn_array_binary(void* y, const void* a, const void* b, const nn_array_layout* layout, int32_t op,
                           int32_t y_dtype, int32_t a_dtype, int32_t b_dtype, double scalar,
                           nn_stream stream) {
    NN_REQUIRE(op >= NN_ADD && op <= NN_POWER, "op: %d is no operation of two operands", op);
    nn::array::Map m{y, {a, b}, {scalar, scalar}, y_dtype, {a_dtype, b_dtype}, op, 2, 0, {}};
    return nn::array::run(m, layout, 0, {"a", "b"}, stream);
}

NN_API int nn_array_where(void* y, const void* condition, const void* a, const void* b,
                          const nn_array_layout* layout, int32_t y_dtype, int32_t a_dtype, int32_t b_dtype,
                          double a_scalar, double b_scalar, nn_stream stream) {
    nn::array::Map m{y, {condition, a, b}, {0.0, a_scalar, b_scalar}, y_dtype, {NN_BOOL, a_dtype, b_dtype},
                     NN_WHERE, 3, 0, {}};
    return nn::array::run(m, layout, 1, {"condition", "a", "b"}, stream);
}

NN_API int nn_array_fill(void* y, const nn_array_layout* layout, int32_t dtype, double value,
                         nn_stream stream) {
    NN_TRY(nn::array::check_known("dtype", dtype));
    const bool whole = !nn::array::floating(dtype) && dtype != NN_FLOAT64;
    nn::array::Map m{y, {nullptr}, {value}, dtype, {whole ? NN_INT64 : dtype}, NN_COPY, 1, 0, {}};
    return nn::array::run(m, layout, 0, {"value"}, stream);
}

NN_API int nn_array_arange(void* y, double start, double step, int64_t count, int32_t dtype,
                           nn_stream stream) {
    NN_TRY(nn::check_count("count", count));
    NN_TRY(nn::array::check_known("dtype", dtype));
    if (count == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", dtype));
    nn::array::array_arange<<<nn::array::blocks_for(count), nn::array::THREADS, 0, nn::native(stream)>>>(
        y, start, step, count, dtype);
    return nn::launched("array_arange");
}
