// sgemm of the BLAS that NumPy carries, found by the Python side (nn/backends/native/blas.py) and given here
// by address.
//
// Never two pools at once: we call it from inside our own loops, one thread each, on tiles that the shape
// alone decides.  Its thread count is set to 1 while any of our calls is in it, and back afterwards; its
// workers then sleep.
#pragma once
#include <stdint.h>

namespace nn {

void set_blas(uintptr_t sgemm, uintptr_t get_threads, uintptr_t set_threads);
bool blas_is_there();
bool floats_on_tiles();  // unless NN_FLOAT32=blas: float32 products on AMX tiles, where there are some

// c[m,n] = a b (+ c), each operand by its own strides' order: transposed if its rows lie along the first
// axis.
void sgemm_one_thread(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                      int64_t lda, const float* b, int64_t ldb, bool add, float* c, int64_t ldc);

// While one lives, BLAS runs in the calling thread alone.  May be nested and shared by threads.
struct OneBlasThread {
    OneBlasThread();
    ~OneBlasThread();
    OneBlasThread(const OneBlasThread&) = delete;
};

}  // namespace nn
