// Rotary position embedding.
//
// tables     float32 angles (0.01 rad off at position 262,143) -> float64 angle, float64 sincos (its
//            reduction of large angles works in local memory) -> reduced by pi/2 in three parts with FMAs,
//            sincospi of the rest (used)
// rotation   a thread per pair -> 16 bytes of each half per thread -> cos and sin loaded once for all heads
//            of a position, q and k in one launch (used)
#include "device/arguments.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/pack.cuh"
#include "nn/rope.h"

namespace nn {

constexpr int ROPE_THREADS = 128;

__global__ void rope_frequencies(double* inverse, int64_t half, double theta, double divisor) {
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < half) inverse[i] = pow(theta, -double(i) / double(half)) / divisor;
}

// cos and sin of a float64 angle below 2^31.  n pi/2 is subtracted in three parts whose product with n is
// never rounded before the subtraction (Cody & Waite 1980, with FMAs).
__device__ __forceinline__ void turn(double angle, double& cosine, double& sine) {
    const double n = rint(angle * 0.63661977236758134308);
    double rest = fma(-n, 1.57079632679489655800e+00, angle);
    rest = fma(-n, 6.12323399573676603587e-17, rest);
    rest = fma(-n, -1.49738490485916983693e-33, rest);
    double s, c;
    sincospi(rest * 0.31830988618379067154, &s, &c);
    const int quadrant = int(int64_t(n) & 3);
    cosine = quadrant & 1 ? s : c, sine = quadrant & 1 ? c : s;
    if (quadrant == 1 || quadrant == 2) cosine = -cosine;
    if (quadrant >= 2) sine = -sine;
}

__global__ void __launch_bounds__(256) rope_table(float* cos, float* sin, const double* inverse,
                                                  int64_t start, int64_t half, int64_t count, double factor) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        double c, s;
        turn(double(start + i / half) * inverse[i % half], c, s);
        cos[i] = float(c * factor), sin[i] = float(s * factor);
    }
}

// What a thread turns of one head: N pairs, which lie in two packs (half-split) or in one of twice the width.
template <class T, int N, bool INTERLEAVED> struct Pairs {
    static constexpr int WIDTH = INTERLEAVED && N > 1 ? 2 * N : N, PACKS = INTERLEAVED && N > 1 ? 1 : 2;
    Pack<T, WIDTH> pack[PACKS];

    static __device__ __forceinline__ int64_t at(int i, int64_t pair, int64_t half) {
        return INTERLEAVED ? 2 * pair + i : pair + i * half;
    }
    __device__ __forceinline__ void load(const T* x, int64_t pair, int64_t half) {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) pack[i] = load_global<WIDTH>(x + at(i, pair, half));
    }
    __device__ __forceinline__ void store(T* y, int64_t pair, int64_t half) const {
#pragma unroll
        for (int i = 0; i < PACKS; ++i) store_global(y + at(i, pair, half), pack[i]);
    }
    __device__ __forceinline__ void turn(const float* c, const float* s) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            T& first = PACKS == 2 ? pack[0][i] : pack[0][2 * i];
            T& second = PACKS == 2 ? pack[PACKS - 1][i] : pack[0][2 * i + 1];
            const float a = to_float(first), b = to_float(second);
            first = from_float<T>(a * c[i] - b * s[i]);
            second = from_float<T>(b * c[i] + a * s[i]);
        }
    }
};

__device__ __forceinline__ int64_t table_row(const nn_rope& call, int64_t b, int64_t t) {
    if (!call.positions) return t;
    const int64_t i = b * call.position_stride;
    return t + (call.position_dtype == NN_INT32 ? static_cast<const int32_t*>(call.positions)[i]
                                                : static_cast<const int64_t*>(call.positions)[i]);
}

template <int N> __device__ __forceinline__ void load_angles(float* c, float* s, const nn_rope& call,
                                                             int64_t b, int64_t t, int64_t pair) {
    constexpr int W = N < 4 ? N : 4;                             // floats per load
    const int64_t row = table_row(call, b, t), from = (b * call.table_batch + row) * call.half + pair;
    const bool inside = row >= 0 && row < call.table_rows;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        Pack<float, W> cs, sn;
#pragma unroll
        for (int j = 0; j < W; ++j) cs[j] = sn[j] = __int_as_float(0x7fc00000);
        if (inside) cs = load_global<W>(call.cos + from + i), sn = load_global<W>(call.sin + from + i);
#pragma unroll
        for (int j = 0; j < W; ++j) c[i + j] = cs[j], s[i + j] = call.inverse ? -sn[j] : sn[j];
    }
}

