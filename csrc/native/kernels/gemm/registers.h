// Panels of bfloat16 for sums in registers, and the micro-kernel on them.
//
// Elements lie in pairs along k, as vdpbf16ps (AVX-512-BF16) and bfdot (Arm) want them; the other levels take
// a pair apart with a shift and a mask and use two multiply-adds.
//     a: panels of mr rows, [k/2][mr]      b: panels of nr columns, [k/2][nr]      padded with zeros
#pragma once
#include "kernels/gemm/operand.h"

namespace nn::NN_LEVEL {

#if defined(__AVX512F__)
constexpr int mr = 12, nv = 2;  // 24 sums + 4 halves of b + 2 of a, in 32 registers
#elif defined(__aarch64__)
constexpr int mr = 8, nv = 2;
#else
constexpr int mr = 4, nv = 2;  // 8 + 4 + 2 in 16
#endif
constexpr int nr = nv * width;
constexpr int pair_step = 1;
constexpr bool either_side = false;  // whether sums of exchanged operands may be transposed
template <class T>
constexpr int parts = 1;
template <class T>
constexpr double rate = 4;  // multiplications in the time of moving a byte

struct Tiles {
    ~Tiles() {}  // not trivial: no warning of an unused variable
};

// own[R][nv] += R rows of a panel of a times nv registers of b that lie `apart`, over `pairs` pairs, `step`
// words of b each.  `own` is to be a local array of the caller's: sums that a and b might be read from would
// be written at every step.
template <int R, int step>
static inline void add_dots(Vec (&own)[R][nv], const uint32_t* a, const uint32_t* b, int64_t apart,
                            int64_t pairs) {
    for (int64_t k = 0; k < pairs; ++k, a += mr, b += step) {
        Bits column[nv];
        for (int v = 0; v < nv; ++v) memcpy(&column[v], b + v * apart, sizeof(Bits));
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) {
            const Bits row = Bits{} + a[i];
#pragma GCC unroll 2
            for (int v = 0; v < nv; ++v) own[i][v] = dot2(own[i][v], row, column[v]);
        }
    }
}

// sums[mr][nr] (+)= a panel of a times one of b, over `pairs` pairs
template <class T>
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs,
                                bool add = false) {
    Vec own[mr][nv];
    for (int i = 0; i < mr; ++i)
        for (int v = 0; v < nv; ++v) own[i][v] = add ? sums[i][v] : Vec{};
    add_dots<mr, nr>(own, a, b, width, pairs);
    memcpy(&sums, &own, sizeof own);
}

struct Nothing {};
template <class T, class Meanwhile>  // which the same units would do: nothing to gain here
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs,
                                bool add, const Meanwhile&) {
    micro_kernel<T>(sums, a, b, pairs, add);
}

// ---- packing ----

static inline uint32_t pair_at(const bf16* p, int64_t inner) {
    return (uint32_t)p[0].bits | (uint32_t)p[inner].bits << 16;
}

static inline Short load_short(const bf16* p) {
    Short x;
    memcpy(&x, p, sizeof x);
    return x;
}

// Rows of a panel of `size`, as many at once as it has or a register takes, and as many pairs as registers
// can take; how many that is.
template <int size>
constexpr int at_once = size < width ? size : width;
template <int size>
static inline int64_t pack_registers(uint32_t* to, const Operand<bf16>& from, int64_t first, int64_t k) {
    constexpr size_t bytes = at_once<size> * sizeof(uint32_t);
    int64_t u = 0;
    if (from.inner != 1) {
        for (; u < k / 2; ++u) {
            const bf16* const p = from.data + first + 2 * u * from.inner;
            const Bits both = __builtin_convertvector(load_short(p), Bits) |
                              __builtin_convertvector(load_short(p + from.inner), Bits) << 16;
            memcpy(to + u * size, &both, bytes);
        }
    } else {
        for (; u + width <= k / 2; u += width) {
            Bits rows_here[width] = {};
            for (int i = 0; i < at_once<size>; ++i)
                memcpy(&rows_here[i], from.row(first + i) + 2 * u, sizeof(Bits));
            transpose(rows_here);
            for (int i = 0; i < width; ++i) memcpy(to + (u + i) * size, &rows_here[i], bytes);
        }
    }
    return u;
}

// One panel of `size` rows from row `first`, `count` of which there are.
template <bool is_a, class T>
static inline Range pack_panel(uint32_t* to, const Operand<T>& from, int64_t first, int64_t count,
                               int64_t k) {
    constexpr int size = is_a ? mr : nr;
    const int64_t pairs = (k + 1) / 2, here = count - first < size ? count - first : size;
    for (int64_t i = 0; i < size;) {
        // where k is not contiguous a whole register is read
        const bool whole = i + (from.inner == 1 ? at_once<size> : width) <= count - first;
        const int64_t done = whole ? pack_registers<size>(to + i, from, first + i, k) : 0;
        for (const int64_t end = i + (whole ? at_once<size> : 1); i < end; ++i) {
            int64_t u = done;
            if (i < here) {
                const bf16* const row = from.inner == 1 ? from.row(first + i) : from.data + first + i;
                for (; u < k / 2; ++u)
                    to[u * size + i] = pair_at(row + 2 * u * from.inner, from.inner);
                if (k % 2 && u < pairs) to[u++ * size + i] = row[(k - 1) * from.inner].bits;
            }
            for (; u < pairs; ++u) to[u * size + i] = 0;
        }
    }
    return {};
}

// Several panels, `words` apart.
template <bool is_a, class T>
static inline Range pack_panels(uint32_t* to, int64_t words, const Operand<T>& from, int64_t first,
                                int64_t count, int64_t number, int64_t k) {
    for (int64_t q = 0; q < number; ++q)
        pack_panel<is_a>(to + q * words, from, first + q * (is_a ? mr : nr), count, k);
    return {};
}

}  // namespace nn::NN_LEVEL
