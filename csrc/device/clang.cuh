// Loads and stores by cache policy for clang's CUDA front end, which has them for half types only.
// cuda/nn/volta.py includes this before every file; nvcc never sees it.
#pragma once

namespace nn::clang {

template <int BYTES> struct Word;
template <> struct Word<1> { using type = unsigned short; };      // the smallest register is of 16 bits
template <> struct Word<2> { using type = unsigned short; };
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

}  // namespace nn::clang

#ifdef __CUDA_ARCH__

#define NN_STORE(NAME, POLICY) \
    template <class T> __device__ inline void NAME(T* to, T value) { \
        typename nn::clang::Word<sizeof(T)>::type w{}; \
        __builtin_memcpy(&w, &value, sizeof(T)); \
        if constexpr (sizeof(T) == 16) \
            asm volatile("st.global." POLICY ".v4.u32 [%0], {%1, %2, %3, %4};" \
                         :: "l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory"); \
        else if constexpr (sizeof(T) == 8) \
            asm volatile("st.global." POLICY ".v2.u32 [%0], {%1, %2};" \
                         :: "l"(to), "r"(w.x), "r"(w.y) : "memory"); \
        else if constexpr (sizeof(T) == 4) \
            asm volatile("st.global." POLICY ".u32 [%0], %1;" :: "l"(to), "r"(w) : "memory"); \
        else if constexpr (sizeof(T) == 2) \
            asm volatile("st.global." POLICY ".u16 [%0], %1;" :: "l"(to), "h"(w) : "memory"); \
        else asm volatile("st.global." POLICY ".u8 [%0], %1;" :: "l"(to), "h"(w) : "memory"); \
    }

#define NN_LOAD(NAME, POLICY) \
    template <class T> __device__ inline T NAME(const T* from) { \
        typename nn::clang::Word<sizeof(T)>::type w; \
        if constexpr (sizeof(T) == 16) \
            asm volatile("ld.global." POLICY ".v4.u32 {%0, %1, %2, %3}, [%4];" \
                         : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(from) : "memory"); \
        else if constexpr (sizeof(T) == 8) \
            asm volatile("ld.global." POLICY ".v2.u32 {%0, %1}, [%2];" \
                         : "=r"(w.x), "=r"(w.y) : "l"(from) : "memory"); \
        else if constexpr (sizeof(T) == 4) \
            asm volatile("ld.global." POLICY ".u32 %0, [%1];" : "=r"(w) : "l"(from) : "memory"); \
        else if constexpr (sizeof(T) == 2) \
            asm volatile("ld.global." POLICY ".u16 %0, [%1];" : "=h"(w) : "l"(from) : "memory"); \
        else asm volatile("ld.global." POLICY ".u8 %0, [%1];" : "=h"(w) : "l"(from) : "memory"); \
        T value; \
        __builtin_memcpy(&value, &w, sizeof(T)); \
        return value; \
    }

#else                                   // the pass for the host sees kernels, and never runs them

#define NN_STORE(NAME, POLICY) template <class T> __device__ void NAME(T*, T);
#define NN_LOAD(NAME, POLICY) template <class T> __device__ T NAME(const T*);

#endif

NN_STORE(__stwb, "wb")
NN_STORE(__stcg, "cg")
NN_STORE(__stcs, "cs")
NN_STORE(__stwt, "wt")
NN_LOAD(__ldca, "ca")
NN_LOAD(__ldcg, "cg")
NN_LOAD(__ldcs, "cs")
NN_LOAD(__ldcv, "cv")
#undef NN_STORE
#undef NN_LOAD