// One thread: N pairs, or a pack of channels that pass through, of every groups-th head of one (b, t).  cos
// and sin stay in registers over the heads; HEADS of them are loaded before the first is stored.
template <class T, int N, bool INTERLEAVED>
__global__ void __launch_bounds__(ROPE_THREADS)
rope_forward(const nn_rope call, uint32_t packs, uint32_t units, uint32_t groups, uint32_t count) {
    using Part = Pairs<T, N, INTERLEAVED>;
    constexpr int HEADS = 4, PASS = Part::WIDTH;
    const uint32_t index = blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (index >= count) return;
    const uint32_t unit = index % units, rest = index / units, group = rest % groups, row = rest / groups;
    const int64_t b = row / uint32_t(call.length), t = row % uint32_t(call.length), pair = int64_t(unit) * N;
    float c[N], s[N];
    if (unit < packs) load_angles<N>(c, s, call, b, t, pair);
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
        const nn_rope_array& array = which ? call.k : call.q;
        const T* x = static_cast<const T*>(array.x) + b * array.x_batch + t * array.x_position;
        T* y = static_cast<T*>(array.y) + b * array.y_batch + t * array.y_position;
        if (unit >= packs) {
            const int64_t at = 2 * call.half + int64_t(unit - packs) * PASS;
            for (int64_t h = group; h < array.heads; h += groups)
                store_global(y + h * array.y_head + at, load_global<PASS>(x + h * array.x_head + at));
            continue;
        }
        for (int64_t h = group; h < array.heads; h += int64_t(groups) * HEADS) {
            Part part[HEADS];
#pragma unroll
            for (int i = 0; i < HEADS; ++i)
                if (h + i * groups < array.heads)
                    part[i].load(x + (h + i * groups) * array.x_head, pair, call.half);
#pragma unroll
            for (int i = 0; i < HEADS; ++i)
                if (h + i * groups < array.heads) {
                    part[i].turn(c, s);
                    part[i].store(y + (h + i * groups) * array.y_head, pair, call.half);
                }
        }
    }
}

// Whether every row of an array can be moved in packs of 16 bytes.
static bool in_packs(const nn_rope_array& a, int64_t bytes) {
    if (!a.heads) return true;
    const int64_t strides = a.x_batch | a.x_head | a.x_position | a.y_batch | a.y_head | a.y_position;
    return aligned(a.x, 16) && aligned(a.y, 16) && strides * bytes % 16 == 0;
}

template <class T, int N, bool INTERLEAVED> static int launch_rope(const nn_rope& call, cudaStream_t stream) {
    Device device;
    NN_TRY(current_device(&device));
    const int64_t packs = call.half / N, rows = call.batch * call.length, pass = call.width - 2 * call.half;
    const bool in_place = (!call.q.heads || call.q.x == call.q.y) && (!call.k.heads || call.k.x == call.k.y);
    const int64_t units = packs + (in_place ? 0 : pass / Pairs<T, N, INTERLEAVED>::WIDTH);
    if (units == 0) return NN_OK;
    const int64_t heads = call.q.heads > call.k.heads ? call.q.heads : call.k.heads;
    const int64_t limit = int64_t(1) << 31;
    NN_SUPPORT(rows < limit && units < limit && rows * units < limit,
               "batch, length, width: %lld positions of %lld packs are too many for one launch",
               (long long)rows, (long long)units);
    int64_t groups = device.multiprocessors * 64 / (rows * units) + 1;       // few rows: share the heads out
    if (groups > heads) groups = heads;
    const int64_t count = rows * units * groups, blocks = ceil_div(count, ROPE_THREADS);
    rope_forward<T, N, INTERLEAVED><<<unsigned(blocks), ROPE_THREADS, 0, stream>>>(
        call, uint32_t(packs), uint32_t(units), uint32_t(groups), uint32_t(count));
    return launched("rope_forward");
}

template <class T> static int launch_rope(const nn_rope& call, cudaStream_t stream) {
    constexpr int FULL = PACK<T>;
    const bool packs = in_packs(call.q, sizeof(T)) && in_packs(call.k, sizeof(T)) && aligned(call.cos, 16) &&
                       aligned(call.sin, 16) && (call.width - 2 * call.half) % FULL == 0;
    if (call.interleaved)
        return packs && call.half % (FULL / 2) == 0 ? launch_rope<T, FULL / 2, true>(call, stream)
                                                    : launch_rope<T, 1, true>(call, stream);
    return packs && call.half % FULL == 0 ? launch_rope<T, FULL, false>(call, stream)
                                          : launch_rope<T, 1, false>(call, stream);
}

static int check(const nn_rope_array& a, const char* name, const nn_rope& call) {
    NN_REQUIRE(a.heads >= 0 && a.heads < (int64_t(1) << 31), "%s.heads: %lld is not in 0 ... 2^31 - 1", name,
               (long long)a.heads);
    if (!a.heads || !call.batch || !call.length) return NN_OK;
    NN_REQUIRE(a.x && a.y, "%s.x or %s.y: a null pointer", name, name);
    const size_t bytes = static_cast<size_t>(dtype_bytes(call.dtype));
    NN_REQUIRE(aligned(a.x, bytes) && aligned(a.y, bytes), "%s.x or %s.y: not aligned to %s", name, name,
               dtype_name(call.dtype));
    NN_REQUIRE(a.x != a.y || (a.x_batch == a.y_batch && a.x_head == a.y_head && a.x_position == a.y_position),
               "%s: in place, but the strides of x and y differ", name);
    return NN_OK;
}

