// bfloat16 matrix product with float32 sums: both operands packed, one micro-kernel.
//
// Elements lie in pairs along k, as vdpbf16ps (AVX-512-BF16) and bfdot (Arm) want them; the other levels take
// a pair apart with a shift and a mask and use two multiply-adds, so that the packed form is one everywhere:
//     a: panels of mr rows, [k/2][mr][2]      b: panels of nr columns, [k/2][nr][2]      padded with zeros
// The micro-kernel keeps mr x nr sums in registers over the whole of k.  Every sum is formed in the order of
// k by one register lane: an element does not depend on the tile it lies in, nor on the other rows.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

#if defined(__AVX512F__)
constexpr int mr = 12, nv = 2;  // 24 sums + 4 halves of b + 2 of a, in 32 registers
#elif defined(__aarch64__)
constexpr int mr = 8, nv = 2;
#else
constexpr int mr = 4, nv = 2;  // 8 + 4 + 2 in 16
#endif
constexpr int nr = nv * width;

// sums[mr][nr] of one panel of a and one of b, over `pairs` pairs
static inline void micro_kernel(Vec (&sums)[mr][nv], const uint32_t* a, const uint32_t* b, int64_t pairs) {
    for (int i = 0; i < mr; ++i)
        for (int v = 0; v < nv; ++v) sums[i][v] = Vec{};
    for (int64_t k = 0; k < pairs; ++k, a += mr, b += nr) {
        Bits column[nv];
        for (int v = 0; v < nv; ++v) memcpy(&column[v], b + v * width, sizeof(Bits));
#pragma GCC unroll 12
        for (int i = 0; i < mr; ++i) {
            const Bits row = Bits{} + a[i];
#pragma GCC unroll 2
            for (int v = 0; v < nv; ++v) sums[i][v] = dot2(sums[i][v], row, column[v]);
        }
    }
}

struct Operand {  // element (i, k) of a, or (j, k) of b: k is the axis of the sum
    const bf16* data;
    int64_t outer, inner;  // strides along i or j, and along k
};

static inline int64_t panels(int64_t count, int size) { return (count + size - 1) / size; }

// One panel: `size` rows of the operand from row `first`, `count` of which there are.
template <int size>
static inline void pack_panel(uint32_t* to, const Operand& from, int64_t first, int64_t count, int64_t k) {
    const int64_t here = count - first < size ? count - first : size;
    for (int64_t pair = 0; pair < k / 2; ++pair, to += size)
        for (int64_t i = 0; i < size; ++i) {
            if (i >= here) {
                to[i] = 0;
                continue;
            }
            const bf16* const p = from.data + (first + i) * from.outer + 2 * pair * from.inner;
            to[i] = (uint32_t)p[0].bits | (uint32_t)p[from.inner].bits << 16;
        }
    if (k % 2)
        for (int64_t i = 0; i < size; ++i)
            to[i] = i < here ? from.data[(first + i) * from.outer + (k - 1) * from.inner].bits : 0u;
}

// Along k dense: a row is read as it lies, one panel row after the other.
template <int size>
static inline void pack_dense(uint32_t* to, const Operand& from, int64_t first, int64_t count, int64_t k) {
    const int64_t pairs = (k + 1) / 2, here = count - first < size ? count - first : size;
    constexpr int64_t step = 64;  // pairs at a time, so that what is written stays in the first cache
    for (int64_t start = 0; start < pairs; start += step) {
        const int64_t stop = start + step < k / 2 ? start + step : k / 2;
        for (int64_t i = 0; i < size; ++i) {
            const bf16* const row = from.data + (first + i) * from.outer;
            for (int64_t pair = start; pair < stop; ++pair) {
                uint32_t both = 0;
                if (i < here) memcpy(&both, row + 2 * pair, sizeof both);
                to[pair * size + i] = both;
            }
        }
    }
    if (k % 2)
        for (int64_t i = 0; i < size; ++i)
            to[(pairs - 1) * size + i] = i < here ? from.data[(first + i) * from.outer + k - 1].bits : 0u;
}

template <int size>
static inline void pack(uint32_t* to, const Operand& from, int64_t count, int64_t k) {
    const int64_t pairs = (k + 1) / 2;
    parallel_for(panels(count, size), (double)(size * pairs) * 12, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            uint32_t* const panel = to + p * size * pairs;
            if (from.inner == 1)
                pack_dense<size>(panel, from, p * size, count, k);
            else
                pack_panel<size>(panel, from, p * size, count, k);
        }
    });
}

template <class Out>
static inline void write_tile(Out* c, int64_t ldc, const Vec (&sums)[mr][nv], int64_t rows_here,
                              int64_t cols_here, const bf16* bias) {
    for (int64_t i = 0; i < rows_here; ++i)
        for (int v = 0; v < nv; ++v) {
            const int64_t left = cols_here - v * width;
            if (left <= 0) continue;
            Vec y = sums[i][v];
            Out* const to = c + i * ldc + v * width;
            if (left >= width) {
                if (bias) y += load(bias + v * width);
                store(to, y);
            } else {
                if (bias) y += load(bias + v * width, left);
                store(to, y, left);
            }
        }
}

// c[m,n] = a bT (+ bias[n]) with a[m,k], b[n,k] as Operand has them.
template <class Out>
static inline void gemm_bf16(Out* c, int64_t ldc, const Operand& a, const Operand& b, int64_t m, int64_t n,
                             int64_t k, const bf16* bias = nullptr) {
    const int64_t pairs = (k + 1) / 2, row_panels = panels(m, mr), col_panels = panels(n, nr);
    if (m == 0 || n == 0) return;
    const Scratch<uint32_t> packed_a(row_panels * mr * pairs), packed_b(col_panels * nr * pairs);
    pack<mr>(packed_a.data, a, m, k);
    pack<nr>(packed_b.data, b, n, k);
    // tiles of 8 x 8 panels: a's stay in the second cache, a panel of b in the first while 8 of a pass by
    constexpr int64_t side = 8;
    const int64_t across = panels(col_panels, side), tiles = panels(row_panels, side) * across;
    parallel_for(tiles, (double)(side * side * mr * nr) * (double)k / 8, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t top = tile / across * side, left = tile % across * side;
            for (int64_t q = left; q < left + side && q < col_panels; ++q)
                for (int64_t p = top; p < top + side && p < row_panels; ++p) {
                    Vec sums[mr][nv];
                    micro_kernel(sums, packed_a + p * mr * pairs, packed_b + q * nr * pairs, pairs);
                    const int64_t rows_here = m - p * mr < mr ? m - p * mr : mr;
                    write_tile(c + p * mr * ldc + q * nr, ldc, sums, rows_here, n - q * nr,
                               bias ? bias + q * nr : bias);
                }
        }
    });
}

}  // namespace nn::NN_LEVEL
