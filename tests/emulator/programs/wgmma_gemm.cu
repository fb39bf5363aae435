// C = A B^T by wgmma, bf16 in and float out: A is [m, k], B is [n, k]; m, n and k multiples of 64.  One
// warpgroup makes 64x64 of C.  Tiles of 64 rows of 128 bytes are stored with the 128-byte swizzle, in two
// buffers: while the tensor core reads one (at most one group is left in flight), the other is filled.
#include <cstdint>
#include <cuda_bf16.h>

constexpr int TILE = 64;

struct Stage {
    uint4 a[TILE][8];
    uint4 b[TILE][8];
};

__device__ void fill(uint4 (&tile)[TILE][8], const __nv_bfloat16* from, int k) {
    for (int i = threadIdx.x; i < TILE * 8; i += blockDim.x) {
        int row = i / 8, chunk = i % 8;
        tile[row][chunk ^ row % 8] = *reinterpret_cast<const uint4*>(from + row * k + chunk * 8);
    }
}

// K-major, 128-byte swizzle: groups of 8 rows lie 1024 bytes apart.
__device__ uint64_t descriptor(const void* tile, int step) {
    uint64_t address = __cvta_generic_to_shared(tile) + 32 * step;
    return address >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ void multiply(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b));
}

__device__ void open() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ void finish_all_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
__device__ void finish_all() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
__device__ void show_to_tensor_core() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__global__ void __launch_bounds__(128)
wgmma_gemm(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    __shared__ __align__(1024) Stage stages[2];
    a += blockIdx.y * TILE * k;
    b += blockIdx.x * TILE * k;
    float sums[32] = {};
    for (int at = 0; at < k; at += TILE) {
        Stage& now = stages[at / TILE % 2];
        fill(now.a, a + at, k);
        fill(now.b, b + at, k);
        show_to_tensor_core();
        __syncthreads();
        open();
        for (int step = 0; step < 4; ++step) multiply(sums, descriptor(now.a, step), descriptor(now.b, step));
        commit();
        finish_all_but_one();      // so that the other buffer may be filled,
        __syncthreads();           // by all of us
    }
    finish_all();
    int lane = threadIdx.x % 32, row = blockIdx.y * TILE + threadIdx.x / 32 * 16 + lane / 4;
    for (int i = 0; i < 32; i += 2) {
        float* to = c + (row + i / 2 % 2 * 8) * n + blockIdx.x * TILE + i / 4 * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(sums[i], sums[i + 1]);
    }
}
