// C++ and memory: what is no fault however odd it looks, and what is one byte too far.
// All kernels take (out, zero, in).
#include <cstdint>
#include <cuda_fp16.h>

// ---- calls
__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
__global__ void recursion_ok(int* out, int*, const int*) { out[threadIdx.x] = fibonacci(threadIdx.x % 8); }

__device__ __noinline__ int sum_of(int* values,
                                   int depth) {    // each frame passes on its own array and its caller's
    int mine[4];
    for (int i = 0; i < 4; ++i) mine[(i + depth) & 3] = values[i] + 1;
    return depth ? sum_of(mine, depth - 1) + values[depth & 3] : mine[0] + values[3];
}
__global__ void nested_frames_ok(int* out, int*, const int* in) {
    int values[4] = {in[0], in[1], in[2], in[3]};
    out[threadIdx.x] = sum_of(values, in[4]);
}
__device__ int twice(int x) { return 2 * x; }
__device__ int square(int x) { return x * x; }
__device__ int (*const table[2])(int) = {twice, square};
__global__ void function_pointers_ok(int* out, int*, const int* in) {
    out[threadIdx.x] = table[in[threadIdx.x] & 1](in[threadIdx.x]);
}

struct Shape { virtual __device__ int area() const = 0; int a; };
struct Square : Shape { __device__ int area() const override { return a * a; } };
struct Strip : Shape { __device__ int area() const override { return 3 * a; } };
__global__ void virtual_ok(int* out, int*, const int* in) {
    Square s;
    Strip t;
    s.a = t.a = in[threadIdx.x];
    const Shape* const shapes[2] = {&s, &t};
    out[threadIdx.x] = shapes[in[threadIdx.x] % 2]->area();
}
__global__ void heap_ok(int* out, int*, const int* in) {
    int* mine = new int[3 + threadIdx.x % 2];
    for (int i = 0; i < 3; ++i) mine[i] = in[i] + threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = mine[in[2]];
    delete[] mine;
}
__global__ void heap_bad(int* out, int*, const int* in) {
    int* mine = new int[3];
    mine[in[1]] = 1;
    out[threadIdx.x] = mine[in[3] + (threadIdx.x == 5)];                          // [heap read]
    delete[] mine;
}
__global__ void clock_ok(int* out, int*, const int*) {
    const long long begin = clock64();
    while (clock64() - begin < 100) {}
    out[threadIdx.x] = clock64() > begin;
}

// ---- local memory
__global__ void local_dynamic_ok(int* out, int*, const int* in) {
    int values[16];
    for (int i = 0; i < 16; ++i) values[i] = in[i] * threadIdx.x;
    out[threadIdx.x] = values[in[threadIdx.x] & 15] + values[(threadIdx.x * 7) & 15];
}
__global__ void local_bad(int* out, int*, const int* in) {
    int values[16];
    for (int i = 0; i < 16; ++i) values[(i * 5) & 15] = in[i];
    out[threadIdx.x] = values[in[threadIdx.x]];                                   // [local read]
}
__global__ void local_below_bad(int* out, int*, const int* in) {
    int values[16];
    for (int i = 0; i < 16; ++i) values[(i * 5) & 15] = in[i];
    values[5 - in[threadIdx.x]] = 1;                                              // [local write below]
    out[threadIdx.x] = values[in[3]];
}
__device__ __noinline__ int* frame_that_ends(const int* in) {
    int v[4] = {in[0], in[1], in[2], in[3]};
    v[in[2]] = 9;
    int* p = v;
    asm volatile("" : "+l"(p));
    return p;
}
__global__ void dangling_bad(int* out, int*, const int* in) {
    int* gone = frame_that_ends(in);
    out[threadIdx.x] = *gone;                                                     // [dangling read]
}

