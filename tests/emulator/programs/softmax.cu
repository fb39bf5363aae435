// Softmax of each row: one block per row, the maximum and the sum reduced by warps and then across them.
constexpr int THREADS = 128;

template <bool MAXIMUM>
__device__ float combine(float a, float b) { return MAXIMUM ? fmaxf(a, b) : a + b; }

template <bool MAXIMUM>
__device__ float reduce_block(float value, float* scratch) {
    for (int step = 16; step > 0; step /= 2)
        value = combine<MAXIMUM>(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (int warp = 1; warp < THREADS / 32; ++warp) value = combine<MAXIMUM>(value, scratch[warp]);
    __syncthreads();
    return value;
}

__global__ void softmax(float* y, const float* x, int cols) {
    __shared__ float scratch[THREADS / 32];
    x += (long long)blockIdx.x * cols;
    y += (long long)blockIdx.x * cols;
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += THREADS) largest = fmaxf(largest, x[i]);
    largest = reduce_block<true>(largest, scratch);
    float sum = 0;
    for (int i = threadIdx.x; i < cols; i += THREADS) sum += expf(x[i] - largest);
    sum = reduce_block<false>(sum, scratch);
    for (int i = threadIdx.x; i < cols; i += THREADS) y[i] = expf(x[i] - largest) / sum;
}
