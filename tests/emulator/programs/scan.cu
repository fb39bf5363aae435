// Inclusive prefix sum of each row of N values: Hillis and Steele, two buffers in shared memory.
#ifndef N
#define N 128
#endif

__global__ void block_scan(const int* x, int* out, int rows) {
    __shared__ int buffer[2][N];
    int row = blockIdx.x;
    int from = 0;
    buffer[from][threadIdx.x] = x[row * N + threadIdx.x];
    __syncthreads();
    for (int step = 1; step < N; step *= 2) {
        int value = buffer[from][threadIdx.x];
        if (threadIdx.x >= step) value += buffer[from][threadIdx.x - step];
        buffer[1 - from][threadIdx.x] = value;
        from = 1 - from;
        __syncthreads();
    }
    out[row * N + threadIdx.x] = buffer[from][threadIdx.x];
}
