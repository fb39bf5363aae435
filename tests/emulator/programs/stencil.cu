// Five-point weighted stencil over a line, weights in constant memory, with the halo in shared memory.
constexpr int THREADS = 128, RADIUS = 2;
__constant__ float weights[2 * RADIUS + 1] = {0.1f, 0.2f, 0.4f, 0.2f, 0.1f};

__global__ void stencil(float* y, const float* x, int n) {
    __shared__ float line[THREADS + 2 * RADIUS];
    int i = blockIdx.x * THREADS + threadIdx.x;
    int at = threadIdx.x + RADIUS;
    line[at] = i < n ? x[i] : 0;
    if (threadIdx.x < RADIUS) {
        line[at - RADIUS] = i >= RADIUS ? x[i - RADIUS] : 0;
        line[at + THREADS] = i + THREADS < n ? x[i + THREADS] : 0;
    }
    __syncthreads();
    if (i < n) {
        float sum = 0;
        for (int j = -RADIUS; j <= RADIUS; ++j) sum += weights[j + RADIUS] * line[at + j];
        y[i] = sum;
    }
}
