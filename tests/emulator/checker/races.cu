// Races within a block: pairs of a correct kernel and a broken one.  [name] marks the lines that tests look up.
#include <cuda/barrier>

// ---- barriers of the block
__global__ void reversed_ok(int* y, const int* x) {
    __shared__ int tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void reversed_bad(int* y, const int* x) {
    __shared__ int tile[64];
    tile[threadIdx.x] = x[threadIdx.x];                               // [reversed write]
    y[threadIdx.x] = tile[63 - threadIdx.x];                          // [reversed read]
}

// ---- a buffer used again
template <bool second_barrier> __device__ void rounds(int* y, const int* x) {
    __shared__ int tile[64];
    int sum = 0;
    for (int i = 0; i < 3; ++i) {
        tile[threadIdx.x] = x[i * 64 + threadIdx.x];                  // [reuse write]
        __syncthreads();
        sum += tile[63 - threadIdx.x];                                // [reuse read]
        if (second_barrier) __syncthreads();
    }
    y[threadIdx.x] = sum;
}
__global__ void reuse_ok(int* y, const int* x) { rounds<true>(y, x); }
__global__ void reuse_bad(int* y, const int* x) { rounds<false>(y, x); }

// ---- lanes of a warp: __syncwarp and its mask; shuffles order nothing
template <int how> __device__ void neighbours(int* y, const int* x) {
    __shared__ int tile[32];
    int lane = threadIdx.x;
    tile[lane] = x[lane];                                             // [lane write]
    if (how == 0) __syncwarp();
    if (how == 1) __shfl_sync(~0u, lane, 0);
    if (how == 2) __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
    y[lane] = tile[how == 2 ? lane ^ 8 : lane ^ 16];                  // [lane read]
}
__global__ void lanes_ok(int* y, const int* x) { neighbours<0>(y, x); }
__global__ void lanes_shuffled(int* y, const int* x) { neighbours<1>(y, x); }
__global__ void lanes_half_ok(int* y, const int* x) { neighbours<2>(y, x); }
__global__ void lanes_half_bad(int* y, const int* x) {
    __shared__ int tile[32];
    int lane = threadIdx.x;
    tile[lane] = x[lane];                                             // [half write]
    __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
    y[lane] = tile[lane ^ 16];                                        // [half read]
}

// ---- a chain of half-warp syncs: 0-15, then 8-23, then 16-31
__global__ void lanes_chain(int* y, const int* x) {
    __shared__ int value;
    int lane = threadIdx.x;
    if (lane == 0) value = x[7];                                        // [chain write]
    if (lane < 16) __syncwarp(0x0000ffffu);
    if (lane >= 8 && lane < 24) __syncwarp(0x00ffff00u);
    if (lane >= 16) __syncwarp(0xffff0000u);
    y[lane] = lane == 0 || lane >= 24 ? value : 0;
}
__global__ void lanes_chain_bad(int* y, const int* x) {
    __shared__ int value;
    int lane = threadIdx.x;
    if (lane == 0) value = x[7];                                        // [broken chain write]
    if (lane >= 8 && lane < 24) __syncwarp(0x00ffff00u);
    if (lane >= 16) __syncwarp(0xffff0000u);
    y[lane] = lane >= 24 ? value : 0;                                 // [broken chain read]
}

// ---- bytes of one word
__global__ void bytes_ok(char* y) {
    __shared__ char tile[64];
    __shared__ short pairs[64];
    tile[threadIdx.x] = threadIdx.x;
    pairs[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = tile[threadIdx.x] + pairs[threadIdx.x];
}
__global__ void bytes_bad(char* y) {
    __shared__ char tile[68];
    tile[threadIdx.x] = 1;                                            // [byte write]
    *(volatile char*)&tile[64 + threadIdx.x % 4] = 1;
    if (threadIdx.x < 63) y[threadIdx.x] = tile[threadIdx.x + 1];     // [byte read]
}

// ---- several writers
__global__ void same_place(int* y) { __shared__ int one; one = threadIdx.x; __syncthreads(); y[threadIdx.x] = one; }   // [same place]
__global__ void atomics_ok(int* y) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);
    __syncthreads();
    y[threadIdx.x] = sum;
}
__global__ void atomics_bad(int* y) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);                                               // [atomic]
    y[threadIdx.x] = sum;                                             // [plain beside atomic]
}

