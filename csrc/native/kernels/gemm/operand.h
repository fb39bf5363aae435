// An operand of a matrix product c = a bT as it lies in memory.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

template <class T>
struct Operand {  // element (i, k) of a, or (j, k) of b: k is the axis of the sum
    const T* data;
    int64_t outer, inner;            // strides along i or j, and along k; one of them is 1
    const int64_t* which = nullptr;  // rows gathered: row i is the which[i]-th (inner must be 1)

    const T* row(int64_t i) const { return data + (which ? which[i] : i) * outer; }
    Operand from(int64_t k) const { return {data + k * inner, outer, inner, which}; }
};

static inline int64_t panels(int64_t count, int64_t size) { return (count + size - 1) / size; }

// What packing saw of its elements: the absolute bits of the smallest largest element of a row that is not
// all zero, and of the largest of all; NaN counts as larger than infinity.
struct Range {
    uint32_t least = 0x7f800000, most = 0;
    void add(uint32_t of_a_row) {
        if (of_a_row > most) most = of_a_row;
        if (of_a_row && of_a_row < least) least = of_a_row;
    }
    void add(const Range& other) {
        if (other.most > most) most = other.most;
        if (other.least < least) least = other.least;
    }
};

// Float32 on tiles: whether nothing of the two operands' rows gets lost in what tiles flush to zero, below
// 2^-126, and no part overflows.  Otherwise BLAS computes this chunk of this block of k, and a grouped
// product is formed without tiles.
static inline bool fits(const Range& a, const Range& b, int64_t k) {
    constexpr uint32_t large = 0x5d800000, one = 0x3f800000, infinite = 0x7f800000;  // 2^60
    if (a.most >= large || b.most >= large) return false;
    float x, y;
    const uint32_t least_a = a.least == infinite ? one : a.least, least_b = b.least == infinite ? one : b.least;
    memcpy(&x, &least_a, sizeof x);
    memcpy(&y, &least_b, sizeof y);
    return (double)x * y / ((double)x + y + 1.0) >= (double)k * 0x1p-96;
}

}  // namespace nn::NN_LEVEL
