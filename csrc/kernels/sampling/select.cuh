// Exact thresholds: the shortest prefix of the tokens, the likeliest first, that holds enough of them (top-k)
// or of their weight (top-p).
#pragma once

#include "histogram.cuh"
#include "row.cuh"

namespace nn {

// Top-k: by scaled logit, which is at most 0.  Its bits without the sign rise as it falls.
template <class T> struct ByLogit {
    using Value = T;
    const Row<T>& row;
    const T* values;

    __device__ __forceinline__ bool key(uint32_t i, T value, uint32_t& key, uint64_t& amount) const {
        key = __float_as_uint(fabsf(row.scaled(i, value))), amount = 1;
        return true;
    }
    static __device__ __forceinline__ uint32_t bin(uint32_t key) {
        return uint32_t(fminf(__uint_as_float(key) * 32.0f, float(BINS - 1)));
    }
    static __device__ __forceinline__ void range(uint32_t bin, uint32_t& low, uint32_t& high) {
        low = __float_as_uint(float(bin) * 0.03125f);
        high = bin == BINS - 1 ? 0x7f800000u : __float_as_uint(float(bin + 1) * 0.03125f) - 1;
    }
};

// Top-p: by weight w in 1 ... 2^32, key 2^32 - w.  Bins: 32 to an octave.
template <class T> struct ByWeight {
    using Value = uint32_t;
    const Row<T>& row;
    const uint32_t* values;
    uint64_t least;                  // no lighter token can be needed

    __device__ __forceinline__ uint64_t weight(uint32_t i, uint32_t value) const {
        return value != SATURATED ? value : weight_of(row.scaled(i, row.logits[i]));
    }
    __device__ __forceinline__ bool key(uint32_t i, uint32_t value, uint32_t& key, uint64_t& amount) const {
        amount = weight(i, value), key = uint32_t(0) - uint32_t(amount);
        return amount >= least;
    }
    static constexpr uint32_t LAST = 28 * 32;                    // of 2^32, in order of rising weight
    static __device__ __forceinline__ uint32_t bin(uint32_t key) {
        const uint64_t w = (uint64_t(1) << 32) - key;
        const int octave = 63 - __clzll(int64_t(w));
        if (octave < 5) return LAST - uint32_t(w);
        return LAST - (uint32_t(octave - 4) << 5 | (uint32_t(w >> (octave - 5)) & 31));
    }
    static __device__ __forceinline__ void range(uint32_t bin, uint32_t& low, uint32_t& high) {
        const uint32_t rising = LAST - bin;
        const int shift = rising < 32 ? 0 : int(rising >> 5) - 1;
        const uint64_t lightest = uint64_t(rising < 32 ? rising : (rising & 31) | 32) << shift;
        const uint64_t heaviest = rising == LAST ? lightest : lightest + (uint64_t(1) << shift) - 1;
        low = uint32_t((uint64_t(1) << 32) - heaviest), high = uint32_t((uint64_t(1) << 32) - lightest);
    }
};

__device__ __forceinline__ int digit_shift(uint32_t span) {
    const int bits = 32 - __clz(int(span));
    return bits > BIN_BITS ? bits - BIN_BITS : 0;
}

// The end of the shortest prefix, in order of (key, id), that holds at least `need`.
template <class Keys> __device__ Cut select(const Keys& keys, uint32_t size, uint64_t need,
                                            Histogram& histogram) {
    const uint32_t all = ~uint32_t(0);
    uint32_t low = 0, high = all;
    // digits of keys, the first one spread
    for (bool first = true; first || low < high; first = false) {
        const int shift = first ? 0 : digit_shift(high - low);
        histogram.clear();
        each(keys.values, 0, size, threadIdx.x, blockDim.x,
             [&](uint32_t i, typename Keys::Value value, bool valid) {
            uint32_t key = 0;
            uint64_t amount = 0;
            valid = valid && keys.key(i, value, key, amount) && key >= low && key <= high;
            histogram.add(first ? Keys::bin(key) : (key - low) >> shift, amount, valid);
        });
        histogram.find(need);
        const uint64_t before = histogram.before, inside = histogram.inside;
        const uint32_t bin = histogram.bin;
        need -= before;
        if (first) {
            Keys::range(bin, low, high);
        } else {
            low += bin << shift;
            high = min(high, low + ((uint32_t(1) << shift) - 1));
        }
        if (inside == need) return {high, all};
    }
    // equal keys: digits of ids
    const uint32_t tied = low;
    low = 0, high = size - 1;
    while (low < high) {
        const int shift = digit_shift(high - low);
        histogram.clear();
        each(keys.values, 0, size, threadIdx.x, blockDim.x,
             [&](uint32_t i, typename Keys::Value value, bool valid) {
            uint32_t key = 0;
            uint64_t amount = 0;
            valid = valid && i >= low && i <= high && keys.key(i, value, key, amount) && key == tied;
            histogram.add((i - low) >> shift, amount, valid);
        });
        histogram.find(need);
        need -= histogram.before;
        low += histogram.bin << shift;
        high = min(high, low + ((uint32_t(1) << shift) - 1));
        if (histogram.inside == need) break;
    }
    return {tied, high};
}

}  // namespace nn
