#include "core/blas.h"

#include <cstdlib>
#include <mutex>
#include <string_view>

namespace nn {
namespace {

// cblas_sgemm with 64-bit integers: order, transA, transB, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc
using Sgemm = void (*)(int, int, int, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                       int64_t, float, float*, int64_t);
Sgemm sgemm = nullptr;
int (*get_count)() = nullptr;
void (*set_count)(int) = nullptr;
std::mutex mutex;
int users = 0, before = 0;

}  // namespace

void set_blas(uintptr_t gemm, uintptr_t get, uintptr_t set) {
    sgemm = reinterpret_cast<Sgemm>(gemm);
    get_count = reinterpret_cast<int (*)()>(get);
    set_count = reinterpret_cast<void (*)(int)>(set);
}

bool blas_is_there() { return sgemm && get_count && set_count; }

bool floats_on_tiles() {
    static const bool allowed = [] {
        const char* wanted = std::getenv("NN_FLOAT32");
        return !wanted || std::string_view(wanted) != "blas";
    }();
    return allowed;
}

void sgemm_one_thread(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                      int64_t lda, const float* b, int64_t ldb, bool add, float* c, int64_t ldc) {
    constexpr int row_major = 101, plain = 111, transposed = 112;
    sgemm(row_major, transpose_a ? transposed : plain, transpose_b ? transposed : plain, m, n, k, 1.0f, a,
          lda, b, ldb, add ? 1.0f : 0.0f, c, ldc);
}

OneBlasThread::OneBlasThread() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (users++ == 0) {
        before = get_count();
        if (before != 1) set_count(1);
    }
}

OneBlasThread::~OneBlasThread() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--users == 0 && before != 1) set_count(before);
}

}  // namespace nn
