// Warp specialisation: one warp loads chunks into two buffers, another squares and stores them; named barriers pass the buffers on.
constexpr int CHUNK = 32;

__device__ void wait_for(int barrier) { asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory"); }
__device__ void signal(int barrier) { asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory"); }

__global__ void square(float* y, const float* x, int chunks) {
    __shared__ float buffer[2][CHUNK];
    constexpr int FULL = 1, EMPTY = 3;
    int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int i = 0; i < chunks; ++i) {
            if (i >= 2) wait_for(EMPTY + i % 2);
            buffer[i % 2][lane] = x[i * CHUNK + lane];
            signal(FULL + i % 2);
        }
    } else {
        for (int i = 0; i < chunks; ++i) {
            wait_for(FULL + i % 2);
            float value = buffer[i % 2][lane];
            y[i * CHUNK + lane] = value * value;
            if (i + 2 < chunks) signal(EMPTY + i % 2);
        }
    }
}
