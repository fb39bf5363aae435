// c = a b (+ bias) (+ c) of matrices as they lie in memory, on all threads, or in the calling one inside a loop.
//
// bfloat16: panels (product.h), results rounded once or in float32.  float32: on tiles (AMX) where the
// processor has them and NN_FLOAT32=blas does not forbid it; otherwise NumPy's BLAS, one thread each, on pieces
// that the shape alone decides.  Without a BLAS float32 is left to the reference, which multiplies with NumPy.
#pragma once
#include "core/blas.h"
#include "kernels/gemm/product.h"

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

template <class T>
static inline Operand<T> left(const Matrix<T>& a) {
    return {a.data, a.row, a.col};
}
template <class T>
static inline Operand<T> right(const Matrix<T>& b) {
    return {b.data, b.col, b.row};
}

// c[rows, cols] += bias, from its column `left` on
static inline void add_bias(float* c, int64_t ldc, const float* bias, int64_t left, int64_t rows_here,
                            int64_t cols_here) {
    for (int64_t r = 0; bias && r < rows_here; ++r)
        registers(cols_here, [&](int64_t i, auto n) {
            put(c + r * ldc + i, n, get(c + r * ldc + i, n) + get(bias + left + i, n));
        });
}

// Of the longer side, which alone is cut: BLAS packs the other operand anew for every piece, so pieces are
// few and long, an even number of them.
static inline int64_t blas_piece(int64_t longer) {
    constexpr int64_t longest = 1536, step = 64;
    const int64_t count = 2 * panels(longer, 2 * longest), even = panels(panels(longer, count), step) * step;
    return even < 2 * step ? 2 * step : even;
}

static inline void by_blas(float* c, int64_t ldc, const Matrix<float>& a, const Matrix<float>& b, int64_t m,
                           int64_t n, int64_t k, const float* bias, bool add) {
    const int64_t longer = m > n ? m : n, piece = blas_piece(longer);
    const int64_t lda = leading(a, m, k), ldb = leading(b, k, n);
    const OneBlasThread alone;
    parallel_for(panels(longer, (int)piece), (double)(m * n / longer * piece) * (double)k / 4,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t part = begin; part < end; ++part) {
                         const int64_t first = part * piece,
                                       here = longer - first < piece ? longer - first : piece;
                         const int64_t top = m > n ? first : 0, left = m > n ? 0 : first;
                         const int64_t rows_here = m > n ? here : m, cols_here = m > n ? n : here;
                         sgemm_one_thread(a.col != 1, b.col != 1, rows_here, cols_here, k,
                                          a.data + top * a.row, lda, b.data + left * b.col, ldb, add,
                                          c + top * ldc + left, ldc);
                         add_bias(c + top * ldc + left, ldc, bias, left, rows_here, cols_here);
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

// c[m,n] = a b (+ bias[n]) (+ c); false, before anything is written, if it cannot.
static inline bool product(float* c, int64_t ldc, const Matrix<float>& a, const Matrix<float>& b, int64_t m,
                           int64_t n, int64_t k, const float* bias = nullptr, bool add = false) {
    if (!can_multiply(a, b, m, n, k)) return false;
    if (m == 0 || n == 0) return true;
#if defined(__AMX_BF16__)
    constexpr int64_t few = 24;  // below it a good part of the tiles would be padding
    if (m >= few && n >= few && k >= few && floats_on_tiles()) {
        multiply(Product<float, float>{c, ldc, left(a), right(b), m, n, k, bias, add});
        return true;
    }
#endif
    by_blas(c, ldc, a, b, m, n, k, bias, add);
    return true;
}

static inline bool product(float* c, int64_t ldc, const Matrix<bf16>& a, const Matrix<bf16>& b, int64_t m,
                           int64_t n, int64_t k, const bf16* bias = nullptr, bool add = false) {
    multiply(Product<bf16, float>{c, ldc, left(a), right(b), m, n, k, bias, add});
    return true;
}

static inline bool product(bf16* c, int64_t ldc, const Matrix<bf16>& a, const Matrix<bf16>& b, int64_t m,
                           int64_t n, int64_t k, const bf16* bias = nullptr) {
    multiply(Product<bf16, bf16>{c, ldc, left(a), right(b), m, n, k, bias});
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
