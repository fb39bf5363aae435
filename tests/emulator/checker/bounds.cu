// Accesses outside of what was declared or allocated.  Every broken kernel has one marked line.
struct alignas(16) Four { float v[4]; };
__constant__ int table[8];
__device__ int counter[4];
extern __shared__ int dynamic[];

__global__ void static_end(int* y, int i) { __shared__ volatile int tile[1024]; __shared__ int after[4]; after[threadIdx.x] = 0; tile[i] = 1; y[0] = tile[i] + after[0]; }   // [static end]
__global__ void static_read(int* y, int i) { __shared__ int tile[64]; tile[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = tile[threadIdx.x + i]; }              // [static read]
__global__ void dynamic_end(int* y, int i) { dynamic[i] = 1; y[0] = dynamic[i]; }                                           // [dynamic end]
__global__ void global_end(int* y, int n) { y[blockIdx.x * blockDim.x + threadIdx.x] = n; }                                 // [global end]
__global__ void global_before(int* y, int i) { y[-i] = 1; }                                                                 // [global before]
__global__ void global_wide(float* y, int i) { *(Four*)(y + i) = Four{1, 2, 3, 4}; }                                        // [global wide]
__global__ void variable_end(int* y, int i) { counter[i] = 1; y[0] = counter[i]; }                                          // [variable end]
__global__ void constant_end(int* y, int i) { y[0] = table[i]; }                                                            // [constant end]
__global__ void local_end(int* y, int i) {
    volatile int own[16];
    for (int k = 0; k < 16; ++k) own[k] = k;
    y[0] = own[i];                                                                                                          // [local end]
}
__global__ void through(int* p) { *p = 1; }                                                                                 // [through]
__global__ void misaligned(float* y, int i) { *(Four*)(y + i) = Four{1, 2, 3, 4}; }                                         // [misaligned]
__global__ void misaligned_shared(int* y, int i) { __shared__ int tile[8]; *(long long*)(tile + i) = 5; y[0] = tile[2]; }   // [misaligned shared]
__global__ void two_outputs(int* y, int* z, int i) { z[0] = 1; y[i] = 2; }                                                  // [two outputs]
