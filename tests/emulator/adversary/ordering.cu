// What orders memory beyond a barrier: flags, locks, tickets, scopes.
// Kernels named *_bad have one thing wrong.
// All take (out, zero, in): 4096 ints each; `zero` is cleared, in[i] = i.
#include <cuda/atomic>

using BlockRef = cuda::atomic_ref<int, cuda::thread_scope_block>;
using DeviceRef = cuda::atomic_ref<int, cuda::thread_scope_device>;

// ---- release and acquire by cuda::atomic_ref, between blocks
template <class Store, class Load, bool relaxed_store = false>
__device__ void message(int* out, int* zero, const int* in) {
    int* data = zero + 64;
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            *data = in[42];                                                       // [message write]
            Store(zero[0]).store(1, relaxed_store ? cuda::memory_order_relaxed    // [message flag store]
                                                  : cuda::memory_order_release);
        }
    } else if (threadIdx.x == 0) {
        while (Load(zero[0]).load(cuda::memory_order_acquire) == 0) {}               // [message flag load]
        out[0] = *data;                                                           // [message read]
    }
}
__global__ void message_ok(int* out, int* zero, const int* in) {
    message<DeviceRef, DeviceRef>(out, zero, in);
}
__global__ void message_block_release_bad(int* out, int* zero, const int* in) {
    message<BlockRef, DeviceRef>(out, zero, in);
}
__global__ void message_block_acquire_bad(int* out, int* zero, const int* in) {
    message<DeviceRef, BlockRef>(out, zero, in);
}
__global__ void message_relaxed_bad(int* out, int* zero, const int* in) {
    message<DeviceRef, DeviceRef, true>(out, zero, in);
}

// ---- the same by fences
template <int scope> __device__ void fenced(int* out, int* zero, const int* in) {
    int* data = zero + 64;
    if (blockIdx.x == 0) {
        data[threadIdx.x] = in[threadIdx.x];                                      // [fenced write]
        if (scope == 0) __threadfence_block();
        else if (scope == 1) __threadfence();
        else __threadfence_system();
        __syncthreads();
        if (threadIdx.x == 0) atomicExch(&zero[0], 1);
    } else {
        if (threadIdx.x == 0) { while (atomicAdd(&zero[0], 0) == 0) __nanosleep(100); __threadfence(); }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x ^ 1];                                 // [fenced read]
    }
}
__global__ void fenced_ok(int* out, int* zero, const int* in) { fenced<1>(out, zero, in); }
__global__ void fenced_system_ok(int* out, int* zero, const int* in) { fenced<2>(out, zero, in); }
__global__ void fenced_block_bad(int* out, int* zero, const int* in) { fenced<0>(out, zero, in); }

// ---- barrier first, then one thread's fence covers the block (fences are cumulative)
__global__ void cumulative_ok(int* out, int* zero, const int* in) {
    int* data = zero + 64;
    if (blockIdx.x == 0) {
        data[threadIdx.x] = in[threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) { __threadfence(); *(volatile int*)zero = 1; }
    } else {
        if (threadIdx.x == 0) { while (*(volatile int*)zero == 0) {} __threadfence(); }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}
// The fence stands before the write it should order.
__global__ void early_fence_bad(int* out, int* zero, const int* in) {
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            __threadfence();
            zero[64] = in[3];                                                     // [early write]
            *(volatile int*)zero = 1;
        }
    } else if (threadIdx.x == 0) {
        while (*(volatile int*)zero == 0) {}
        __threadfence();
        out[0] = zero[64];                                                        // [early read]
    }
}

// ---- three blocks pass a value on: knowledge is transitive
__global__ void chain_ok(int* out, int* zero, const int* in) {
    if (threadIdx.x) return;
    if (blockIdx.x == 0) {
        zero[64] = in[7];
        DeviceRef(zero[0]).store(1, cuda::memory_order_release);
    } else if (blockIdx.x == 1) {
        while (DeviceRef(zero[0]).load(cuda::memory_order_acquire) == 0) {}
        DeviceRef(zero[32]).store(1, cuda::memory_order_release);
    } else {
        while (DeviceRef(zero[32]).load(cuda::memory_order_acquire) == 0) {}
        out[0] = zero[64];
    }
}

