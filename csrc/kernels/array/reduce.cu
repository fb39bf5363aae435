// Reductions over any axes of any strided array.
//
// one thread per result -> a group of threads per result, a tree in shared memory -> lanes over whatever lies
// closer together, the reduced elements (rows) or the results (columns) -> long reductions in chunks over
// several blocks, whose results a second kernel puts together in order (used)
#include "element.cuh"
#include "layout.cuh"

#include <algorithm>
#include <type_traits>

namespace nn::array {

constexpr int GROUP = 4;                             // neighbours that a thread loads together
constexpr int LANES_OF_COLUMNS = 8;

template <class C> struct Found {                    // for ARGMAX and ARGMIN
    C value;
    int64_t place;
};

struct Reduce {
    void* y;
    const void* x;
    void* partial;                                   // [chunks, outputs], if chunks > 1
    int64_t outputs, length, chunk, chunks;
    int32_t y_dtype, x_dtype, op;
    int32_t lanes;                                   // threads per result, a power of 2
    int32_t columns, packs;
    Places<2> kept;                                  // y, x
    Places<1> reduced;                               // x
};

template <class C> __device__ __forceinline__ C lowest() {
    if constexpr (std::is_same_v<C, int64_t>) return INT64_MIN;
    else return -static_cast<C>(__builtin_huge_valf());
}

template <class C> __device__ __forceinline__ C highest() {
    if constexpr (std::is_same_v<C, int64_t>) return INT64_MAX;
    else return static_cast<C>(__builtin_huge_valf());
}

template <class C> __device__ __forceinline__ C identity(int op, C*) {
    switch (op) {
        case NN_PROD: case NN_ALL: return C(1);
        case NN_MAX: return lowest<C>();
        case NN_MIN: return highest<C>();
    }
    return C(0);
}

template <class C> __device__ __forceinline__ Found<C> identity(int op, Found<C>*) {
    return {op == NN_ARGMAX ? lowest<C>() : highest<C>(), INT64_MAX};
}

template <class C> __device__ __forceinline__ C element(int op, C x, int64_t, C*) {
    return op == NN_ANY || op == NN_ALL ? C(x != C(0)) : x;
}

template <class C> __device__ __forceinline__ Found<C> element(int, C x, int64_t place, Found<C>*) {
    return {x, place};
}

template <class C> __device__ __forceinline__ C combined(int op, C a, C b) {
    switch (op) {
        case NN_PROD: case NN_ALL: return a * b;
        case NN_MAX: case NN_ANY: return a > b || a != a ? a : b;
        case NN_MIN: return a < b || a != a ? a : b;
    }
    return a + b;
}

template <class C> __device__ __forceinline__ Found<C> combined(int op, Found<C> a, Found<C> b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool equal = a_nan ? b_nan : a.value == b.value;
    const bool better = a_nan ? !b_nan : !b_nan && (op == NN_ARGMAX ? a.value > b.value : a.value < b.value);
    return equal ? (a.place < b.place ? a : b) : better ? a : b;
}

// Over the lanes of each group, in a fixed tree; lane 0 gets the result.
template <class A>
__device__ __forceinline__ A tree(A x, A* scratch, int op, int lane, int lanes, int distance) {
    scratch[threadIdx.x] = x;
    for (int step = lanes / 2; step > 0; step /= 2) {
        __syncthreads();
        if (lane < step) scratch[threadIdx.x] = x = combined(op, x, scratch[threadIdx.x + step * distance]);
    }
    __syncthreads();
    return x;
}

template <class C> __device__ __forceinline__ void store_result(const Reduce& r, int64_t at, C x) {
    if (r.op == NN_MEAN) x /= static_cast<C>(r.length);
    store(r.y, r.y_dtype, at, x);
}

template <class C> __device__ __forceinline__ void store_result(const Reduce& r, int64_t at, Found<C> x) {
    store(r.y, r.y_dtype, at, x.place);
}

// One thread's share of a chunk: groups of neighbours, `lanes` groups apart.
template <class C, class A>
__device__ __forceinline__ A share(const Reduce& r, int64_t from, int64_t base, int lane) {
    A sum = identity(r.op, static_cast<A*>(nullptr));
    const int64_t stop = min(from + r.chunk, r.length);
    for (int64_t i = from + int64_t(lane) * GROUP; i < stop; i += int64_t(r.lanes) * GROUP) {
        C x[GROUP];
        if (r.packs && i + GROUP <= stop) {
            load_many<GROUP>(x, r.x, r.x_dtype, base + i);
        } else {
#pragma unroll
            for (int j = 0; j < GROUP; ++j) {
                int64_t at[1];
                places(at, r.reduced, min(i + j, stop - 1));
                x[j] = load<C>(r.x, r.x_dtype, base + at[0]);
            }
        }
        A mine[GROUP];
#pragma unroll
        for (int j = 0; j < GROUP; ++j)
            mine[j] = i + j < stop ? element(r.op, x[j], i + j, static_cast<A*>(nullptr))
                                   : identity(r.op, static_cast<A*>(nullptr));
        const A left = combined(r.op, mine[0], mine[1]), right = combined(r.op, mine[2], mine[3]);
        sum = combined(r.op, sum, combined(r.op, left, right));
    }
    return sum;
}

// Two blocks at least: left alone, ptxas aims at four, and spills for sm_75 and sm_90a.
template <class C, bool PLACE>
__global__ void __launch_bounds__(THREADS, 2) array_reduce(const __grid_constant__ Reduce r) {
    using A = std::conditional_t<PLACE, Found<C>, C>;
    __shared__ A scratch[THREADS];
    const int groups = THREADS / r.lanes;            // results per block
    const int lane = r.columns ? threadIdx.x / groups : threadIdx.x % r.lanes;
    const int mine = r.columns ? threadIdx.x % groups : threadIdx.x / r.lanes;
    const int64_t blocks = (r.outputs + groups - 1) / groups * r.chunks;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const int64_t chunk = r.chunks == 1 ? 0 : block % r.chunks;
        const int64_t output = (r.chunks == 1 ? block : block / r.chunks) * groups + mine;
        int64_t at[2] = {0, 0};
        A sum = identity(r.op, static_cast<A*>(nullptr));
        if (output < r.outputs) {
            places(at, r.kept, output);
            sum = share<C, A>(r, chunk * r.chunk, at[1], lane);
        }
        sum = tree(sum, scratch, r.op, lane, r.lanes, r.columns ? groups : 1);
        if (output >= r.outputs || lane != 0) continue;
        if (r.chunks == 1) store_result(r, at[0], sum);
        else static_cast<A*>(r.partial)[chunk * r.outputs + output] = sum;
    }
}

