// C = A B + C with nvcuda::wmma, half in and float out, row major; one warp makes 16x16 of C.
#include <mma.h>

using namespace nvcuda;

__global__ void wmma_gemm(float* c, const half* a, const half* b, int n, int k) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    c += blockIdx.y * 16 * n + blockIdx.x * 16;
    wmma::load_matrix_sync(sum, c, n, wmma::mem_row_major);
    for (int at = 0; at < k; at += 16) {
        wmma::load_matrix_sync(left, a + blockIdx.y * 16 * k + at, k);
        wmma::load_matrix_sync(right, b + at * n + blockIdx.x * 16, n);
        wmma::mma_sync(sum, left, right, sum);
    }
    wmma::store_matrix_sync(c, sum, n, wmma::mem_row_major);
}