// Two scopes: between blocks by the device's, then within the block by the block's.
__global__ void two_scopes_ok(int* out, int* zero, const int* in) {
    if (blockIdx.x == 0) {
        if (threadIdx.x) return;
        zero[64] = in[7];
        DeviceRef(zero[0]).store(1, cuda::memory_order_release);
    } else if (threadIdx.x == 0) {
        while (DeviceRef(zero[0]).load(cuda::memory_order_acquire) == 0) {}
        BlockRef(zero[32]).store(1, cuda::memory_order_release);
    } else if (threadIdx.x == 32) {
        while (BlockRef(zero[32]).load(cuda::memory_order_acquire) == 0) {}
        out[0] = zero[64];
    }
}
// The same by fences and volatile flags.
__global__ void two_fences_ok(int* out, int* zero, const int* in) {
    volatile int* flags = zero;
    if (blockIdx.x == 0) {
        if (threadIdx.x) return;
        zero[64] = in[7];
        __threadfence();
        flags[0] = 1;
    } else if (threadIdx.x == 0) {
        while (flags[0] == 0) {}
        __threadfence();
        flags[32] = 1;
    } else if (threadIdx.x == 32) {
        while (flags[32] == 0) {}
        __threadfence_block();
        out[0] = zero[64];
    }
}
// Blocks that wait for each other without a cooperative launch: they fit on the device together.
__global__ void own_grid_barrier_ok(int* out, int* zero, const int* in) {
    int* data = zero + 64;
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    for (int round = 1; round <= 3; ++round) {
        data[i] = in[i] * round;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(zero, 1);
            while (*(volatile int*)zero < int(gridDim.x) * (2 * round - 1)) {}
            __threadfence();
        }
        __syncthreads();
        out[i] += data[n - 1 - i];
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(zero, 1);
            while (*(volatile int*)zero < int(gridDim.x) * 2 * round) {}
            __threadfence();
        }
        __syncthreads();
    }
}

// One lane acquires; another reads.  A shuffle tells it the flag, but orders no memory.
template <bool sync> __device__ void told(int* out, int* zero, const int* in) {
    if (blockIdx.x == 0) {
        if (threadIdx.x) return;
        zero[64] = in[7];                                                         // [told write]
        DeviceRef(zero[0]).store(1, cuda::memory_order_release);
    } else {
        int seen = 0;
        while (!seen) {
            if (threadIdx.x == 0) seen = DeviceRef(zero[0]).load(cuda::memory_order_acquire);
            seen = __shfl_sync(~0u, seen, 0);
        }
        if (sync) __syncwarp();
        if (threadIdx.x == 1) out[0] = zero[64];                                  // [told read]
    }
}
__global__ void told_ok(int* out, int* zero, const int* in) { told<true>(out, zero, in); }
__global__ void told_bad(int* out, int* zero, const int* in) { told<false>(out, zero, in); }

// The same between the warps of a block: a lane that spins between collectives must not keep the others away.
__global__ void told_in_block_ok(int* out, int* zero, const int* in) {
    if (threadIdx.x / 32 == in[blockIdx.x]) {
        int seen = 0;
        while (!seen) {
            if (threadIdx.x % 32 == 0) seen = BlockRef(zero[blockIdx.x]).load(cuda::memory_order_acquire);
            seen = __any_sync(~0u, seen);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 5) out[blockIdx.x] = zero[64 + blockIdx.x];
    } else if (threadIdx.x % 32 == 0) {
        zero[64 + blockIdx.x] = in[7];
        BlockRef(zero[blockIdx.x]).store(1, cuda::memory_order_release);
    }
}

