// Histogram of bytes: counted in shared memory by each block, added to the global bins at the end.
constexpr int BINS = 256;

__global__ void histogram(unsigned* bins, const unsigned char* data, int n) {
    __shared__ unsigned local[BINS];
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) local[bin] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[data[i]], 1u);
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        if (local[bin] != 0) atomicAdd(&bins[bin], local[bin]);
}
