// What a warp does among itself: a transposition through shared memory, compaction by ballots, aggregated counting by match.
__global__ void transpose_in_warp(int* y, const int* x) {
    __shared__ int tile[4][8][4];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    tile[warp][lane / 4][lane % 4] = x[blockIdx.x * 128 + threadIdx.x];
    __syncwarp();
    y[blockIdx.x * 128 + threadIdx.x] = tile[warp][lane % 8][lane / 8];
}

__global__ void keep_positive(int* y, int* count, const int* x) {
    int lane = threadIdx.x;
    int value = x[blockIdx.x * 32 + lane];
    unsigned kept = __ballot_sync(0xffffffffu, value > 0);
    if (value > 0) y[blockIdx.x * 32 + __popc(kept & ((1u << lane) - 1))] = value;
    if (lane == 0) count[blockIdx.x] = __popc(kept);
}

__global__ void count_keys(unsigned* bins, const unsigned* keys, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned active = __ballot_sync(0xffffffffu, i < n);
    if (i < n) {
        unsigned same = __match_any_sync(active, keys[i]);
        if (__ffs(same) - 1 == threadIdx.x % 32) atomicAdd(&bins[keys[i]], (unsigned)__popc(same));
    }
}

__global__ void half_warp_sum(int* y, const int* x) {
    int lane = threadIdx.x % 32;
    int value = x[threadIdx.x];
    if (lane < 16) {
        for (int step = 8; step > 0; step /= 2) value += __shfl_down_sync(0x0000ffffu, value, step, 16);
        if (lane == 0) y[threadIdx.x / 32] = value;
    }
}
