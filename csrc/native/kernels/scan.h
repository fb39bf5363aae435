// What the selective scan's forward and backward share: groups of channels, states laid out by channels.
#pragma once
#include "kernels/steps.h"

namespace nn::NN_LEVEL {

constexpr int64_t together = 64;  // channels of a group, which one thread takes through all tokens
static inline int64_t groups_of(int64_t channels) { return (channels + together - 1) / together; }

// Channels [first, first + count) of one text
struct Channels {
    int64_t batch, index, first, count;
    Channels(int64_t at, int64_t channels)
        : batch(at / groups_of(channels)),
          index(at % groups_of(channels)),
          first(index * together),
          count(channels - first < together ? channels - first : together) {}
};

// What a group costs, as parallel_for has it: about 30 cycles per register of a state, forward and backward
static inline double group_bytes(int64_t tokens, int64_t states) {
    return (double)tokens * (double)states * together * 4.0;
}

// to[N][together] of from[count][N]; channels beyond count are 0
static inline void channels_last(float* to, const float* from, int64_t stride, int64_t count,
                                 int64_t states) {
    for (int64_t c = 0; c < together; c += width)
        for (int64_t n = 0; n < states; n += width) {
            const int64_t wide = states - n < width ? states - n : width;
            Bits block[width];
            for (int64_t i = 0; i < width; ++i)
                block[i] = c + i < count ? bits_of(get(from + (c + i) * stride + n, wide)) : Bits{};
            transpose(block);
            for (int64_t i = 0; i < wide; ++i) store(to + (n + i) * together + c, float_of(block[i]));
        }
}
static inline void channels_first(float* to, int64_t stride, const float* from, int64_t count,
                                  int64_t states) {
    for (int64_t c = 0; c < count; c += width)
        for (int64_t n = 0; n < states; n += width) {
            const int64_t wide = states - n < width ? states - n : width;
            Bits block[width];
            for (int64_t i = 0; i < width; ++i)
                block[i] = i < wide ? bits_of(load(from + (n + i) * together + c)) : Bits{};
            transpose(block);
            for (int64_t i = 0; i < width && c + i < count; ++i)
                put(to + (c + i) * stride + n, wide, float_of(block[i]));
        }
}

// a[C,N] by groups: [N][together] each
struct Rates {
    int64_t states;
    Scratch<float> at;
    explicit Rates(const Rows<const float>& a)
        : states(a.cols), at(groups_of(a.rows) * together * a.cols) {
        parallel_for(groups_of(a.rows), (double)(together * states) * 8.0, [&](int64_t begin, int64_t end) {
            for (int64_t g = begin; g < end; ++g) {
                const Channels group(g, a.rows);
                channels_last(at + g * together * states, a[group.first], a.stride, group.count, states);
            }
        });
    }
    const float* operator[](int64_t group) const { return at + group * together * states; }
};

template <class T>
static inline void widened(float* to, const T* from, int64_t count) {
    registers(count, [&](int64_t i, auto n) { put(to + i, n, get(from + i, n)); });
}

// to[0..count) = the sums of lanes[count][width]
static inline void add_lanes(float* to, const float* lanes, int64_t size) {
    for (int64_t k = 0; k < size; k += width) {
        const int64_t count = size - k < width ? size - k : width;
        Bits block[width];
        for (int64_t i = 0; i < width; ++i)
            block[i] = i < count ? bits_of(load(lanes + (k + i) * width)) : Bits{};
        transpose(block);
        for (int64_t half = width / 2; half; half /= 2)
            for (int64_t i = 0; i < half; ++i)
                block[i] = bits_of(float_of(block[i]) + float_of(block[i + half]));
        put(to + k, count, float_of(block[0]));
    }
}

// Tokens [begin, end) of part i of `parts`
struct ScanPart {
    int64_t begin, end;
    ScanPart(int64_t i, int64_t parts, int64_t tokens) {
        const int64_t size = (tokens + parts - 1) / parts;
        begin = i * size < tokens ? i * size : tokens;
        end = begin + size < tokens ? begin + size : tokens;
    }
};

}  // namespace nn::NN_LEVEL
