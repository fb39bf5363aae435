// Elementwise operations on arrays of any strides and types.
//
// one element per thread, a kernel per operation and type -> the operation a run-time argument: a switch that
// is the same for all threads, hidden behind the memory -> neighbours along the innermost axis 16 bytes at a
// time, also where an operand repeats along it (used)
#include "element.cuh"
#include "layout.cuh"
#include "transpose.h"

#include <algorithm>
#include <type_traits>

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

template <class C> __device__ __forceinline__ C quiet_max(C a, C b) { return a > b || a != a ? a : b; }
template <class C> __device__ __forceinline__ C quiet_min(C a, C b) { return a < b || a != a ? a : b; }

__device__ inline float remainder_of(float a, float b) {
    float r = fmodf(a, b);
    if (r != 0.0f && (r < 0.0f) != (b < 0.0f)) r += b;
    return r == 0.0f ? copysignf(0.0f, b) : r;
}

__device__ inline float floor_divided(float a, float b) {            // NumPy's: floor(a / b) without rounding
    if (b == 0.0f) return a / b;
    const float r = fmodf(a, b);
    float q = (a - r) / b;                           // a whole number, but for rounding
    if (r != 0.0f && (r < 0.0f) != (b < 0.0f)) q -= 1.0f;
    if (q == 0.0f) return copysignf(0.0f, a / b);
    const float whole = floorf(q);
    return q - whole > 0.5f ? whole + 1.0f : whole;
}

__device__ inline int64_t floor_divided(int64_t a, int64_t b) {
    if (b == 0) return 0;
    if (b == -1) return static_cast<int64_t>(0 - static_cast<uint64_t>(a));
    const int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

__device__ inline int64_t remainder_of(int64_t a, int64_t b) {
    return b == 0 ? 0 : a - b * floor_divided(a, b);
}

__device__ inline int64_t power_of(int64_t a, int64_t n) {
    if (n < 0) return a == 1 ? 1 : a == -1 ? (n & 1 ? -1 : 1) : 0;
    int64_t y = 1;
    for (; n; n >>= 1, a *= a)
        if (n & 1) y *= a;
    return y;
}

// 2 / pi: a zero word, then the bits from 2^-1 downwards.
__constant__ uint32_t TWO_OVER_PI[] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0,
                                       0xdb629599, 0x3c439041, 0xfe5163ab, 0xdebbc561};

// x = quadrant pi/2 + result, the result within pi/4, for every finite x.  CUDA's own reduction of large
// angles keeps an array in local memory; this one takes the 96 bits of 2/pi that matter from constant memory
// (Payne & Hanek 1983).
__device__ inline double reduced_angle(float x, int* quadrant) {
    constexpr double HALF_PI = 1.5707963267948966;
    if (fabsf(x) < 1e5f) {
        const double k = rint(x * 0.6366197723675814);
        *quadrant = static_cast<int>(k);
        return fma(-k, 6.123233995736766e-17, fma(-k, HALF_PI, static_cast<double>(x)));
    }
    const uint32_t bits = __float_as_uint(x);
    const int first = static_cast<int>(bits >> 23 & 255u) - 120;     // the bit that counts 2 in the product
    const int word = min(first / 32, 5), part = first % 32;
    const uint64_t window = static_cast<uint64_t>(TWO_OVER_PI[word]) << 32 | TWO_OVER_PI[word + 1];
    const uint64_t beyond = static_cast<uint64_t>(TWO_OVER_PI[word + 2]) << 32 | TWO_OVER_PI[word + 3];
    const uint64_t high = part ? window << part | beyond >> (64 - part) : window;
    const uint64_t low = beyond << part >> 32, mantissa = (bits & 0x7fffffu) | 0x800000u;
    const uint64_t turns = mantissa * high + (mantissa * low >> 32);     // in 2^-62 quadrants, modulo 4
    const uint64_t whole = (turns + (1ULL << 61)) >> 62;
    const int64_t part_turn = static_cast<int64_t>(turns - (whole << 62));
    const double rest = static_cast<double>(part_turn) * (HALF_PI / (1ULL << 62));
    const bool negative = x < 0.0f;
    *quadrant = negative ? -static_cast<int>(whole) : static_cast<int>(whole);
    return negative ? -rest : rest;
}

// sin(x + turn pi/2)                       (polynomials: Cephes, sinf and cosf)
__device__ inline float sine(float x, int turn) {
    if (!(fabsf(x) < __int_as_float(0x7f800000))) return x - x;
    int quadrant;
    const double r = reduced_angle(x, &quadrant), s = r * r;
    quadrant += turn;
    const double sin = r + r * s * (-1.6666654611e-1 + s * (8.3321608736e-3 + s * -1.9515295891e-4));
    const double rest = 4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5);
    const double cos = 1.0 - 0.5 * s + s * s * rest;
    const float y = static_cast<float>(quadrant & 1 ? cos : sin);
    return quadrant & 2 ? -y : y;
}

