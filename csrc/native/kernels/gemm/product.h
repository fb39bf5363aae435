// A matrix product c = a bT on panels: what is packed when, and who computes what.
//
// One operand, the one with fewer rows, is packed once and shared by all threads.  The rows of the other are
// cut in chunks that a thread packs for itself, as large as its second cache takes, and multiplies with all
// panels of the shared one at once: so each element is read from memory once.  Within a chunk a panel of the
// shared operand, up to `sub` elements of k, stays in the first cache while the chunk's panels pass by; tiles
// have both fetched ahead.
// k is cut in blocks that the shared operand's panels must fit in; sums over blocks are kept in float32.
//
// Every sum is formed in the order of k in fixed blocks: an element depends neither on the chunk nor on the
// panel that it lies in, nor on who computes it.  (float32 on tiles: see `fits`.)
#pragma once
#if defined(__AMX_BF16__)
#include "core/blas.h"
#include "kernels/gemm/tiles.h"
#else
#include "kernels/gemm/registers.h"
#endif

namespace nn::NN_LEVEL {

static inline int64_t padded_pairs(int64_t k) {
    return ((k + 1) / 2 + pair_step - 1) / pair_step * pair_step;
}
// what a panel of `size` rows takes, in words of 32 bits
template <class T>
static inline int64_t panel_words(int64_t size, int64_t k) {
    return size * padded_pairs(k) * parts<T>;
}

// c[m,n] = a bT (+ bias[n]) (+ c, where c is float32): a[m,k], b[n,k] as Operand has them.
template <class T, class Out>
struct Product {
    Out* c;
    int64_t ldc;
    Operand<T> a, b;
    int64_t m, n, k;
    const T* bias = nullptr;
    bool add = false;
};

// ---- from sums to c ----

// What c is made of beside the sums: sums of earlier blocks of k, and the bias, for the tile's first element.
template <class T>
struct Beside {
    const float* earlier;
    int64_t stride;
    const T* bias;
};

template <class Out, class T, class N>
static inline void write_some(Out* to, N n, Vec y, const Beside<T>& with, int64_t row, int64_t col) {
    if (with.earlier) y += get(with.earlier + row * with.stride + col, n);
    if (with.bias) y += get(with.bias + col, n);
    put(to, n, y);
}

// A tile of c whose sums are formed.  Where the unit that multiplies is not the one that writes (AMX), it is
// written row by row while the next tile's sums are formed.
template <class T, class Out>
struct Later {
    Out* c = nullptr;
    int64_t ldc = 0, rows = 0, cols = 0;
    const Vec (*sums)[nv] = nullptr;
    Beside<T> with = {};
    int64_t row = 0, each = 0;

    void up_to(int64_t end) {
        for (; row < end && row < rows; ++row)
            for (int v = 0; v < nv; ++v) {
                const int64_t col = v * width, left = cols - col;
                if (left >= width)
                    write_some(c + row * ldc + col, All{}, sums[row][v], with, row, col);
                else if (left > 0)
                    write_some(c + row * ldc + col, left, sums[row][v], with, row, col);
            }
    }
    void begin(int64_t steps) { each = panels(rows, steps > 0 ? steps : 1); }
    void some() { up_to(row + each); }
    void end() { up_to(rows); }
};

// sums of the product with its operands exchanged
static inline void transpose_tile(Vec (&to)[mr][nv], const Vec (&from)[mr][nv]) {
    if constexpr (either_side)
        for (int i = 0; i < nv; ++i)
            for (int j = 0; j < nv; ++j) {
                Bits square[width];
                for (int r = 0; r < width; ++r) square[r] = bits_of(from[i * width + r][j]);
                transpose(square);
                for (int r = 0; r < width; ++r) to[j * width + r][i] = float_of(square[r]);
            }
}

// The rows of c that a tile will be written to are fetched while its sums are formed: they lie far apart.
template <class Out>
static inline void expect_write(const Out* c, int64_t ldc, int64_t rows_here) {
    constexpr int64_t line = 64 / sizeof(Out);
    for (int64_t i = 0; i < mr && i < rows_here; ++i)
        for (int64_t j = 0; j < nr; j += line) __builtin_prefetch(c + i * ldc + j, 1);
}

// ---- how it is cut ----

template <class T>
struct Cut {
    bool by_rows;    // chunks are rows of c; otherwise columns
    bool exchanged;  // b is the micro-kernel's left operand
    int64_t blocks, block;  // of k
    int64_t sub;            // of a block, in pairs
    int64_t chunk;          // rows of the private operand
};

constexpr int64_t second_cache = 1 << 20;  // of its bytes, what packed panels may take

template <class T>
static inline Cut<T> cut(int64_t m, int64_t n, int64_t k, bool a_contiguous, bool b_contiguous) {
    constexpr int64_t most = parts<T> == 1 ? 4096 : 768, most_sub = 256;  // a panel of b: 32 KB
    Cut<T> c;
    c.by_rows = m >= n;
    c.blocks = k > most ? panels(k, most) : 1;
    c.block = panels(panels(k, c.blocks), 2 * pair_step) * 2 * pair_step;
    if (c.block == 0) c.block = 2 * pair_step;
    // Tiles take either operand on the left, where packing rows of contiguous k is a copy; on the right
    // packing the others is.  Exchanged operands' sums are turned.  Counted: elements transposed.
    const double of_a = (double)(m * k) * parts<T>, of_b = (double)(n * k) * parts<T>;
    const double as_they_are = (a_contiguous ? 0 : of_a) + (b_contiguous ? of_b : 0);
    const double exchanged = (a_contiguous ? of_a : 0) + (b_contiguous ? 0 : of_b);
    c.exchanged = either_side && exchanged + 2.0 * (double)(m * n * c.blocks) < as_they_are;
    const int64_t subs = either_side ? 1 : panels(c.block, most_sub);  // tiles fetch ahead instead
    c.sub = panels(panels(c.block, subs), 2 * pair_step) * pair_step;
    const int size = c.by_rows != c.exchanged ? mr : nr;
    const int64_t fit = second_cache / 4 / panel_words<T>(size, c.block), all = panels(c.by_rows ? m : n, size);
    const int64_t eighth = panels(all, 8);
    c.chunk = (fit < 1 ? 1 : fit < eighth ? fit : eighth) * size;
    return c;
}

// ---- one block of k ----

template <bool is_a, class T>
static inline Range pack_shared(uint32_t* to, const Operand<T>& from, int64_t count, int64_t k) {
    constexpr int size = is_a ? mr : nr;
    const int64_t words = panel_words<T>(size, k), all = panels(count, size);
    constexpr int64_t together = 4;
    const int64_t groups = panels(all, together);
    const Scratch<Range> ranges(groups);
    parallel_for(groups, (double)words * 12 * together, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            const int64_t p = g * together, number = all - p < together ? all - p : together;
            ranges[g] = pack_panels<is_a>(to + p * words, words, from, p * size, count, number, k);
        }
    });
    Range range;
    for (int64_t g = 0; g < groups; ++g) range.add(ranges[g]);
    return range;
}

