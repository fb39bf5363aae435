// Kernels whose requests and bank conflicts are known by hand.
#include <mma.h>

__global__ void copy(float* y, const float* x) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i] + 1; }              // [copy]
__global__ void strided(float* y, const float* x, int step) { y[threadIdx.x] = x[threadIdx.x * step]; }                         // [strided]
__global__ void offset(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x + 1]; }                                       // [offset]
__global__ void broadcast(float* y, const float* x) { y[threadIdx.x] = x[0]; }                                                  // [broadcast]
__global__ void wide(float4* y, const float4* x) { y[threadIdx.x] = x[threadIdx.x]; }                                           // [wide]
__global__ void bytes(char* y, const char* x) { y[threadIdx.x] = x[threadIdx.x] + 1; }                                          // [bytes]
__global__ void row_sums(float* y, const float* x) {
    float sum = 0;
    for (int i = 0; i < 8; ++i) sum += x[threadIdx.x * 1024 + i];                                                               // [row sums]
    y[threadIdx.x] = sum;
}

// One value per lane at `stride` words; WIDTH: bytes of an access.
template <class T> __device__ void bank(T* y, int stride) {
    extern __shared__ __align__(16) char raw[];
    T* tile = (T*)raw;
    tile[threadIdx.x * stride] = T{};                                                                                           // [bank write]
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x * stride];                                                                                // [bank read]
}
__global__ void bank4(float* y, int stride) { bank(y, stride); }
__global__ void bank8(float2* y, int stride) { bank(y, stride); }
__global__ void bank16(float4* y, int stride) { bank(y, stride); }
__global__ void bank_broadcast(float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = 1;
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x / 8];                                                                                     // [bank broadcast]
}

template <int PAD> __device__ void transposed(float* y, const float* x) {
    __shared__ float tile[32][32 + PAD];
    for (int r = threadIdx.y; r < 32; r += 8) tile[r][threadIdx.x] = x[r * 32 + threadIdx.x];                                   // [tile in]
    __syncthreads();
    for (int r = threadIdx.y; r < 32; r += 8) y[r * 32 + threadIdx.x] = tile[threadIdx.x][r];                                   // [tile out]
}
__global__ void transpose_plain(float* y, const float* x) { transposed<0>(y, x); }
__global__ void transpose_padded(float* y, const float* x) { transposed<1>(y, x); }

// ldmatrix.x4 of 16 rows of `row` bytes.
__global__ void ldmatrix(unsigned* y, int row) {
    extern __shared__ __align__(16) char raw[];
    for (int i = threadIdx.x; i < 1024; i += 32) ((unsigned*)raw)[i] = 0;
    __syncwarp();
    unsigned at = (unsigned)__cvta_generic_to_shared(raw) + (threadIdx.x % 16) * row + threadIdx.x / 16 * 16, a, b, c, d;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at));  // [ldmatrix]
    y[threadIdx.x] = a + b + c + d;
}
// Half of the accumulator of m16n8k16 stored as 16-bit pairs: 16 bytes in each of 8 rows.
__global__ void store_fragment(unsigned* y, int columns) { y[threadIdx.x / 4 * columns + threadIdx.x % 4] = 1; }                // [fragment]

__global__ void diverging(float* y, const float* x) {
    float sum = 0;
    #pragma unroll 1
    for (int i = 0; i < threadIdx.x % 4; ++i) sum += x[i * 32 + threadIdx.x];                                                   // [diverging]
    y[threadIdx.x] = sum;
}
__global__ void realigned(float* y, const float* x) {
    float sum = 0;
    #pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        if (i == threadIdx.x % 4) sum += x[i * 32 + threadIdx.x];                                                               // [realigned]
        __syncwarp();
    }
    y[threadIdx.x] = sum;
}
__global__ void arithmetic(float* y, double* z, int n) {
    float a = y[threadIdx.x];
    double b = z[threadIdx.x];
    for (int i = 0; i < n; ++i) {
        a = fmaf(a, 1.5f, 2.0f);                                                                                                // [fma]
        b = b * 3.0;                                                                                                            // [double]
        __syncthreads();                                                                                                        // [barrier]
    }
    y[threadIdx.x] = a + __shfl_xor_sync(~0u, a, 1);                                                                            // [shuffle]
    z[threadIdx.x] = b;
}
__global__ void tensor(float* c, const half* a, const half* b) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, half, row_major> fa;
    fragment<matrix_b, 16, 16, 16, half, col_major> fb;
    fragment<accumulator, 16, 16, 16, float> fc;
    load_matrix_sync(fa, a, 16);
    load_matrix_sync(fb, b, 16);
    fill_fragment(fc, 0.0f);
    mma_sync(fc, fa, fb, fc);                                                                                                   // [tensor]
    store_matrix_sync(c, fc, 16, mem_row_major);
}
__global__ void bins(int* y) { atomicAdd(&y[threadIdx.x % 4], 1); }                                                             // [atomics]
__global__ void long_loop(float* y, const float* x, int n) {
    float sum = 0;
    #pragma unroll 1
    for (int i = 0; i < n; ++i) sum += x[i * 32 + threadIdx.x];                                                                 // [long loop]
    y[threadIdx.x] = sum;
}
