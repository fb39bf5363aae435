// Matrix products of a warpgroup, wgmma (sm_90a): D += A B with A and B in shared memory, D in registers.
// PTX ISA, "Asynchronous warpgroup-level matrix instructions".
//
//     wgmma_fence();                                              // registers of D are set
//     wgmma<half, true, true>(d, wgmma_operand(a), wgmma_operand(b));   // ... 32 bytes of k each
//     wgmma_commit();  ...  wgmma_wait<PENDING>();                // A and B may be overwritten
//     wgmma_wait<0>();  wgmma_settle(d);                          // D may be read
//
// A has 64 rows, B has 128 (d[64]) or 256 (d[128]) columns.  Thread 32 w + 4 g + t of the warpgroup holds in
// d[4 j + i] row 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2: warp by warp the D of mma.cuh.
//
// Operands lie in boxes of 128-byte rows with the 128-byte swizzle, aligned to 1024 bytes, as tensor copies
// bring them:
//     ALONG_K    a row per m (n), k along it; 32 bytes of k further: + 32 bytes
//     otherwise  a row per k with 64 m (n) along it, 64 rows to a box, boxes 8 KiB apart (16-bit types only);
//                16 k further: + 2 KiB
// tf32 operands are floats whose low 13 bits the tensor core ignores: who copies rounds (TFLOAT32 maps).
#pragma once

#include <type_traits>

#include "mma.cuh"

namespace nn {

constexpr int WARPGROUP = 128;                         // threads
constexpr int SWIZZLED_BOX = 64 * 128;                 // bytes: 64 rows of 128

// ---- operands ---------------------------------------------------------------------------------------------

// The descriptor: the start, the leading and the stride offset, in 16 bytes, and the swizzle's code.  The
// stride offset goes from 8 rows to the next 8; the leading one from box to box where m (n) runs along rows.
__device__ __forceinline__ uint64_t wgmma_operand(const void* first) {
    constexpr uint64_t LEADING = SWIZZLED_BOX / 16, STRIDE = 8 * 128 / 16, SWIZZLE_128 = 1;
    return shared_address(first) / 16 | LEADING << 16 | STRIDE << 32 | SWIZZLE_128 << 62;
}

// What a descriptor grows by for `step` times 32 bytes of k.
template <bool ALONG_K> __device__ __forceinline__ uint64_t wgmma_step(int step) {
    return static_cast<uint64_t>(step) * (ALONG_K ? 32 : 16 * 128) / 16;
}

// ---- order ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}

// After the wait for the last products: D is not read before this line.  The compiler sees no tie between a
// wait and D, and would move what reads D (the packing for a store) up across it; ptxas then waits after each
// product.
template <int N> __device__ __forceinline__ void wgmma_settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

// Registers per thread from here on, for all of a warpgroup: a multiple of 8 from 24 to 256.  The kernel's
// launch bounds must fix what each begins with.
template <int COUNT> __device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT));
}

// ---- products ---------------------------------------------------------------------------------------------

#define NN_D64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "      \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "       \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "       \
    "%59, %60, %61, %62, %63}"
#define NN_D128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "      \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "       \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "       \
    "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "       \
    "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "       \
    "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, "   \
    "%114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define NN_SUMS8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define NN_SUMS32(i) NN_SUMS8(i), NN_SUMS8(i + 8), NN_SUMS8(i + 16), NN_SUMS8(i + 24)
#define NN_SUMS64 NN_SUMS32(0), NN_SUMS32(32)
#define NN_SUMS128 NN_SUMS64, NN_SUMS32(64), NN_SUMS32(96)
// D, A, B, add to D, signs; 16-bit types: whether m (n) runs along the rows of A and B
#define NN_WGMMA16(SHAPE, TYPE, D, SUMS, A, B, TURN_A, TURN_B) \
    asm volatile("wgmma.mma_async.sync.aligned." SHAPE "k16.f32." TYPE "." TYPE " " \
                 D ", %" A ", %" B ", 1, 1, 1, %" TURN_A ", %" TURN_B ";" \
                 : SUMS : "l"(a), "l"(b), "n"(A_ALONG_K ? 0 : 1), "n"(B_ALONG_K ? 0 : 1))
#define NN_WGMMA_TF32(SHAPE, D, SUMS, A, B) \
    asm volatile("wgmma.mma_async.sync.aligned." SHAPE "k8.f32.tf32.tf32 " D ", %" A ", %" B ", 1, 1, 1;" \
                 : SUMS : "l"(a), "l"(b))

template <class T, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b) {
    static_assert(sizeof(T) == 2 || (A_ALONG_K && B_ALONG_K), "tf32 operands run along k");
    if constexpr (sizeof(T) == 4)
        NN_WGMMA_TF32("m64n128", NN_D64, NN_SUMS64, "64", "65");
    else if constexpr (std::is_same_v<T, half>)
        NN_WGMMA16("m64n128", "f16", NN_D64, NN_SUMS64, "64", "65", "66", "67");
    else
        NN_WGMMA16("m64n128", "bf16", NN_D64, NN_SUMS64, "64", "65", "66", "67");
}

template <class T, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b) {
    static_assert(sizeof(T) == 2 || (A_ALONG_K && B_ALONG_K), "tf32 operands run along k");
    if constexpr (sizeof(T) == 4)
        NN_WGMMA_TF32("m64n256", NN_D128, NN_SUMS128, "128", "129");
    else if constexpr (std::is_same_v<T, half>)
        NN_WGMMA16("m64n256", "f16", NN_D128, NN_SUMS128, "128", "129", "130", "131");
    else
        NN_WGMMA16("m64n256", "bf16", NN_D128, NN_SUMS128, "128", "129", "130", "131");
}

#undef NN_D64
#undef NN_D128
#undef NN_SUMS8
#undef NN_SUMS32
#undef NN_SUMS64
#undef NN_SUMS128
#undef NN_WGMMA16
#undef NN_WGMMA_TF32

}  // namespace nn
