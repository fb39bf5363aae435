// Tensor-core instructions of one warp, mma.sync and what feeds it.  PTX ISA, "Warp-level matrix
// instructions".
//
// Lane l holds, with g = l / 4 and t = l % 4 (two 16-bit numbers to a register, the lower one first):
//
//     A 16x16 (row-major)   a[0]  row g      columns 2t, 2t+1        a[2]  row g      columns 2t+8, 2t+9
//                           a[1]  row g + 8  columns 2t, 2t+1        a[3]  row g + 8  columns 2t+8, 2t+9
//     B 16x8                b[0]  rows 2t, 2t+1    column g          b[1]  rows 2t+8, 2t+9  column g
//     C, D 16x8 in float    d[0], d[1]  row g      columns 2t, 2t+1
//                           d[2], d[3]  row g + 8  columns 2t, 2t+1
//
// A row of D lies in four neighbouring lanes: a reduction over it is two shuffles (xor 1, 2).  Two
// neighbouring D tiles (columns 0-7, 8-15), packed by pack_halves, are an A operand: a = {pack(d0[0], d0[1]),
// pack(d0[2], d0[3]), pack(d1[0], d1[1]), pack(d1[2], d1[3])}; so softmax(P) feeds P V without shared memory.
//
// tf32: A 16x8 in four registers   a[0] (g, t)   a[1] (g + 8, t)   a[2] (g, t + 4)   a[3] (g + 8, t + 4)
//       B 8x8 in two               b[0] (t, g)   b[1] (t + 4, g)
//
// ldmatrix reads 8x8 matrices of 16-bit numbers, each row 16 contiguous, 16-byte aligned bytes of shared
// memory. Lanes 8i ... 8i+7 give the addresses of the rows of matrix i (x2: lanes 0-15, x1: 0-7; the others
// give any valid address); lane l gets numbers 2t, 2t+1 of row g of matrix i in r[i]; transposed: rows 2t,
// 2t+1 of column g. The addresses of ldmatrix_x4 that give the operands above, with lane l = 8i + j:
//     A  stored [m][k]   ldmatrix_x4        row j + 8 (i % 2), column 8 (i / 2)     of the 16x16 piece
//     A  stored [k][m]   ldmatrix_x4_trans  row j + 8 (i / 2), column 8 (i % 2)
//     B  stored [n][k]   ldmatrix_x4        row j + 8 (i / 2), column 8 (i % 2)     (n 0-7 in r[0..1])
//     B  stored [k][n]   ldmatrix_x4_trans  row j + 8 (i % 2), column 8 (i / 2)
#pragma once

#include "number.cuh"

namespace nn {

// An address in the window of shared memory, as inline assembly wants it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- ldmatrix (sm_75) -------------------------------------------------------------------------------------

__device__ __forceinline__ void ldmatrix_x1(uint32_t& r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t& r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// ---- mma.sync ---------------------------------------------------------------------------------------------

// d += a b of half precision, 16x8x8 (sm_75).  The operands of 16x8x16 are two of these side by side in k.
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}

// Whether mma_16x8x16<T> (or, for float, mma_16x8x8_tf32) exists in the architecture being compiled.  A
// kernel for which it does not should be empty there:  if constexpr (tensor_cores<T>) { ... }, and never be
// launched.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class T> constexpr bool tensor_cores = false;
template <> constexpr bool tensor_cores<half> = __CUDA_ARCH__ >= 750;
#else
template <class T> constexpr bool tensor_cores = true;
#endif

// d += a b, 16x8x16, for half and bfloat16.  sm_75 has it for half alone, in two steps.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_16x8x16<half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    mma_16x8x8(d, a[0], a[1], b0);
    mma_16x8x8(d, a[2], a[3], b1);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                      uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// float rounded to tf32's 10 bits of mantissa, nearest, ties away from zero
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits = __float_as_uint(x);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

// d += a b, 16x8x8 in tf32 (sm_80); operands from to_tf32
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- registers of two 16-bit numbers ----------------------------------------------------------------------

template <class T> __device__ __forceinline__ uint32_t pack_halves(float low, float high);

template <> __device__ __forceinline__ uint32_t pack_halves<half>(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
}

template <> __device__ __forceinline__ uint32_t pack_halves<bfloat16>(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
}

}  // namespace nn