// ---- flags within the block
template <bool fenced> __device__ void hand_over(int* y, volatile int* flag) {
    __shared__ int value;
    if (threadIdx.x == 0) {
        value = flag[1];                                              // [flag data write]
        if (fenced) __threadfence_block();
        *flag = 1;
    } else if (threadIdx.x == 32) {
        while (*flag == 0) {}
        __threadfence_block();
        *y = value;                                                   // [flag data read]
    }
}
__global__ void flag_ok(int* y, int* flag) { hand_over<true>(y, flag); }
__global__ void flag_bad(int* y, int* flag) { hand_over<false>(y, flag); }
__global__ void flag_shared_ok(int* y) {
    __shared__ int flag[2];
    if (threadIdx.x == 0) flag[0] = flag[1] = 0;
    __syncthreads();
    hand_over<true>(y, flag);
}
__global__ void lock_ok(int* y) {
    __shared__ int lock, sum;
    if (threadIdx.x == 0) lock = sum = 0;
    __syncthreads();
    for (bool done = false; !done;) {
        if (atomicCAS(&lock, 0, 1) == 0) {
            __threadfence_block();
            sum += 1;
            __threadfence_block();
            atomicExch(&lock, 0);
            done = true;
        }
    }
    __syncthreads();
    y[threadIdx.x] = sum;
}
__global__ void lock_bad(int* y) {
    __shared__ int lock, sum;
    if (threadIdx.x == 0) lock = sum = 0;
    __syncthreads();
    for (bool done = false; !done;) {
        if (atomicCAS(&lock, 0, 1) == 0) {
            sum += 1;                                                 // [unfenced lock]
            atomicExch(&lock, 0);
            done = true;
        }
    }
    __syncthreads();
    y[threadIdx.x] = sum;
}

// ---- named barriers
template <bool waits> __device__ void named(int* y, const int* x) {
    __shared__ int buffer[32];
    if (threadIdx.x < 32) {
        buffer[threadIdx.x] = x[threadIdx.x];                         // [named write]
        asm volatile("bar.arrive 1, 64;" ::: "memory");
    } else if (threadIdx.x < 64) {
        if (waits) asm volatile("bar.sync 1, 64;" ::: "memory");
        y[threadIdx.x] = buffer[63 - threadIdx.x];                    // [named read]
        if (!waits) asm volatile("bar.sync 1, 64;" ::: "memory");
    }
}
__global__ void named_ok(int* y, const int* x) { named<true>(y, x); }
__global__ void named_bad(int* y, const int* x) { named<false>(y, x); }
__global__ void named_third(int* y, const int* x) {                   // the third warp is not in the barrier
    __shared__ int buffer[32];
    if (threadIdx.x < 32) buffer[threadIdx.x] = x[threadIdx.x];       // [third write]
    if (threadIdx.x < 64) asm volatile("bar.sync 1, 64;" ::: "memory");
    if (threadIdx.x >= 32) y[threadIdx.x] = buffer[threadIdx.x % 32]; // [third read]
}

// ---- threads that leave before the barrier
__global__ void leavers_ok(int* y, const int* x) {
    __shared__ int tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x >= 48) return;
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// ---- mbarriers
template <bool waits> __device__ void pass_on(int* y, const int* x) {
    __shared__ cuda::barrier<cuda::thread_scope_block> ready;
    __shared__ int tile[32];
    if (threadIdx.x == 0) init(&ready, 64);
    __syncthreads();
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = x[threadIdx.x];                           // [mbarrier write]
        (void)ready.arrive();
    } else {
        auto token = ready.arrive();
        if (waits) ready.wait(std::move(token));
        y[threadIdx.x] = tile[threadIdx.x - 32];                      // [mbarrier read]
    }
}
__global__ void mbarrier_ok(int* y, const int* x) { pass_on<true>(y, x); }
__global__ void mbarrier_bad(int* y, const int* x) { pass_on<false>(y, x); }