// ---- a release sequence: read-modify-writes by others keep the head's release
__global__ void release_sequence_ok(int* out, int* zero, const int* in) {
    if (threadIdx.x) return;
    if (blockIdx.x == 0) {
        zero[64] = in[9];
        DeviceRef(zero[0]).fetch_add(1, cuda::memory_order_release);
    } else if (blockIdx.x == 1) {
        while (DeviceRef(zero[0]).load(cuda::memory_order_relaxed) == 0) {}
        DeviceRef(zero[0]).fetch_add(1, cuda::memory_order_relaxed);
    } else {
        while (DeviceRef(zero[0]).load(cuda::memory_order_acquire) < 2) {}
        out[0] = zero[64];
    }
}

// ---- spin locks
template <class Ref, bool unlock_releases> __device__ void locked(int* out, int* zero) {
    for (bool done = false; !done;) {    // lanes of one warp may compete
        int free = 0;
        if (Ref(zero[0]).compare_exchange_strong(free, 1, cuda::memory_order_acquire)) {
            out[0] += 1;                                                          // [locked]
            Ref(zero[0]).store(0, unlock_releases ? cuda::memory_order_release : cuda::memory_order_relaxed);
            done = true;
        }
    }
}
__global__ void lock_ok(int* out, int* zero, const int*) { locked<DeviceRef, true>(out, zero); }
__global__ void lock_scope_bad(int* out, int* zero, const int*) { locked<BlockRef, true>(out, zero); }
__global__ void lock_relaxed_bad(int* out, int* zero, const int*) { locked<DeviceRef, false>(out, zero); }

// The classical form: all lanes spin in the loop's head.
// Legal since sm_70, as threads make progress on their own.
__global__ void lock_same_warp_ok(int* out, int* zero, const int*) {
    while (atomicCAS(&zero[0], 0, 1) != 0) {}
    __threadfence();
    out[0] += 1;
    __threadfence();
    atomicExch(&zero[0], 0);
}
// A ticket lock: strict order among all threads of all blocks.
__global__ void ticket_lock_ok(int* out, int* zero, const int*) {
    const int mine = atomicAdd(&zero[0], 1);
    while (*(volatile int*)&zero[1] != mine) __nanosleep(20);
    __threadfence();
    out[0] = out[0] * 3 + 1;
    __threadfence();
    *(volatile int*)&zero[1] = mine + 1;
}
__global__ void lock_never_freed_bad(int* out, int* zero, const int*) {
    while (atomicCAS(&zero[0], 0, 1) != 0) {}                                     // [never freed]
    out[0] += 1;
}

// ---- decoupled look-back: one pass, 64 threads a block
template <bool fence> __device__ void look_back(int* out, int* zero, const int* in) {
    int* state = zero + 1;                      // 1: sum of the block, 2: sum of all up to it
    int* sums = zero + 512;
    int* prefixes = zero + 1024;
    __shared__ int tile, base, tree[64];
    if (threadIdx.x == 0) tile = atomicAdd(zero, 1);                              // in order of start
    __syncthreads();
    const int at = tile * 64 + threadIdx.x;
    tree[threadIdx.x] = in[at];
    __syncthreads();
    for (int step = 1; step < 64; step *= 2) {
        const int left = threadIdx.x >= step ? tree[threadIdx.x - step] : 0;
        __syncthreads();
        tree[threadIdx.x] += left;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        sums[tile] = tree[63];                                                    // [look-back sum write]
        if (fence) __threadfence();
        atomicExch(&state[tile], 1);
        int before = 0;
        for (int b = tile - 1; b >= 0;) {
            const int s = atomicAdd(&state[b], 0);
            if (s == 0) continue;
            __threadfence();
            before += s == 2 ? prefixes[b] : sums[b];                              // [look-back read]
            if (s == 2) break;
            --b;
        }
        prefixes[tile] = before + tree[63];                                       // [look-back prefix write]
        if (fence) __threadfence();
        atomicExch(&state[tile], 2);
        base = before;
    }
    __syncthreads();
    out[at] = base + tree[threadIdx.x];
}
__global__ void look_back_ok(int* out, int* zero, const int* in) { look_back<true>(out, zero, in); }
__global__ void look_back_bad(int* out, int* zero, const int* in) { look_back<false>(out, zero, in); }

