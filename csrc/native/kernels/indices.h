// Integer arguments that kernels index with: checked before anything is written.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// Whether all of them lie in [0, limit).
static inline bool all_below(const Ints& index, int64_t limit) {
    bool good = true;
    for (int64_t i = 0; i < index.size; ++i) good &= (uint64_t)index[i] < (uint64_t)limit;
    return good;
}

// Whether the two are permutations and each other's inverse.
static inline bool inverse_of_each_other(const Ints& order, const Ints& inverse) {
    if (order.size != inverse.size || !all_below(inverse, order.size)) return false;
    bool good = true;
    for (int64_t i = 0; i < inverse.size; ++i) good &= order[inverse[i]] == i;
    return good;
}

// Whether they begin with 0, do not fall, and end with `most` at most.
static inline bool are_offsets(const Ints& offsets, int64_t most) {
    bool good = offsets.size > 0 && offsets[0] == 0 && offsets[offsets.size - 1] <= most;
    for (int64_t i = 1; i < offsets.size; ++i) good &= offsets[i - 1] <= offsets[i];
    return good;
}

}  // namespace nn::NN_LEVEL