// ---- shared memory
__global__ void carved_ok(int* out, int*, const int* in) {
    extern __shared__ char memory[];
    double* doubles = (double*)memory;                                            // 8 + 64 * 8
    int* ints = (int*)(doubles + 64);                                             // 64 * 4
    short* shorts = (short*)(ints + 64);                                          // 64 * 2
    char* chars = (char*)(shorts + 64);                                           // 64
    doubles[threadIdx.x] = in[threadIdx.x] + 0.5;
    ints[threadIdx.x] = in[threadIdx.x];
    shorts[threadIdx.x] = in[threadIdx.x];
    chars[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    const int other = 63 - threadIdx.x;
    out[threadIdx.x] = int(doubles[other] * 2) + ints[other] + shorts[other] + chars[other];
}
__global__ void carved_end_bad(int* out, int*, const int* in) {
    extern __shared__ char memory[];
    char* chars = memory + 64;
    chars[threadIdx.x + (threadIdx.x == 63)] = in[threadIdx.x];                   // [carved end]
    __syncthreads();
    out[threadIdx.x] = chars[threadIdx.x];
}
__global__ void shared_negative_bad(int* out, int*, const int* in) {
    __shared__ int before[32], tile[64];
    before[threadIdx.x % 32] = 0;
    tile[in[threadIdx.x] - 1] = 1;                                                // [shared negative]
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x] + before[0];
}
__global__ void shared_negative_wide_bad(int* out, int*, const int* in) {
    extern __shared__ int tile_of_ints[];
    const int at = in[threadIdx.x] - 64;
    tile_of_ints[at] = 1;                                                         // [shared negative wide]
    out[threadIdx.x] = 1;
}
__global__ void large_shared_ok(int* out, int*, const int* in) {
    extern __shared__ int big[];
    for (int i = threadIdx.x; i < 20000; i += blockDim.x) big[i] = in[i & 63];
    __syncthreads();
    out[threadIdx.x] = big[19999 - threadIdx.x];
}
__global__ void generic_ok(int* out, int*, const int* in) {
    __shared__ int tile[64];
    int mine[4] = {in[0], in[1], in[2], in[3]};
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    const int* places[3] = {tile, mine, in};
    out[threadIdx.x] = places[in[threadIdx.x] % 3][threadIdx.x % 4];
}
__shared__ int of_file[64];
__device__ __noinline__ int through_function(int i) { return of_file[i]; }    // [function read]
__global__ void shared_in_function_ok(int* out, int*, const int* in) {
    of_file[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = through_function(63 - threadIdx.x);
}
__global__ void shared_in_function_bad(int* out, int*, const int* in) {
    of_file[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = through_function(64 - threadIdx.x);
}

// ---- vectors and alignment
__global__ void vectors_ok(int* out, int*, const int* in) {
    const int4 v = reinterpret_cast<const int4*>(in)[threadIdx.x];
    reinterpret_cast<int4*>(out)[threadIdx.x] = make_int4(v.w, v.z, v.y, v.x);
}
__global__ void half2_ok(int* out, int*, const int* in) {
    __shared__ alignas(16) __half row[128];
    reinterpret_cast<__half2*>(row)[threadIdx.x] = __floats2half2_rn(in[threadIdx.x], 0.5f);
    __syncthreads();
    const __half2 v = reinterpret_cast<__half2*>(row)[63 - threadIdx.x];
    out[threadIdx.x] = int(__low2float(v) + 2 * __high2float(v));
}
__global__ void half2_bad(int* out, int*, const int* in) {
    __half* row = reinterpret_cast<__half*>(out) + in[1];
    reinterpret_cast<__half2*>(row)[threadIdx.x] = __floats2half2_rn(1.f, 2.f);   // [half2 odd]
}
__global__ void float4_bad(int* out, int*, const int* in) {
    const int4 v = *reinterpret_cast<const int4*>(in + 2 * threadIdx.x);          // [float4 odd]
    out[threadIdx.x] = v.x + v.w;
}
__global__ void vector_past_end_bad(int* out, int*, const int* in) {
    const int4 v = reinterpret_cast<const int4*>(in)[1023 + threadIdx.x];         // [vector past end]
    out[threadIdx.x] = v.x + v.w;
}
__global__ void double_atomics_ok(int* out, int* zero, const int* in) {
    double* sum = reinterpret_cast<double*>(zero);
    atomicAdd(sum, in[threadIdx.x] * 0.5);
    __syncthreads();
    out[threadIdx.x] = int(*sum * 2);
}
// 5 x 3 x 3 threads: the last warp has 13 lanes.
__global__ void odd_block_ok(int* out, int*, const int* in) {
    __shared__ int tile[3][3][5];
    const int rank = (threadIdx.z * 3 + threadIdx.y) * 5 + threadIdx.x;
    tile[threadIdx.z][threadIdx.y][threadIdx.x] = in[rank];
    __syncthreads();
    const int sum = rank < 32 ? __shfl_xor_sync(~0u, in[rank], 1) : __shfl_sync(0x1fffu, in[rank], 3);
    out[rank] = tile[2 - threadIdx.z][2 - threadIdx.y][4 - threadIdx.x] + 100 * sum;
}

// ---- the ends of things
__constant__ int weights[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__device__ int counters[8];
__global__ void constant_ok(int* out, int*, const int* in) {
    out[threadIdx.x] = weights[in[threadIdx.x] & 7];
}
__global__ void constant_bad(int* out, int*, const int* in) {
    out[threadIdx.x] = weights[in[8] + in[0]];    // [constant read]
}
__global__ void variable_bad(int* out, int*, const int* in) {
    counters[in[threadIdx.x]] = 1;    // [variable write]
    out[0] = 1;
}
__global__ void global_below_bad(int* out, int*, const int* in) {
    out[in[threadIdx.x] - 1] = 1;    // [global below]
}
__global__ void global_end_bad(int* out, int*, const int* in) {
    out[4033 + in[threadIdx.x]] = 1;    // [global end]
}
__global__ void byte_end_bad(int* out, int*, const int* in) {
    reinterpret_cast<char*>(out)[16321 + in[threadIdx.x]] = 1;    // [byte end]
}
__global__ void null_bad(int* out, int*, const int* in) {
    int* p = reinterpret_cast<int*>((long long)in[0]);
    p[threadIdx.x] = 1;    // [null]
}
__global__ void wild_bad(int* out, int*, const int* in) {
    reinterpret_cast<int*>(0x123456789abcull + in[0] * 4)[0] = 1;    // [wild]
}
__global__ void unaligned_int_bad(int* out, int*, const int* in) {
    *reinterpret_cast<int*>(reinterpret_cast<char*>(out) + in[2]) = 1;    // [unaligned int]
}
__global__ void forever_bad(int* out, int*, const int* in) {
    while (*(volatile int*)(in + 1) == 1) {}    // [forever]
    out[0] = 1;
}
__global__ void forever_plain_bad(int* out, int*, const int* in) {
    for (unsigned i = in[1]; i; i = i * 3 | 1) out[i & 63] = i;    // [forever plain]
}
__device__ __noinline__ int deep(const int* in, int n) {
    volatile int pad[64];
    pad[n & 63] = in[0];
    return deep(in, n + 1) + pad[n & 63];
}
__global__ void deep_bad(int* out, int*, const int* in) { out[0] = deep(in, 0); }
__global__ void uninitialised_ok(int* out, int* fresh, const int* in) {
    fresh[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = fresh[threadIdx.x];
}
__global__ void uninitialised_bad(int* out, int* fresh, const int* in) {
    fresh[threadIdx.x] = 1;
    out[threadIdx.x] = fresh[threadIdx.x + in[1]];    // [fresh]
}
__global__ void uninitialised_atomic_bad(int* out, int* fresh, const int*) {
    atomicAdd(fresh, 1);    // [fresh atomic]
    out[0] = 1;
}
