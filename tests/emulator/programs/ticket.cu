// Sum over all blocks in one launch: each block publishes its part, and the one that draws the last ticket adds them up.
constexpr int THREADS = 64;

__global__ void ticket_sum(float* out, float* partial, unsigned* tickets, const float* x, int n) {
    __shared__ float tree[THREADS];
    __shared__ bool last;
    float sum = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) sum += x[i];
    tree[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS; ++i) sum += tree[i];
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(tickets, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        __threadfence();
        float all = 0;
        for (int i = 0; i < gridDim.x; ++i) all += partial[i];
        *out = all;
        *tickets = 0;
    }
}
