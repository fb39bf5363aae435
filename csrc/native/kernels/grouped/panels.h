// The two kinds of packed panels and micro-kernels that grouped products are made of, under one interface:
//     GemmPanels<T>   kernels/gemm: bfloat16, and float32 in three parts where there are tiles (AMX)
//     FloatPanels     float32 by multiply-adds, on every level
// Every sum is formed in the order of k, in blocks of k_block: a row's bits depend neither on its place nor
// on the other rows.  (A BLAS promises neither, hence no BLAS here.)
#pragma once
#if defined(__AMX_BF16__)
#include "kernels/gemm/tiles.h"
#else
#include "kernels/gemm/registers.h"
#endif

namespace nn::NN_LEVEL {

template <class Panels>
using Sums = Vec[Panels::rows][2];

template <class T>
struct GemmPanels {
    using Unit = uint32_t;
    using Element = T;
    using Loop = Tiles;
    static_assert(nv == 2);
    static constexpr int rows = mr, cols = nr;
    static constexpr int64_t step = 2 * pair_step;  // of k: what packing pads to
    static int64_t pairs(int64_t k) { return ((k + 1) / 2 + pair_step - 1) / pair_step * pair_step; }
    static int64_t units(int64_t k) { return pairs(k) * parts<T>; }  // per row or column of a panel
    template <bool is_a>
    static Range pack(Unit* to, const Operand<T>& from, int64_t first, int64_t count, int64_t k) {
        return pack_panel<is_a>(to, from, first, count, k);
    }
    template <class Meanwhile>
    static void multiply(Sums<GemmPanels>& sums, const Unit* a, const Unit* b, int64_t k, bool add,
                         Meanwhile&& meanwhile) {
        micro_kernel<T>(sums, a, b, pairs(k), add, meanwhile);
    }
};

struct FloatPanels {
    using Unit = float;
    using Element = float;
    struct Loop {
        ~Loop() {}  // not trivial: no warning of an unused variable
    };
#if defined(__AVX512F__)
    static constexpr int rows = 12;  // 24 sums + 2 of b + 1 of a, in 32 registers
#elif defined(__AVX__)
    static constexpr int rows = 6;  // 12 + 2 + 1 in 16
#elif defined(__aarch64__)
    static constexpr int rows = 8;
#else
    static constexpr int rows = 4;
#endif
    static constexpr int cols = 2 * width;
    static constexpr int64_t step = 1;
    static int64_t units(int64_t k) { return k; }

    // [k][rows or cols], padded with zeros
    template <bool is_a>
    static Range pack(float* to, const Operand<float>& from, int64_t first, int64_t count, int64_t k) {
        constexpr int size = is_a ? rows : cols;
        for (int group = 0; group < size; group += width) {
            constexpr int lanes = size < width ? size : width;
            const int64_t left = count - first - group, here = left < 0 ? 0 : left > width ? width : left;
            const size_t bytes = (size_t)(size - group < lanes ? size - group : lanes) * sizeof(float);
            if (from.inner != 1) {
                for (int64_t i = 0; i < k; ++i) {
                    const Vec x = load(from.data + first + group + i * from.inner, here);
                    memcpy(to + i * size + group, &x, bytes);
                }
                continue;
            }
            for (int64_t i = 0; i < k; i += width) {
                const int64_t n = k - i < width ? k - i : width;
                Bits block[width];
                for (int r = 0; r < width; ++r)
                    block[r] = bits_of(r < here ? load(from.row(first + group + r) + i, n) : Vec{});
                transpose(block);
                for (int64_t j = 0; j < n; ++j) memcpy(to + (i + j) * size + group, &block[j], bytes);
            }
        }
        return {};
    }

    template <class Meanwhile>
    static void multiply(Sums<FloatPanels>& sums, const float* a, const float* b, int64_t k, bool add,
                         Meanwhile&&) {
        Vec own[rows][2];
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < 2; ++v) own[i][v] = add ? sums[i][v] : Vec{};
        for (; k > 0; --k, a += rows, b += cols) {
            const Vec first = load(b), second = load(b + width);
#pragma GCC unroll 12
            for (int i = 0; i < rows; ++i) {
                const Vec row = set(a[i]);
                own[i][0] += row * first;
                own[i][1] += row * second;
            }
        }
        memcpy(&sums, &own, sizeof own);
    }
};

// Which of them a type takes.  Floats in parts are no floats any more near infinity, or where all of an
// operand is tiny: such results are formed again, by FloatPanels.
template <class T>
struct Choice {
    using Panels = GemmPanels<T>;
    static constexpr bool exact = parts<T> == 1;
};
#if !defined(__AMX_BF16__)
template <>
struct Choice<float> {
    using Panels = FloatPanels;
    static constexpr bool exact = true;
};
#endif

// What packing saw in an operand, in all threads.
struct Extent {
    Range all;
    void add(const Range& range) {
        replace(all.least, range.least, [](uint32_t known, uint32_t seen) { return seen < known; });
        replace(all.most, range.most, [](uint32_t known, uint32_t seen) { return seen > known; });
    }
    bool fits(const Extent& other, int64_t k) const { return NN_LEVEL::fits(all, other.all, k); }

  private:
    template <class Better>
    static void replace(uint32_t& place, uint32_t seen, const Better& better) {
        uint32_t known = __atomic_load_n(&place, __ATOMIC_RELAXED);
        while (better(known, seen) &&
               !__atomic_compare_exchange_n(&place, &known, seen, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    }
};

}  // namespace nn::NN_LEVEL
