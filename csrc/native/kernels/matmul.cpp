// Matrix products: gemm/matrix.h.  Few rows times a weight, in either type: gemv.h.
#include "kernels/gemm/matrix.h"
#include "kernels/gemv.h"

namespace nn::NN_LEVEL {

template <class T>
static bool linear(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1), weight = rows<const T>(call, 2);
    const auto bias = flat<const T>(call, 3);
    if (x.rows <= gemv_rows) {
        gemv(y, x, weight, bias.data);
        return true;
    }
    return product(y.data, y.stride, plain(x), transposed(weight), x.rows, weight.rows, x.cols, bias.data);
}
NN_KERNEL("linear(x[R,I], weight[O,I]; bias[O]=None) -> y[R,O]", linear, float, bf16)

template <class T>
static bool linear_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dweight = rows<float>(call, 1);
    const auto dy = rows<const T>(call, 2), x = rows<const T>(call, 3), weight = rows<const T>(call, 4);
    const int64_t rows_here = x.rows, in = x.cols, out = dy.cols;
    return can_multiply(transposed(dy), plain(x), out, in, rows_here) &&
           product(dx.data, dx.stride, plain(dy), plain(weight), rows_here, in, out) &&
           product(dweight.data, dweight.stride, transposed(dy), plain(x), out, in, rows_here);
}
NN_KERNEL("linear_backward(dy[R,O], x[R,I], weight[O,I]) -> dx[R,I], dweight[O,I]:float", linear_backward,
          float, bf16)

// Many small products run side by side, one thread each; few large ones one after the other, on all threads.
template <class T>
static bool matmul(const Call& call) {
    const Array &y = call.array[0], &a = call.array[1], &b = call.array[2];
    const int64_t lead = y.shape[0], m = y.shape[1], n = y.shape[2], k = a.shape[2];
    const auto one = [&](int64_t i) {
        return product(static_cast<T*>(y.data) + i * y.stride[0], y.stride[1],
                       Matrix<T>{static_cast<const T*>(a.data) + i * a.stride[0], a.stride[1], 1},
                       Matrix<T>{static_cast<const T*>(b.data) + i * b.stride[0], b.stride[1], 1}, m, n, k);
    };
    if (lead == 0) return true;
    if (!one(0)) return false;
    const double bytes = (double)m * (double)n * (double)k / 4;
    if (bytes > 32 * bytes_alone) {
        for (int64_t i = 1; i < lead; ++i) one(i);
    } else {
        parallel_for(lead - 1, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) one(i + 1);
        });
    }
    return true;
}
NN_KERNEL("matmul(a[...,I,J], b[...,J,O]) -> y[...,I,O]", matmul, float, bf16)

}  // namespace nn::NN_LEVEL
