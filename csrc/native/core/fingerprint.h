// Whether memory still holds what it held, without a copy of it.
#pragma once
#include <cstdint>

namespace nn {

// Of the bits, place by place: chains of multiplications, which tell any two contents apart but with
// probability 2^-64 or so.  Copies of all gradients of a model would be as large as the model.
struct Fingerprint {
    uint64_t chain[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    bool operator==(const Fingerprint&) const = default;
};

// The same whatever the threads that it is formed by.
Fingerprint fingerprint(const char* data, int64_t bytes);

// Of the bits, or, of large memory, of evenly spread stretches and the end: weights are not read as a whole.
Fingerprint samples(const char* data, int64_t bytes);

}  // namespace nn
