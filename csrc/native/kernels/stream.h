// Rows that come from memory and go there: what is fetched ahead, and what is written past the caches.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// While row r is computed from the first-level cache, this one is on its way there: 4 KiB ahead, or a row.
template <class T>
static inline const T* coming(const Rows<const T>& x, int64_t r) {
    const int64_t later = r + 1 + 4096 / (x.cols * (int64_t)sizeof(T) + 1);
    return x[later < x.rows ? later : x.rows - 1];
}
template <class T>
static inline void fetch(const T* p) {
    __builtin_prefetch(p);
}

constexpr int64_t stream_bytes = 24 << 20;  // a smaller result is still there when it is read next

// Whether y goes past the caches, where the store of a whole line does not read it first: every row begins
// where a line does.
template <class T>
static inline bool streams(const Rows<T>& y) {
    return y.rows * y.cols * (int64_t)sizeof(T) >= stream_bytes && (uintptr_t)y.data % 64 == 0 &&
           y.stride * (int64_t)sizeof(T) % 64 == 0;
}

static inline void stream(float* p, Vec x) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)x);
#elif defined(__SSE2__)
    _mm_stream_ps(p, (__m128)x);
#else
    store(p, x);
#endif
}
static inline void stream(bf16* p, Vec x) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(x));
#elif defined(__AVX__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(x));
#else
    store(p, x);
#endif
}

// put, or past the caches; after the last of them, stream_end.
template <bool past, class T, class N>
static inline void deliver(T* p, N n, Vec x) {
    if constexpr (past && sizeof(N) == sizeof(All))
        stream(p, x);
    else
        put(p, n, x);
}
static inline void stream_end() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// elements of a dense result: body(i, n) is the register that belongs at y + i.
template <class T, class F>
static inline void fill(const Flat<T>& y, double bytes, const F& body) {
    constexpr int64_t line = 64;  // elements: whole lines of either type
    if (!streams(Rows<T>{y.data, 1, y.size, 0})) {
        elements(y.size, bytes, [&](int64_t i, auto n) { put(y + i, n, body(i, n)); });
        return;
    }
    parallel_for((y.size + line - 1) / line, bytes * line, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * line, last = end * line < y.size ? end * line : y.size;
        registers(last - first, [&](int64_t i, auto n) { deliver<true>(y + first + i, n, body(first + i, n)); });
        stream_end();
    });
}

}  // namespace nn::NN_LEVEL