// Status and value in one 64-bit word: no fence is needed, as nothing else is passed on.
__global__ void packed_look_back_ok(int* out, int* zero, const int* in) {
    volatile unsigned long long* states = (unsigned long long*)(zero + 8);
    if (threadIdx.x) return;
    const int tile = atomicAdd(zero, 1);
    unsigned sum = in[tile];
    states[tile] = 1ull << 32 | sum;
    for (int b = tile - 1; b >= 0;) {
        const unsigned long long s = states[b];
        if (s == 0) continue;
        sum += unsigned(s);
        if (s >> 33) break;
        --b;
    }
    states[tile] = 2ull << 32 | sum;
    out[tile] = sum;
}

// ---- stream-K: blocks add to one tile in turn
template <bool fence> __device__ void semaphore(int* out, int* zero, const int* in) {
    if (threadIdx.x == 0) while (atomicAdd(zero, 0) != blockIdx.x) {}
    __syncthreads();
    if (fence) __threadfence();
    out[threadIdx.x] += in[threadIdx.x] + blockIdx.x;                             // [semaphore tile]
    if (fence) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(zero, blockIdx.x + 1);
}
__global__ void semaphore_ok(int* out, int* zero, const int* in) { semaphore<true>(out, zero, in); }
__global__ void semaphore_bad(int* out, int* zero, const int* in) { semaphore<false>(out, zero, in); }

// ---- named barriers with warps that leave early
__device__ void relay(int* out, const int* in) {
    __shared__ int stage[3][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 3) return;
    if (warp > 0) asm volatile("barrier.cta.sync %0, 64;" ::"r"(warp) : "memory");
    stage[warp][lane] = warp ? stage[warp - 1][31 - lane] + 1 : in[lane];
    if (warp < 2) asm volatile("barrier.cta.arrive %0, 64;" ::"r"(warp + 1) : "memory");
    else out[lane] = stage[2][lane];
}
__global__ void relay_ok(int* out, int*, const int* in) { relay(out, in); }

// ---- bytes of one word by different threads, between blocks as well
__global__ void bytes_between_blocks_ok(int* out, int*, const int* in) {
    char* bytes = (char*)out;
    for (int i = blockIdx.x; i < 256; i += gridDim.x) if (threadIdx.x == i % 32) bytes[i] = in[i] & 127;
}
__global__ void bits_bad(int* out, int*, const int*) {
    out[threadIdx.x / 32] |= 1 << threadIdx.x % 32;    // [bits]
}
__global__ void bits_ok(int* out, int*, const int*) {
    atomicOr(&out[threadIdx.x / 32], 1 << threadIdx.x % 32);
}

// An atomic by one thread, then an atomic and a plain read by another:
// the first is not ordered with the read.
__global__ void covered_atomic_bad(int* out, int* zero, const int*) {
    if (threadIdx.x == 0) atomicAdd(&zero[0], 1);                                 // [covered atomic]
    if (threadIdx.x == 32) { atomicAdd(&zero[0], 1); out[0] = zero[0]; }          // [covered read]
}
// Atomics at block scope on one counter by several blocks.
__global__ void atomic_block_scope_bad(int* out, int*, const int*) {
    atomicAdd_block(&out[0], 1);    // [block atomic]
}
__global__ void atomic_block_scope_ok(int* out, int*, const int*) { atomicAdd_block(&out[blockIdx.x], 1); }
// All write the same: still a race.
__global__ void same_value_bad(int* out, int*, const int*) { out[0] = 1; }   // [same value]
