// nn_array_layout on the host: checks, merging of axes.
#include "layout.cuh"

#include <algorithm>

namespace nn::array {

bool known(int32_t dtype) { return dtype_bytes(dtype) > 0; }
int check_known(const char* name, int32_t dtype) {
    NN_REQUIRE(known(dtype), "%s: %d is no type", name, (int)dtype);
    return NN_OK;
}

bool floating(int32_t dtype) { return dtype == NN_FLOAT32 || dtype == NN_FLOAT16 || dtype == NN_BFLOAT16; }

unsigned limited(int64_t blocks) { return static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, 1 << 20)); }
unsigned blocks_for(int64_t threads) { return limited(ceil_div(threads, THREADS)); }

namespace {

int check(const nn_array_layout* layout, int64_t* count) {
    NN_REQUIRE(layout && layout->size == sizeof(nn_array_layout), "layout: null, or its size is not %zu",
               sizeof(nn_array_layout));
    NN_REQUIRE(layout->ndim >= 0 && layout->ndim <= AXES, "layout: %lld axes; at most %d are possible",
               (long long)layout->ndim, AXES);
    *count = 1;
    for (int axis = 0; axis < layout->ndim; ++axis) {
        const int64_t n = layout->shape[axis];
        NN_REQUIRE(n >= 0, "layout: axis %d has %lld elements", axis, (long long)n);
        if (n == 0) return *count = 0, NN_OK;
    }
    for (int axis = 0; axis < layout->ndim; ++axis)
        NN_REQUIRE(!__builtin_mul_overflow(*count, layout->shape[axis], count) && *count < (1LL << 62),
                   "layout: more than 2^62 elements");
    return NN_OK;
}

// Whether axis b lies within axis a for every operand: one step along a is all of b.
bool within(const nn_array_layout& l, int a, int b, int operands) {
    for (int k = 0; k < operands; ++k)
        if (l.strides[k][a] != l.strides[k][b] * l.shape[b]) return false;
    return true;
}

void move_axis(nn_array_layout* l, int to, int from, int operands) {
    l->shape[to] = l->shape[from];
    for (int k = 0; k < operands; ++k) l->strides[k][to] = l->strides[k][from];
}

}  // namespace

int merged(nn_array_layout* out, const nn_array_layout* layout, int operands, int64_t* count) {
    NN_TRY(check(layout, count));
    *out = *layout;
    int kept = 0;
    for (int axis = 0; axis < layout->ndim; ++axis) {
        if (out->shape[axis] == 1) continue;
        move_axis(out, kept, axis, operands);
        if (kept > 0 && within(*out, kept - 1, kept, operands)) {
            const int64_t n = out->shape[kept - 1] * out->shape[kept];
            move_axis(out, kept - 1, kept, operands);
            out->shape[kept - 1] = n;
        } else {
            ++kept;
        }
    }
    if (kept == 0) {                                 // one element: one axis of it
        out->shape[0] = *count == 0 ? 0 : 1, kept = 1;
        for (int k = 0; k < operands; ++k) out->strides[k][0] = 1;
    }
    out->ndim = kept;
    return NN_OK;
}

}  // namespace nn::array

NN_API int nn_array_layout_merge(nn_array_layout* layout, int32_t operands) {
    NN_REQUIRE(operands >= 1 && operands <= 4, "operands: %d is not in 1 ... 4", operands);
    int64_t count = 0;
    nn_array_layout found;
    NN_TRY(nn::array::merged(&found, layout, operands, &count));
    *layout = found;
    return NN_OK;
}
