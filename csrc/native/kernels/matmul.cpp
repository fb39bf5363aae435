// Matrix products.
// float32: NumPy's BLAS, one thread each, on tiles that the shape alone decides; without one they are left to
// the reference, which multiplies with NumPy.  bfloat16: gemm_bf16.h.  Few rows, in either type: gemv.h.
#include "core/blas.h"
#include "kernels/gemm_bf16.h"
#include "kernels/gemv.h"

namespace nn::NN_LEVEL {

// c[m,n] = a b; an operand is [rows, cols] by strides, one of which is 1.
template <class T>
struct Matrix {
    const T* data;
    int64_t row, col;
};

static inline bool blas_takes(const Matrix<float>& a, int64_t rows_here, int64_t cols) {
    return a.col == 1 ? a.row >= cols || rows_here <= 1 : a.row == 1 && (a.col >= rows_here || cols <= 1);
}

static inline int64_t leading(const Matrix<float>& a, int64_t rows_here, int64_t cols) {
    const int64_t stride = a.col == 1 ? a.row : a.col, least = a.col == 1 ? cols : rows_here;
    return stride > least ? stride : (least > 0 ? least : 1);
}

static inline bool product(float* c, int64_t ldc, const Matrix<float>& a, const Matrix<float>& b, int64_t m,
                           int64_t n, int64_t k) {
    if (!blas_is_there() || !blas_takes(a, m, k) || !blas_takes(b, k, n)) return false;
    if (m == 0 || n == 0) return true;
    // Split along the longer side alone, since BLAS packs the other operand anew for every piece.
    const int64_t longer = m > n ? m : n;
    const int64_t quarter = (longer / 4 + 63) / 64 * 64;
    const int64_t piece = quarter < 128 ? 128 : (quarter > 1024 ? 1024 : quarter);
    const int64_t lda = leading(a, m, k), ldb = leading(b, k, n);
    const OneBlasThread alone;
    parallel_for(panels(longer, (int)piece), (double)(m * n / longer * piece) * (double)k / 4,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t part = begin; part < end; ++part) {
                         const int64_t first = part * piece,
                                       here = longer - first < piece ? longer - first : piece;
                         const int64_t top = m > n ? first : 0, left = m > n ? 0 : first;
                         sgemm_one_thread(a.col != 1, b.col != 1, m > n ? here : m, m > n ? n : here, k,
                                          a.data + top * a.row, lda, b.data + left * b.col, ldb, false,
                                          c + top * ldc + left, ldc);
                     }
                 });
    return true;
}

template <class Out>
static inline bool product(Out* c, int64_t ldc, const Matrix<bf16>& a, const Matrix<bf16>& b, int64_t m,
                           int64_t n, int64_t k) {
    gemm_bf16(c, ldc, Operand{a.data, a.row, a.col}, Operand{b.data, b.col, b.row}, m, n, k);
    return true;
}

template <class T>
static inline Matrix<T> plain(const Rows<const T>& x) {
    return {x.data, x.stride, 1};
}
template <class T>
static inline Matrix<T> transposed(const Rows<const T>& x) {
    return {x.data, 1, x.stride};
}

static inline bool many_rows(const Rows<float>& y, const Rows<const float>& x,
                             const Rows<const float>& weight, const float* bias) {
    if (!product(y.data, y.stride, plain(x), transposed(weight), x.rows, weight.rows, x.cols)) return false;
    if (bias)
        parallel_for(y.rows, (double)y.cols * 8, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                registers(y.cols,
                          [&](int64_t i, auto n) { put(y[r] + i, n, get(y[r] + i, n) + get(bias + i, n)); });
        });
    return true;
}

static inline bool many_rows(const Rows<bf16>& y, const Rows<const bf16>& x, const Rows<const bf16>& weight,
                             const bf16* bias) {
    gemm_bf16(y.data, y.stride, Operand{x.data, x.stride, 1}, Operand{weight.data, weight.stride, 1}, x.rows,
              weight.rows, x.cols, bias);
    return true;
}

template <class T>
static bool linear(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1), weight = rows<const T>(call, 2);
    const auto bias = flat<const T>(call, 3);
    if (x.rows <= gemv_rows) {
        gemv(y, x, weight, bias.data);
        return true;
    }
    return many_rows(y, x, weight, bias.data);
}
NN_KERNEL("linear(x[R,I], weight[O,I]; bias[O]=None) -> y[R,O]", linear, float, bf16)

template <class T>
static bool linear_backward(const Call& call) {
    const auto dx = rows<T>(call, 0);
    const auto dweight = rows<float>(call, 1);
    const auto dy = rows<const T>(call, 2), x = rows<const T>(call, 3), weight = rows<const T>(call, 4);
    return product(dx.data, dx.stride, plain(dy), plain(weight), dy.rows, weight.cols, dy.cols) &&
           product(dweight.data, dweight.stride, transposed(dy), plain(x), dy.cols, x.cols, dy.rows);
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
