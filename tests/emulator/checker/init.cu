// Reads of memory that nothing has written.
__global__ void shared_filled(int* y) {
    __shared__ int tile[64];
    for (int i = threadIdx.x; i < 64; i += 32) tile[i] = i;
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void shared_edge(int* y, int n) {
    __shared__ int tile[64];
    if (threadIdx.x < n) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];                          // [edge read]
}
__global__ void shared_bins(int* y, const int* x) {
    __shared__ int bins[4];
    atomicAdd(&bins[x[threadIdx.x] & 3], 1);                          // [bins]
    __syncthreads();
    if (threadIdx.x < 4) y[threadIdx.x] = bins[threadIdx.x];
}
__global__ void shared_exchange(int* y) { __shared__ int slot; int old = atomicExch(&slot, 1); y[threadIdx.x] = old != 12345; }
__global__ void shared_half(int* y) {
    __shared__ short tile[64];
    if (threadIdx.x % 2 == 0) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = *(int*)&tile[threadIdx.x & ~1];                  // [half read]
}
// Each block must fill its own: what an earlier block left does not count.
__global__ void shared_other_block(int* y) {
    __shared__ int tile[32];
    if (blockIdx.x == 0) tile[threadIdx.x] = 1;
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];             // [other block]
}
__global__ void read_global(int* y, const int* x) { y[threadIdx.x] = x[threadIdx.x]; }       // [global read]
__global__ void fill(int* x, int n) { if (threadIdx.x < n) x[threadIdx.x] = 1; }
