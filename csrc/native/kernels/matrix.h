// c = a b of matrices in memory, in either type: by BLAS, or on packed panels (gemm_bf16.h).
#pragma once
#include "core/blas.h"
#include "kernels/gemm_bf16.h"

namespace nn::NN_LEVEL {

// An operand [rows, cols] by strides, one of which is 1.
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

static inline void by_blas(float* c, int64_t ldc, const Matrix<float>& a, const Matrix<float>& b, int64_t m,
                           int64_t n, int64_t k, bool add) {
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
                                          a.data + top * a.row, lda, b.data + left * b.col, ldb, add,
                                          c + top * ldc + left, ldc);
                     }
                 });
}

static inline bool can_multiply(const Matrix<float>& a, const Matrix<float>& b, int64_t m, int64_t n,
                                int64_t k) {
    return blas_is_there() && blas_takes(a, m, k) && blas_takes(b, k, n);
}
static inline bool can_multiply(const Matrix<bf16>&, const Matrix<bf16>&, int64_t, int64_t, int64_t) {
    return true;
}

// c[m,n] = a b (+ c); false, before anything is written, if it cannot.
static inline bool product(float* c, int64_t ldc, const Matrix<float>& a, const Matrix<float>& b, int64_t m,
                           int64_t n, int64_t k, bool add = false) {
    if (!can_multiply(a, b, m, n, k)) return false;
    if (m == 0 || n == 0) return true;
    by_blas(c, ldc, a, b, m, n, k, add);
    return true;
}

template <class Out>
static inline bool product(Out* c, int64_t ldc, const Matrix<bf16>& a, const Matrix<bf16>& b, int64_t m,
                           int64_t n, int64_t k, bool add = false) {
    gemm_bf16(c, ldc, Operand{a.data, a.row, a.col}, Operand{b.data, b.col, b.row}, m, n, k, nullptr, add);
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

}  // namespace nn::NN_LEVEL