template <class C> __device__ __forceinline__ C sign_of(C a) {
    return a > C(0) ? C(1) : a < C(0) ? C(-1) : a;
}

// Operations that are worth N copies of their code.
#define NN_EACH(...)                                  \
    {                                                 \
        _Pragma("unroll") for (int j = 0; j < N; ++j) y[j] = static_cast<C>(__VA_ARGS__); \
        return;                                       \
    }

template <class C, int N>
__device__ __forceinline__ void light(C (&y)[N], const C (&a)[N], const C (&b)[N], const C (&c)[N], int op) {
    switch (op) {
        case NN_COPY: NN_EACH(a[j])
        case NN_NEGATIVE: NN_EACH(-a[j])
        case NN_ABS: NN_EACH(a[j] < C(0) || (a[j] == C(0)) ? C(0) - a[j] : a[j])
        case NN_SIGN: NN_EACH(sign_of(a[j]))
        case NN_SQUARE: NN_EACH(a[j] * a[j])
        case NN_LOGICAL_NOT: NN_EACH(a[j] == C(0))
        case NN_ISNAN: NN_EACH(a[j] != a[j])
        case NN_ISFINITE: NN_EACH(a[j] - a[j] == C(0))
        case NN_ISINF: NN_EACH(a[j] == a[j] && !(a[j] - a[j] == C(0)))
        case NN_ADD: NN_EACH(a[j] + b[j])
        case NN_SUBTRACT: NN_EACH(a[j] - b[j])
        case NN_MULTIPLY: NN_EACH(a[j] * b[j])
        case NN_MAXIMUM: NN_EACH(quiet_max(a[j], b[j]))
        case NN_MINIMUM: NN_EACH(quiet_min(a[j], b[j]))
        case NN_EQUAL: NN_EACH(a[j] == b[j])
        case NN_NOT_EQUAL: NN_EACH(a[j] != b[j])
        case NN_LESS: NN_EACH(a[j] < b[j])
        case NN_LESS_EQUAL: NN_EACH(a[j] <= b[j])
        case NN_GREATER: NN_EACH(a[j] > b[j])
        case NN_GREATER_EQUAL: NN_EACH(a[j] >= b[j])
        case NN_LOGICAL_AND: NN_EACH(a[j] != C(0) && b[j] != C(0))
        case NN_LOGICAL_OR: NN_EACH(a[j] != C(0) || b[j] != C(0))
        case NN_LOGICAL_XOR: NN_EACH((a[j] != C(0)) != (b[j] != C(0)))
        case NN_WHERE: NN_EACH(a[j] != C(0) ? b[j] : c[j])
    }
    if constexpr (std::is_same_v<C, int64_t>) {
        switch (op) {
            case NN_AND: NN_EACH(a[j] & b[j])
            case NN_OR: NN_EACH(a[j] | b[j])
            case NN_XOR: NN_EACH(a[j] ^ b[j])
        }
    } else {
        switch (op) {
            case NN_DIVIDE: NN_EACH(a[j] / b[j])
            case NN_SQRT: NN_EACH(sqrt(a[j]))
        }
    }
    if constexpr (std::is_same_v<C, float>) {
        switch (op) {
            case NN_RSQRT: NN_EACH(rsqrtf(a[j]))
            case NN_RECIPROCAL: NN_EACH(1.0f / a[j])
            case NN_EXP: NN_EACH(expf(a[j]))
            case NN_LOG: NN_EACH(logf(a[j]))
            case NN_TANH: NN_EACH(tanhf(a[j]))
        }
    }
}
#undef NN_EACH

__device__ inline float heavy(float a, float b, int op) {
    switch (op) {
        case NN_FLOOR: return floorf(a);
        case NN_CEIL: return ceilf(a);
        case NN_TRUNC: return truncf(a);
        case NN_ROUND: return rintf(a);
        case NN_EXPM1: return expm1f(a);
        case NN_LOG1P: return log1pf(a);
        case NN_LOG2: return log2f(a);
        case NN_SIN: return sine(a, 0);
        case NN_COS: return sine(a, 1);
        case NN_ERF: return erff(a);
        case NN_FLOOR_DIVIDE: return floor_divided(a, b);
        case NN_REMAINDER: return remainder_of(a, b);
        case NN_POWER: return powf(a, b);
    }
    return 0.0f;
}

__device__ inline int64_t heavy(int64_t a, int64_t b, int op) {
    switch (op) {
        case NN_INVERT: return ~a;
        case NN_SHIFT_LEFT: return b < 0 || b > 63 ? 0 : a << b;
        case NN_SHIFT_RIGHT: return a >> (b < 0 || b > 63 ? 63 : b);
        case NN_FLOOR_DIVIDE: return floor_divided(a, b);
        case NN_REMAINDER: return remainder_of(a, b);
        case NN_POWER: return power_of(a, b);
    }
    return 0;                                        // floor, round, ...: copies, by the host
}

__device__ inline double heavy(double, double, int) { return 0.0; }

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
