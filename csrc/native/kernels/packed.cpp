// Linear maps whose weights are packed (packed.h): y = x weight^T + bias +
// residual, and SwiGLU of one.
#include "kernels/packed_product.h"

namespace nn::NN_LEVEL {

// [row][first output on] of an optional bias and residual, added to n <= 32
// sums
template <class T>
struct Written {
    Rows<T> y;
    const T* bias;
    Rows<const T> residual;

    void operator()(int64_t row, int64_t at, const float* sums) const {
        const int64_t first = at * pair_rows, left = y.cols - first;
        registers(left < pair_rows ? left : pair_rows, [&](int64_t i, auto n) {
            Vec v = load(sums + i);
            if (bias) v += get(bias + first + i, n);
            if (residual.data) v += get(residual[row] + first + i, n);
            put(y[row] + first + i, n, v);
        });
    }
};

template <class T>
static bool packed_linear(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const auto data = bytes(call, 2);
    const Packed weight = {data.data, format_of(number(call, 0)), y.cols, x.cols};
    if (!weight.is(data.size)) return false;
    if (y.rows == 0 || y.cols == 0) return true;
    const auto residual = call.array[4].data ? rows<const T>(call, 4) : Rows<const T>{};
    packed_product(weight, x, Written<T>{y, flat<const T>(call, 3).data, residual});
    return true;
}
NN_KERNEL(
    "packed_linear(x[R,I], weight[W]:bytes, format, outputs:O; "
    "bias[O]=None, residual[R,O]=None) -> y[R,O]",
    packed_linear, float, bf16)

template <class T>
static bool packed_swiglu(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const auto data = bytes(call, 2);
    const int64_t panels = (y.cols + panel_rows - 1) / panel_rows;
    const Packed weight = {data.data, format_of(number(call, 0)), pair_rows * panels, x.cols};
    if (!weight.is(data.size)) return false;
    if (y.rows == 0 || y.cols == 0) return true;
    packed_product(weight, x, [&](int64_t row, int64_t at, const float* sums) {
        const int64_t first = at * panel_rows, left = y.cols - first;
        registers(left < panel_rows ? left : panel_rows, [&](int64_t i, auto n) {
            const Vec gate = load(sums + i), up = load(sums + panel_rows + i);
            put(y[row] + first + i, n, gate * sigmoid(gate) * up);
        });
    });
    return true;
}
NN_KERNEL("packed_swiglu(x[R,I], weight[W]:bytes, format, features:F) -> y[R,F]", packed_swiglu, float, bf16)

}  // namespace nn::NN_LEVEL
