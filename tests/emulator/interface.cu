// Small kernels for the tests of the Python interface: how arguments arrive, and what goes wrong.
#ifndef SCALE
#define SCALE 2
#endif

struct Pair {
    float factor;
    int offset;
};

__device__ float bias[4];

__global__ void scale(float* out, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = SCALE * x[i];
}

__global__ void affine(float* out, Pair pair, unsigned char shift, double exact, long long whole) {
    out[threadIdx.x] = pair.factor * threadIdx.x + pair.offset + shift + float(exact) + float(whole);
}

__global__ void add_bias(float* out) { out[threadIdx.x] += bias[threadIdx.x]; }

template <int N, class T>
__global__ void fill(T* out) {
    if (threadIdx.x < N) out[threadIdx.x] = T(N);
}
template __global__ void fill<2, float>(float*);
template __global__ void fill<3, float>(float*);
template __global__ void fill<3, int>(int*);

namespace first {
__global__ void twin(int* out) { *out = 1; }
}
namespace second {
__global__ void twin(int* out) { *out = 2; }
}

__global__ void order(int* out, int* next) { out[atomicAdd(next, 1)] = blockIdx.x * 100 + threadIdx.x; }

__global__ void dynamic(int* out) {
    extern __shared__ int words[];
    words[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = words[blockDim.x - 1 - threadIdx.x];
}

__global__ void neighbour(int* out) {
    __shared__ int words[64];
    words[threadIdx.x] = threadIdx.x;
    __syncthreads();
    int next = words[(threadIdx.x + 1) % 64];
    words[threadIdx.x] = next;                             // a race: no barrier between
    out[threadIdx.x] = next;
}

__global__ void endless(volatile int* flag) {
    while (*flag == 0) {}
}

__global__ void __launch_bounds__(128) spread(float* out, const float* x, int n) {
    float kept[24];
    for (int i = 0; i < 24; ++i) kept[i] = x[(i * 37 + threadIdx.x) % n];
    for (int i = 0; i < 24; ++i) out[threadIdx.x * 24 + i] = kept[i] * kept[23 - i];
}
