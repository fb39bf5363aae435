// Copies in flight.
#include <cuda_pipeline.h>

template <int waits, bool synchronises> __device__ void staged(int* y, const int* x) {
    __shared__ __align__(16) int tile[2][64];
    int at = 4 * threadIdx.x;
    __pipeline_memcpy_async(&tile[0][at], x + at, 16);
    __pipeline_commit();
    __pipeline_memcpy_async(&tile[1][at], x + 64 + at, 16);           // [second copy]
    __pipeline_commit();
    __pipeline_wait_prior(waits);
    if (synchronises) __syncthreads();
    int sum = 0;
    for (int k = 0; k < 4; ++k) sum += tile[waits == 1 ? 0 : 1][(at + 4 + k) % 64];          // [copied read]
    y[threadIdx.x] = sum;
}
__global__ void copy_ok(int* y, const int* x) { staged<0, true>(y, x); }
__global__ void copy_first_ok(int* y, const int* x) { staged<1, true>(y, x); __pipeline_wait_prior(0); }
__global__ void copy_not_waited(int* y, const int* x) { staged<2, true>(y, x); __pipeline_wait_prior(0); }
__global__ void copy_no_barrier(int* y, const int* x) { staged<0, false>(y, x); }

__global__ void copy_overwritten(int* y, const int* x) {
    __shared__ __align__(16) int tile[64];
    __pipeline_memcpy_async(&tile[4 * threadIdx.x], x + 4 * threadIdx.x, 16);                // [overwritten copy]
    __pipeline_commit();
    tile[4 * threadIdx.x] = 0;                                        // [overwriting]
    __pipeline_wait_prior(0);
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
__global__ void copy_reuse(int* y, const int* x) {
    __shared__ __align__(16) int tile[64];
    int sum = 0;
    for (int i = 0; i < 2; ++i) {
        __pipeline_memcpy_async(&tile[4 * threadIdx.x], x + 64 * i + 4 * threadIdx.x, 16);   // [reusing copy]
        __pipeline_commit();
        __pipeline_wait_prior(0);
        __syncthreads();
        sum += tile[63 - threadIdx.x];                                // [reused read]
    }
    y[threadIdx.x] = sum;
}