// The chunks of each result, in order.
template <class C, bool PLACE>
__global__ void __launch_bounds__(THREADS, 2) array_reduce_chunks(const __grid_constant__ Reduce r) {
    using A = std::conditional_t<PLACE, Found<C>, C>;
    __shared__ A scratch[THREADS];
    const int groups = THREADS / r.lanes, lane = threadIdx.x / groups;
    const int64_t blocks = (r.outputs + groups - 1) / groups;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const int64_t output = block * groups + threadIdx.x % groups;
        A sum = identity(r.op, static_cast<A*>(nullptr));
        if (output < r.outputs)
            for (int64_t chunk = lane; chunk < r.chunks; chunk += r.lanes)
                sum = combined(r.op, sum, static_cast<const A*>(r.partial)[chunk * r.outputs + output]);
        sum = tree(sum, scratch, r.op, lane, r.lanes, groups);
        if (output >= r.outputs || lane != 0) continue;
        int64_t at[2];
        places(at, r.kept, output);
        store_result(r, at[0], sum);
    }
}

namespace {

struct Plan {
    nn_array_layout kept, reduced;                   // operands y, x; x alone
    int64_t outputs, length, chunk, chunks;
    int lanes, columns;
};

int power_of_two(int64_t n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

int split(Plan* plan, const nn_array_layout* layout, int64_t reduced) {
    NN_REQUIRE(layout && layout->ndim >= 0 && layout->ndim <= AXES, "layout: null, or not 0 to %d axes",
               AXES);
    NN_REQUIRE(reduced >= 0 && reduced <= layout->ndim, "reduced: %lld of %lld axes", (long long)reduced,
               (long long)layout->ndim);
    const int64_t kept = layout->ndim - reduced;
    nn_array_layout outer = *layout, inner = *layout;
    outer.ndim = kept, inner.ndim = reduced;
    for (int axis = 0; axis < reduced; ++axis) {
        inner.shape[axis] = layout->shape[kept + axis];
        inner.strides[0][axis] = layout->strides[1][kept + axis];
    }
    NN_TRY(merged(&plan->kept, &outer, 2, &plan->outputs));
    NN_TRY(merged(&plan->reduced, &inner, 1, &plan->length));
    const int64_t along = std::abs(plan->reduced.strides[0][plan->reduced.ndim - 1]);
    const int64_t across = std::abs(plan->kept.strides[1][plan->kept.ndim - 1]);
    plan->columns = plan->length > 1 && across < along;
    if (plan->columns) {
        plan->lanes = power_of_two(ceil_div(plan->length, GROUP), LANES_OF_COLUMNS);
    } else {
        plan->lanes = power_of_two(ceil_div(plan->length, GROUP), THREADS);
    }
    plan->chunk = std::max<int64_t>(1, int64_t(plan->lanes) * GROUP * (plan->columns ? 16 : 8));
    plan->chunks = std::max<int64_t>(1, ceil_div(plan->length, plan->chunk));
    return NN_OK;
}

bool is_place(int32_t op) { return op == NN_ARGMAX || op == NN_ARGMIN; }

int64_t bytes_for(const Plan& plan, int32_t op) {
    return plan.chunks == 1 ? 0 : plan.chunks * plan.outputs * (is_place(op) ? 16 : 8);
}

bool divides(const Plan& plan, const void* x, int32_t dtype) {
    if (plan.reduced.ndim != 1 || plan.reduced.strides[0][0] != 1) return false;
    if (!aligned(x, std::min<int64_t>(16, GROUP * dtype_bytes(dtype)))) return false;
    for (int axis = 0; axis < plan.kept.ndim; ++axis)
        if (plan.kept.shape[axis] > 1 && plan.kept.strides[1][axis] % GROUP != 0) return false;
    return true;
}

template <class C, bool PLACE> int launch(Reduce r, nn_stream stream) {
    const int64_t blocks = ceil_div(r.outputs, THREADS / r.lanes) * r.chunks;
    array_reduce<C, PLACE><<<limited(blocks), THREADS, 0, native(stream)>>>(r);
    NN_TRY(launched("array_reduce"));
    if (r.chunks == 1) return NN_OK;
    r.lanes = power_of_two(r.chunks, 32);
    const int64_t last = ceil_div(r.outputs, THREADS / r.lanes);
    array_reduce_chunks<C, PLACE><<<limited(last), THREADS, 0, native(stream)>>>(r);
    return launched("array_reduce_chunks");
}

}  // namespace
}  // namespace nn::array

