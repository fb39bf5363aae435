// C = A B on tensor cores: bf16 in, fp32 out, A [m,k] and B [k,n] row major, m and n multiples of 64, k of 32.
// A block of 4 warps makes a 64x64 tile, each warp 32x32; tiles come by cp.async, double buffered; rows are padded against bank conflicts.
#include <cuda_bf16.h>

constexpr int TILE = 64, DEPTH = 32, PAD = 8;

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ void copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}

__device__ void load_a(unsigned (&a)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(row)));
}

__device__ void load_b(unsigned (&b)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)));
}

__device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__global__ void __launch_bounds__(128) gemm_bf16(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int n, int k) {
    __shared__ __align__(16) __nv_bfloat16 tile_a[2][TILE][DEPTH + PAD], tile_b[2][DEPTH][TILE + PAD];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / 2 * 32, column = warp % 2 * 32;             // of this warp's part in the tile
    a += blockIdx.y * TILE * k;
    b += blockIdx.x * TILE;
    float sum[2][4][4] = {};

    auto fetch = [&](int stage, int at) {
        for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += 128) {
            copy16(&tile_a[stage][i / 4][i % 4 * 8], a + i / 4 * k + at + i % 4 * 8);
            copy16(&tile_b[stage][i / 8][i % 8 * 8], b + (at + i / 8) * n + i % 8 * 8);
        }
        asm volatile("cp.async.commit_group;");
    };

    fetch(0, 0);
    for (int at = 0, stage = 0; at < k; at += DEPTH, stage ^= 1) {
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();                                               // the tile is there, and the other one read
        if (at + DEPTH < k) fetch(stage ^ 1, at + DEPTH);
        for (int inner = 0; inner < DEPTH; inner += 16) {
            unsigned fragment_a[2][4], fragment_b[2][4];
            for (int i = 0; i < 2; ++i) load_a(fragment_a[i], &tile_a[stage][row + 16 * i + lane % 16][inner + lane / 16 * 8]);
            for (int j = 0; j < 2; ++j) load_b(fragment_b[j], &tile_b[stage][inner + lane % 16][column + 16 * j + lane / 16 * 8]);
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j) multiply(sum[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
        }
    }
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int half = 0; half < 2; ++half) {
                const int y = blockIdx.y * TILE + row + 16 * i + 8 * half + lane / 4;
                const int x = blockIdx.x * TILE + column + 8 * j + lane % 4 * 2;
                *reinterpret_cast<float2*>(&c[y * n + x]) = make_float2(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
            }
}
