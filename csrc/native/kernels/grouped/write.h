// From sums in panels to rows in memory.
#pragma once
#include "kernels/grouped/panels.h"

namespace nn::NN_LEVEL {

// Where results go.  Past the caches if they are larger: reading every line before it is written whole would
// double what memory moves, and nobody reads them soon.
template <class T>
struct Target {
    Rows<T> to;
    bool past_caches;
    explicit Target(const Rows<T>& all, int64_t bytes) : to(all), past_caches(bytes >= (8 << 20)) {}
    explicit Target(const Rows<T>& all) : Target(all, all.rows * all.cols * (int64_t)sizeof(T)) {}
};

template <class T, class N>
static inline void put_past(T* p, N n, Vec x) {
    put(p, n, x);
}
#if defined(__AVX512F__)
static inline void put_past(float* p, All, Vec x) {
    if ((uintptr_t)p % 64 == 0)
        _mm512_stream_ps(p, (__m512)x);
    else
        store(p, x);
}
static inline void put_past(bf16* p, All, Vec x) {
    if ((uintptr_t)p % 32 == 0)
        _mm256_stream_si256((__m256i*)(void*)p, (__m256i)narrow(x));
    else
        store(p, x);
}
#endif

template <class T, class N>
static inline void put_to(const Target<T>& target, T* p, N n, Vec x) {
    if (target.past_caches)
        put_past(p, n, x);
    else
        put(p, n, x);
}

// What was written past the caches is there before a loop ends.
static inline void fence() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// body(i, panel, v, at, n): the registers of panels side by side, row by row; n lanes of them lie left of
// `cols`, `at` columns into the panels
template <class P, class F>
static inline void for_registers(int64_t rows_here, int64_t count, int64_t cols, const F& body) {
    for (int64_t i = 0; i < rows_here; ++i)
        for (int64_t panel = 0; panel < count; ++panel)
            for (int v = 0; v < 2; ++v) {
                const int64_t at = panel * P::cols + v * width;
                if (cols - at >= width)
                    body(i, panel, v, at, All{});
                else if (cols - at > 0)
                    body(i, panel, v, at, cols - at);
            }
}

template <class P, class T>
static inline void write(const Target<T>& target, int64_t row, int64_t rows_here, int64_t column,
                         int64_t count, const Sums<P>* sums) {
    for_registers<P>(rows_here, count, target.to.cols - column,
                     [&](int64_t i, int64_t panel, int v, int64_t at, auto n) {
                         put_to(target, target.to[row + i] + column + at, n, sums[panel][i][v]);
                     });
}

}  // namespace nn::NN_LEVEL