template <class T, class Out>
struct BlockOfK {
    const Product<T, Out>& all;
    const Cut<T>& cut;
    Operand<T> a, b;  // of this block
    int64_t k;
    const float* earlier;  // sums of the blocks before, or of c
    int64_t stride;
    const T* bias;
};

template <class T, class Out>
static inline Later<T, Out> later(const BlockOfK<T, Out>& block, const Vec (&sums)[mr][nv], int64_t top,
                                  int64_t left, int64_t rows_here, int64_t cols_here) {
    const Product<T, Out>& p = block.all;
    const Beside<T> with{block.earlier ? block.earlier + top * block.stride + left : nullptr, block.stride,
                         block.bias ? block.bias + left : nullptr};
    return {p.c + top * p.ldc + left, p.ldc, rows_here < mr ? rows_here : mr, cols_here, sums, with};
}

#if defined(__AMX_BF16__)
static inline void by_blas(const BlockOfK<float, float>& block, int64_t first, int64_t count) {
    const Product<float, float>& p = block.all;
    const bool by_rows = block.cut.by_rows;
    const int64_t top = by_rows ? first : 0, m = by_rows ? count : p.m;
    const int64_t left = by_rows ? 0 : first, n = by_rows ? p.n : count;
    const auto leading = [&](const Operand<float>& x, int64_t outers) {
        const int64_t stride = x.inner == 1 ? x.outer : x.inner, least = x.inner == 1 ? block.k : outers;
        return stride > least ? stride : least;
    };
    float* const c = p.c + top * p.ldc + left;
    const OneBlasThread alone;
    sgemm_one_thread(block.a.inner != 1, block.b.inner == 1, m, n, block.k,
                     block.a.data + top * block.a.outer, leading(block.a, p.m),
                     block.b.data + left * block.b.outer, leading(block.b, p.n), block.earlier, c, p.ldc);
    for (int64_t r = 0; block.bias && r < m; ++r)
        registers(n, [&](int64_t i, auto here) {
            put(c + r * p.ldc + i, here, get(c + r * p.ldc + i, here) + get(block.bias + left + i, here));
        });
}
#endif