static int check(const nn_rope* call) {
    NN_REQUIRE(call && call->size == sizeof(nn_rope), "call: null, or its size is not sizeof(nn_rope)");
    NN_TRY(check_elements("batch", call->batch, "length", call->length));
    NN_TRY(check_count("width", call->width));
    NN_REQUIRE(call->half >= 0 && call->half <= call->width / 2,
               "half: %lld pairs do not fit into a width of %lld",
               (long long)call->half, (long long)call->width);
    NN_TRY(check_elements("table_rows", call->table_rows, "half", call->half));
    NN_TRY(check_count("table_batch", call->table_batch));
    NN_TRY(check_flag("interleaved", call->interleaved));
    NN_TRY(check_flag("inverse", call->inverse));
    NN_TRY(check_floating("dtype", call->dtype));
    NN_REQUIRE(call->position_stride == 0 || call->position_stride == 1,
               "position_stride: %lld is not 0 or 1",
               (long long)call->position_stride);
    NN_REQUIRE(!call->positions || call->position_dtype == NN_INT32 || call->position_dtype == NN_INT64,
               "position_dtype: %s; expected int32 or int64", dtype_name(call->position_dtype));
    NN_TRY(check_optional(call->positions, "positions", call->position_dtype));
    NN_TRY(check_optional(call->cos, "cos", NN_FLOAT32));
    NN_TRY(check_optional(call->sin, "sin", NN_FLOAT32));
    NN_TRY(check(call->q, "q", *call));
    NN_TRY(check(call->k, "k", *call));
    const bool rows = call->batch && call->length && (call->q.heads || call->k.heads);
    NN_REQUIRE(!rows || !call->half || !call->table_rows || (call->cos && call->sin),
               "cos or sin: a null pointer");
    return NN_OK;
}

}  // namespace nn

NN_API int nn_rope_frequencies(double* inverse, int64_t dim, double theta, double factor, int32_t scaling,
                               nn_stream stream) {
    NN_REQUIRE(dim >= 0 && dim % 2 == 0 && dim < (int64_t(1) << 31),
               "dim: %lld is not an even number of channels below 2^31", (long long)dim);
    NN_REQUIRE(theta > 0, "theta: %g is not positive", theta);
    NN_REQUIRE(factor >= 1, "factor: %g is below 1; it is new context / trained context", factor);
    NN_REQUIRE(scaling >= NN_ROPE_PLAIN && scaling <= NN_ROPE_NTK, "scaling: %d is not 0, 1 or 2", scaling);
    NN_REQUIRE(scaling != NN_ROPE_NTK || dim != 2, "dim: NTK scaling needs a width above 2");
    if (dim == 0) return NN_OK;
    NN_TRY(nn::check_array(inverse, "inverse", NN_FLOAT64));
    if (scaling == NN_ROPE_NTK) theta *= __builtin_pow(factor, double(dim) / double(dim - 2));
    nn::rope_frequencies<<<unsigned(nn::ceil_div(dim / 2, 128)), 128, 0, nn::native(stream)>>>(
        inverse, dim / 2, theta, scaling == NN_ROPE_LINEAR ? factor : 1.0);
    return nn::launched("rope_frequencies");
}

NN_API int nn_rope_table(float* cos, float* sin, const double* inverse, int64_t start, int64_t positions,
                         int64_t half, double factor, nn_stream stream) {
    constexpr int64_t LIMIT = int64_t{1} << 31;
    NN_REQUIRE(start >= 0 && positions >= 0 && start <= LIMIT && positions <= LIMIT - start,
               "start, positions: %lld, %lld reach outside 0 ... 2^31", (long long)start,
                   (long long)positions);
    NN_REQUIRE(half >= 0 && half < (int64_t(1) << 31), "half: %lld is negative or too large",
               (long long)half);
    if (positions == 0 || half == 0) return NN_OK;
    NN_TRY(nn::check_array(cos, "cos", NN_FLOAT32));
    NN_TRY(nn::check_array(sin, "sin", NN_FLOAT32));
    NN_TRY(nn::check_array(inverse, "inverse", NN_FLOAT64));
    const int64_t count = positions * half, blocks = nn::ceil_div(count, 256);
    nn::rope_table<<<unsigned(blocks < 65536 ? blocks : 65536), 256, 0, nn::native(stream)>>>(
        cos, sin, inverse, start, half, count, factor);
    return nn::launched("rope_table");
}

NN_API int nn_rope_forward(const nn_rope* call, nn_stream stream) {
    NN_TRY(nn::check(call));
    if (!call->batch || !call->length || (!call->q.heads && !call->k.heads)) return NN_OK;
    NN_FOR_FLOATING(call->dtype, T, return nn::launch_rope<T>(*call, nn::native(stream)));
    return NN_OK;
}
