// Whether memory still holds what it held, without a copy of it.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

namespace nn {

// Of the bits, place by place: four chains of multiplications, which tell any two contents apart but with
// probability 2^-64 or so.  Copies of all gradients of a model would be as large as the model.
struct Fingerprint {
    uint64_t chain[4] = {1, 2, 3, 4};
    bool operator==(const Fingerprint&) const = default;
};
inline Fingerprint fingerprint(const char* data, int64_t bytes) {
    Fingerprint f;
    const auto mix = [&f](int i, uint64_t word) {
        const uint64_t x = (f.chain[i] ^ word) * 0x9e3779b97f4a7c15u;
        f.chain[i] = x ^ (x >> 29);
    };
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        uint64_t word[4];
        std::memcpy(word, data + at, 32);
        for (int i = 0; i < 4; ++i) mix(i, word[i]);
    }
    for (; at < bytes; ++at) mix(0, static_cast<unsigned char>(data[at]));
    return f;
}

// Of the bits, or, of large memory, of evenly spread stretches and the end: weights are not read as a whole.
inline Fingerprint samples(const char* data, int64_t bytes) {
    constexpr int64_t whole = int64_t(1) << 20, stretch = 256, count = whole / stretch;
    if (bytes <= whole) return fingerprint(data, bytes);
    std::vector<char> chosen(whole);
    for (int64_t i = 0; i < count; ++i)  // step by step: bytes * i may be too large
        std::memcpy(chosen.data() + i * stretch, data + (bytes - stretch) / (count - 1) * i, stretch);
    std::memcpy(chosen.data() + whole - stretch, data + bytes - stretch, stretch);
    return fingerprint(chosen.data(), whole);
}

}  // namespace nn
