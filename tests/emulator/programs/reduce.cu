// Sum of n floats: a strided partial sum per thread, a tree in shared memory, the last warp by shuffles; one partial result per block.
constexpr int THREADS = 256;

__global__ void block_sum(float* partial, const float* x, int n) {
    __shared__ float tree[THREADS];
    float sum = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) sum += x[i];
    tree[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half >= 32; half /= 2) {
        if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        float value = tree[threadIdx.x];
        for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
        if (threadIdx.x == 0) partial[blockIdx.x] = value;
    }
}
