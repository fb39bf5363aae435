// C = A B on tensor cores, row major, bf16 in and float out; m and n multiples of 64, k of 32.  Four warps
// make 64x64 of C, 32x32 each; cp.async fills one of two buffers while ldmatrix and mma.m16n8k16 use the
// other.  Rows are padded by 16 bytes: no bank conflicts.
#include <cstdint>
#include <cuda_bf16.h>

constexpr int TILE = 64, DEPTH = 32, PAD = 8;

struct Stage {
    __nv_bfloat16 a[TILE][DEPTH + PAD];
    __nv_bfloat16 b[DEPTH][TILE + PAD];
};

__device__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ void copy_async(void* to, const void* from) {
    uint32_t place = shared_address(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(place), "l"(from) : "memory");
}

__device__ void load_a(uint32_t (&a)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(row)) : "memory");
}

__device__ void load_b(uint32_t (&b)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)) : "memory");
}

__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ void fill(Stage& stage, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += blockDim.x) {
        int row = i / (DEPTH / 8), col = i % (DEPTH / 8) * 8;
        copy_async(&stage.a[row][col], a + row * k + col);
    }
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += blockDim.x) {
        int row = i / (TILE / 8), col = i % (TILE / 8) * 8;
        copy_async(&stage.b[row][col], b + row * n + col);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

__global__ void __launch_bounds__(128)
mma_gemm(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    __shared__ __align__(16) Stage stages[2];
    int lane = threadIdx.x % 32;
    int row = threadIdx.x / 64 * 32, col = threadIdx.x / 32 % 2 * 32;      // of the warp's part
    a += blockIdx.y * TILE * k;
    b += blockIdx.x * TILE;
    float sums[2][4][4] = {};
    fill(stages[0], a, b, n, k);
    for (int at = 0; at < k; at += DEPTH) {
        const Stage& now = stages[at / DEPTH % 2];
        if (at + DEPTH < k) fill(stages[at / DEPTH % 2 ^ 1], a + at + DEPTH, b + (at + DEPTH) * n, n, k);
        else asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int inner = 0; inner < DEPTH; inner += 16) {
            uint32_t left[2][4], right[2][4];
            int line = lane % 16, half = lane / 16 * 8;
            for (int i = 0; i < 2; ++i) load_a(left[i], &now.a[row + 16 * i + line][inner + half]);
            for (int j = 0; j < 2; ++j) load_b(right[j], &now.b[inner + line][col + 16 * j + half]);
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j) {
                    const uint32_t* b = &right[j / 2][j % 2 * 2];
                    multiply(sums[i][j], left[i], b[0], b[1]);
                }
        }
        __syncthreads();
    }
    c += (blockIdx.y * TILE + row + lane / 4) * n + blockIdx.x * TILE + col + lane % 4 * 2;
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int half = 0; half < 2; ++half) {
                float2* to = reinterpret_cast<float2*>(&c[(16 * i + 8 * half) * n + 8 * j]);
                *to = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            }
}