NN_API int64_t nn_array_reduce_workspace_size(const nn_array_layout* layout, int64_t reduced, int32_t op) {
    nn::array::Plan plan{};
    return nn::array::split(&plan, layout, reduced) == NN_OK ? nn::array::bytes_for(plan, op) : -1;
}

NN_API int nn_array_reduce(void* y, const void* x, const nn_array_layout* layout, int64_t reduced, int32_t op,
                           int32_t y_dtype, int32_t x_dtype, void* workspace, int64_t workspace_bytes,
                           nn_stream stream) {
    using namespace nn::array;
    NN_REQUIRE(op >= NN_SUM && op <= NN_ARGMIN, "op: %d is no reduction", op);
    NN_TRY(check_known("y_dtype", y_dtype));
    NN_TRY(check_known("x_dtype", x_dtype));
    Plan plan{};
    NN_TRY(split(&plan, layout, reduced));
    if (plan.outputs == 0) return NN_OK;
    NN_REQUIRE(plan.length > 0 || (op != NN_MAX && op != NN_MIN && !is_place(op)),
               "op: %d of no elements has no value", op);
    NN_TRY(nn::check_array(y, "y", y_dtype));
    NN_TRY(plan.length ? nn::check_array(x, "x", x_dtype) : nn::check_optional(x, "x", x_dtype));
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, bytes_for(plan, op)));
    Reduce r{y, x, workspace, plan.outputs, plan.length, plan.chunk, plan.chunks, y_dtype, x_dtype, op,
             plan.lanes, plan.columns, divides(plan, x, x_dtype), as_parameter<2>(plan.kept, plan.outputs),
             as_parameter<1>(plan.reduced, plan.length)};
    const bool whole = !floating(x_dtype) && x_dtype != NN_FLOAT64 && (op != NN_MEAN || !floating(y_dtype));
    if (x_dtype == NN_FLOAT64 || (op == NN_MEAN && y_dtype == NN_FLOAT64)) {
        NN_SUPPORT(!is_place(op), "op: %d is not made for float64; cast to float32", op);
        return launch<double, false>(r, stream);
    }
    if (whole) return is_place(op) ? launch<int64_t, true>(r, stream) : launch<int64_t, false>(r, stream);
    return is_place(op) ? launch<float, true>(r, stream) : launch<float, false>(r, stream);
}
