// What the elementwise kernels share: which elements a thread takes, in units of 16 bytes where that is
// allowed.
#pragma once

#include "device/activation.cuh"
#include "device/arguments.h"
#include "device/launch.h"
#include "device/pack.cuh"

namespace nn {

constexpr int TILE_THREADS = 256;

template <class T> constexpr int TILE = TILE_THREADS * PACK<T>;

// A thread's elements first, first + step, ... of a tile: neighbours, or, where the arrays may not be read in
// units of 16 bytes, one per TILE_THREADS, so that a warp's are neighbours.
template <class T> struct Place {
    int64_t first;
    int step, count;                                             // count <= PACK<T>

    __device__ __forceinline__ Place(int64_t tile, int64_t n, bool vector) {
        first = tile + threadIdx.x * (vector ? PACK<T> : 1);
        step = vector ? 1 : TILE_THREADS;
        int64_t left = n - first;
        if (!vector) left = (left + TILE_THREADS - 1) / TILE_THREADS;
        count = static_cast<int>(left < 0 ? 0 : left < PACK<T> ? left : PACK<T>);
    }
    __device__ __forceinline__ bool whole() const { return step == 1 && count == PACK<T>; }
};

struct Dense {                                                   // where element i lies: at i
    __device__ __forceinline__ int64_t operator()(int64_t i) const { return i; }
};

// Rows of `cols` elements with `gap` elements between them; in the vector path cols and gap are whole packs.
struct Gapped {
    int64_t cols, gap;

    __device__ __forceinline__ int64_t operator()(int64_t i) const {
        if (gap == 0) return i;
        if ((i | cols) >> 32) return i + i / cols * gap;
        return i + static_cast<uint32_t>(i) / static_cast<uint32_t>(cols) * gap;
    }
};

// The thread's elements as they are stored.  Fetch all operands before the first is unpacked: what waits for
// one load delays the next.
template <class T, class Where = Dense>
__device__ __forceinline__ Pack<T, PACK<T>> fetch(const T* x, const Place<T>& place, Where where = {}) {
    if (place.whole()) return load_pack<PACK<T>>(x + where(place.first));
    Pack<T, PACK<T>> pack;
#pragma unroll
    for (int j = 0; j < PACK<T>; ++j)
        pack[j] = j < place.count ? x[where(place.first + j * place.step)] : from_float<T>(0.0f);
    return pack;
}

template <class T, class Where = Dense>
__device__ __forceinline__ void store(T* y, const float (&v)[PACK<T>], const Place<T>& place,
                                      Where where = {}) {
    if (place.whole()) {
        store_floats(y + where(place.first), v);
    } else {
#pragma unroll
        for (int j = 0; j < PACK<T>; ++j)
            if (j < place.count) y[where(place.first + j * place.step)] = from_float<T>(v[j]);
    }
}

}  // namespace nn