// Rows [first, first + count) of the private operand times all of the shared one.
template <bool private_left, class T, class Out>
static inline void chunk(const BlockOfK<T, Out>& block, const uint32_t* shared, const Range& shared_range,
                         int64_t first, int64_t count) {
    const Product<T, Out>& p = block.all;
    const bool by_rows = block.cut.by_rows;
    constexpr int own_size = private_left ? mr : nr, other_size = private_left ? nr : mr;
    const int64_t words = panel_words<T>(own_size, block.k), other_words = panel_words<T>(other_size, block.k);
    const int64_t pairs = padded_pairs(block.k), own_panels = panels(count, own_size);
    const int64_t others = by_rows ? p.n : p.m;
    const Scratch<uint32_t> packed(own_panels * words);
    const Range range = pack_panels<private_left>(packed.data, words, by_rows ? block.a : block.b, first,
                                                  first + count, own_panels, block.k);
#if defined(__AMX_BF16__)
    if constexpr (parts<T> > 1)
        if (!fits(range, shared_range, block.k)) return by_blas(block, first, count);
#else
    (void)range, (void)shared_range;
#endif
    const int64_t sub = block.cut.sub, kept = sub < pairs ? own_panels : 1;
    const Scratch<Vec> sums((kept + 1) * mr * nv);
    const auto tile = [&](int64_t i) -> auto& {
        return *reinterpret_cast<Vec(*)[mr][nv]>(sums + i * mr * nv);
    };
    Later<T, Out> before;
    for (int64_t s = 0; s * other_size < others; ++s)
        for (int64_t at = 0; at < pairs || at == 0; at += sub)
            for (int64_t q = 0; q < own_panels; ++q) {
                auto& here = tile(kept > 1 ? q : 0);
                const uint32_t* const own = packed + q * words + at * own_size * parts<T>;
                const uint32_t* const other = shared + s * other_words + at * other_size * parts<T>;
                const int64_t length = pairs - at < sub ? pairs - at : sub;
                const int64_t o = first + q * own_size, t = s * other_size;
                const int64_t own_here = first + count - o, other_here = others - t;
                const int64_t top = by_rows ? o : t, left = by_rows ? t : o;
                const int64_t rows_here = by_rows ? own_here : other_here,
                              cols_here = by_rows ? other_here : own_here;
                if (at + sub >= pairs) expect_write(p.c + top * p.ldc + left, p.ldc, rows_here);
                micro_kernel<T>(here, private_left ? own : other, private_left ? other : own, length, at > 0,
                                before);
                if (at + sub < pairs) continue;
                if (either_side && private_left != by_rows) {
                    transpose_tile(tile(kept), here);
                    before = later(block, tile(kept), top, left, rows_here, cols_here);
                } else {
                    before = later(block, here, top, left, rows_here, cols_here);
                }
                if (!either_side) before.end();
            }
    before.end();
}

template <bool private_left, class T, class Out>
static inline void block_of_k(const BlockOfK<T, Out>& block) {
    const Product<T, Out>& p = block.all;
    const Cut<T>& c = block.cut;
    const int64_t shared_rows = c.by_rows ? p.n : p.m, own_rows = c.by_rows ? p.m : p.n;
    constexpr int other_size = private_left ? nr : mr;
    const Scratch<uint32_t> shared(panels(shared_rows, other_size) * panel_words<T>(other_size, block.k));
    const Range range =
        pack_shared<!private_left>(shared.data, c.by_rows ? block.b : block.a, shared_rows, block.k);
    parallel_for(panels(own_rows, c.chunk), (double)(c.chunk * shared_rows) * (double)block.k / rate<T>,
                 [&](int64_t begin, int64_t end) {
                     const Tiles tiles_of_this_thread;
                     for (int64_t i = begin; i < end; ++i) {
                         const int64_t first = i * c.chunk, left = own_rows - first;
                         chunk<private_left>(block, shared.data, range, first, left < c.chunk ? left : c.chunk);
                     }
                 });
}

template <class T, class Out>
static inline void block_of_k(const BlockOfK<T, Out>& block) {
    if (block.cut.by_rows != block.cut.exchanged)
        block_of_k<true>(block);
    else
        block_of_k<false>(block);
}

// ---- the product ----

template <class T>
static inline void multiply(const Product<T, float>& p) {
    if (p.m == 0 || p.n == 0) return;
    const Cut<T> c = cut<T>(p.m, p.n, p.k, p.a.inner == 1, p.b.inner == 1);
    for (int64_t i = 0; i < c.blocks; ++i) {
        const int64_t k = i * c.block, left = p.k - k;
        if (i > 0 && left <= 0) break;
        block_of_k(BlockOfK<T, float>{p, c, p.a.from(k), p.b.from(k), left < c.block ? left : c.block,
                                      p.add || i > 0 ? p.c : nullptr, p.ldc,
                                      left <= c.block ? p.bias : nullptr});
    }
}

static inline void multiply(const Product<bf16, bf16>& p) {
    if (p.m == 0 || p.n == 0) return;
    const Cut<bf16> c = cut<bf16>(p.m, p.n, p.k, p.a.inner == 1, p.b.inner == 1);
    const int64_t last = panels(p.k, c.block) > 1 ? (panels(p.k, c.block) - 1) * c.block : 0;
    const Scratch<float> earlier(last > 0 ? p.m * p.n : 1);
    if (last > 0) {  // all blocks of k but the last
        Product<bf16, float> first{earlier.data, p.n, p.a, p.b, p.m, p.n, last};
        for (int64_t k = 0; k < last; k += c.block)
            block_of_k(BlockOfK<bf16, float>{first, c, p.a.from(k), p.b.from(k), c.block,
                                             k > 0 ? earlier.data : nullptr, p.n, nullptr});
    }
    block_of_k(BlockOfK<bf16, bf16>{p, c, p.a.from(last), p.b.from(last), p.k - last,
                                    last > 0 ? earlier.data : nullptr, p.n, p.bias});
}

}  // namespace nn::NN_LEVEL
