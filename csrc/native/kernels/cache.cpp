// New keys and values behind those that a cache holds; how many it holds is read from memory.
#include "kernels/heads.h"

namespace nn::NN_LEVEL {

template <class T>
static inline void append(const Heads<T>& cache, const Heads<const T>& fresh, const Ints& lengths) {
    const double bytes = (double)fresh.length * (double)fresh.width * 2 * sizeof(T);
    parallel_for(fresh.batch * fresh.heads, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / fresh.heads, h = i % fresh.heads, held = lengths[b];
            for (int64_t t = 0; t < fresh.length && held + t < cache.length; ++t)
                memcpy(cache.row(b, h, held + t), fresh.row(b, h, t), (size_t)fresh.width * sizeof(T));
        }
    });
}

template <class T>
static bool cache_append(const Call& call) {
    const auto lengths = ints(call, 4);
    for (int64_t b = 0; b < lengths.size; ++b)
        if (lengths[b] < 0) return false;
    append(heads<T>(call, 0), heads<const T>(call, 2), lengths);
    append(heads<T>(call, 1), heads<const T>(call, 3), lengths);
    return true;
}
NN_KERNEL("cache_append(&k_cache[B,G,S,D], &v_cache[B,G,S,Dv], k[B,G,T,D], v[B,G,T,Dv], lengths[B]:int)",
          cache_append, float, bf16)

}  // namespace nn::NN_LEVEL
