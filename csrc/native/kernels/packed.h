// Weights packed once, for inference: the layout of nn/packed/layout.py, which
// is the same on every level.
//
// A panel holds 16 rows of the weight, that is 16 outputs, interleaved so that
// one register's worth of outputs lies together for every element of the sum;
// 16 float32, or pairs of bfloat16, or fours of int8, or eights of 4 bits, fill
// 64 bytes.  Rows beyond the last are zeros, as are bfloat16 elements behind
// the end.
//     f32   [k][16]                          bf16  [k/2][16][2], k padded to 32
//     q8_0  [k/64] of: [2][8][16][4] int8, then [2][16] float16 scales
//     q4_0  [k/64] of: [2][4][16][4] uint8, then [2][16]: elements i and i + 16
//     of a block in one byte, low first
// An odd last block is followed by its scales; a panel's bytes are rounded up to
// 64.  Blocks of 32 and their scales are GGUF's, bit by bit.
//
// Scales lie between the blocks because every panel is then one stream: with
// their scales apart 8 panels are 16 streams, in each of two threads.  Measured,
// q8_0 from memory, GB/s of two threads, reads alone 28.5: apart, panel after
// panel 28.0 (768 inputs), 30.4 (6144), 26.7 (576); line by line of eight panels,
// the next ones' beginning asked for, 29.7, 30.9, 28.1; scales between 31.2,
// 32.1, 31.4.
#pragma once
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

constexpr int panel_rows = 16, lanes = panel_rows / width, block = 32;

enum class Format { f32 = 0, q4_0 = 2, q8_0 = 8, bf16 = 30, unknown = -1 };  // GGUF's numbers

static inline Format format_of(double number) {
    return number == 0    ? Format::f32
           : number == 2  ? Format::q4_0
           : number == 8  ? Format::q8_0
           : number == 30 ? Format::bf16
                          : Format::unknown;
}
static inline bool is_quantized(Format format) { return format == Format::q4_0 || format == Format::q8_0; }

struct Packed {
    const uint8_t* data;
    Format format;
    int64_t outputs, inputs;

    int64_t panels() const { return (outputs + panel_rows - 1) / panel_rows; }
    int64_t blocks() const { return (inputs + block - 1) / block; }
    int64_t panel_bytes() const {
        const int64_t bytes = format == Format::f32    ? inputs * panel_rows * 4
                              : format == Format::bf16 ? blocks() * block * panel_rows * 2
                              : format == Format::q8_0 ? blocks() * panel_rows * (block + 2)
                                                       : blocks() * panel_rows * (block / 2 + 2);
        return (bytes + 63) / 64 * 64;
    }
    int64_t bytes() const { return panels() * panel_bytes(); }
    bool is(int64_t size) const {
        return format != Format::unknown && !(is_quantized(format) && inputs % block) && size == bytes();
    }
};

// Where block b of so many has its quants and its scales, in a panel of q8_0 or q4_0
template <Format format>
struct Blocks {
    static constexpr int64_t quants_bytes = format == Format::q8_0 ? 512 : 256, scales_bytes = panel_rows * 2;
    static constexpr int64_t two = 2 * (quants_bytes + scales_bytes);
    static int64_t quants(int64_t b) { return b / 2 * two + b % 2 * quants_bytes; }
    static int64_t scales(int64_t b, int64_t blocks) {
        const int64_t together = b / 2 * 2 + 1 < blocks ? 2 : 1;
        return b / 2 * two + together * quants_bytes + b % 2 * scales_bytes;
    }
};

// ---- activations, as the products want them ----

// float32 rows for f32 and bf16, or pairs of bfloat16 for bf16 where the level multiplies these; for q8_0 and
// q4_0 int8 in blocks of 32 with float32 scales (amax / 127), as llama.cpp has them, and the blocks' sums.
struct Inputs {
    const float* floats = nullptr;
    const uint32_t* pairs = nullptr;  // along k, of bfloat16 (dot2)
    int64_t stride = 0;               // of floats or pairs, from row to row
    const int8_t* quants = nullptr;
    const float* scales = nullptr;
    const int32_t* sums = nullptr;
    int64_t blocks = 0;

    Inputs from(int64_t row) const {
        if (floats) return {.floats = floats + row * stride, .stride = stride};
        if (pairs) return {.pairs = pairs + row * stride, .stride = stride};
        return {.quants = quants + row * blocks * block,
                .scales = scales + row * blocks,
                .sums = sums + row * blocks,
                .blocks = blocks};
    }
};

static inline Vec round_to_integer(Vec x) {  // to nearest, ties to even, of |x| < 2^22
    const Vec magic = set(12582912.0f);
    return (x + magic) - magic;
}

template <class T>
static inline void quantize_block(const T* x, int8_t* quants, float* scale, int32_t* total) {
    Vec values[block / width], most = {}, bad = {};
    for (int i = 0; i < block / width; ++i) {
        values[i] = load(x + i * width);
        most = max(most, abs(values[i]));
        bad += values[i] * 0.0f;  // NaN if any is not finite
    }
    const float amax = largest(most), inverse = amax > 0 ? 127.0f / amax : 0.0f;
    *scale = amax / 127.0f + sum(bad);
    Int sum_of_all = {};
    typedef int8_t Byte __attribute__((vector_size(width)));
    for (int i = 0; i < block / width; ++i) {
        const Int q = __builtin_convertvector(round_to_integer(values[i] * inverse), Int);
        sum_of_all += q;
        const Byte bytes_here = __builtin_convertvector(q, Byte);
        memcpy(quants + i * width, &bytes_here, sizeof bytes_here);
    }
    *total = 0;
    for (int i = 0; i < width; ++i) *total += sum_of_all[i];
}

// Room for the rows of a call, filled by `set`; kept as long as the products
// run.
template <class T>
struct Activations {
    Scratch<float> floats, scales;
    Scratch<uint32_t> pairs;
    Scratch<int8_t> quants;
    Scratch<int32_t> sums;
    Inputs inputs;

    static bool in_pairs(Format format) {
        return multiplies_pairs && sizeof(T) == 2 && format == Format::bf16;
    }
    static bool as_they_are(const Rows<const T>& x) { return sizeof(T) == 4 && x.cols % 2 == 0; }
    static int64_t stride(int64_t cols) { return (cols + 1) / 2 * 2; }

    Activations(const Rows<const T>& x, Format format)
        : floats(is_quantized(format) || in_pairs(format) || as_they_are(x) ? 1 : x.rows * stride(x.cols)),
          scales(is_quantized(format) ? x.rows * x.cols / block : 1),
          pairs(in_pairs(format) ? x.rows * stride(x.cols) / 2 : 1),
          quants(is_quantized(format) ? x.rows * x.cols : 1),
          sums(is_quantized(format) ? x.rows * x.cols / block : 1) {
        const double work = (double)x.cols * 8;
        const int64_t to = stride(x.cols);
        if (is_quantized(format)) {
            const int64_t blocks = x.cols / block;
            inputs = {.quants = quants.data, .scales = scales.data, .sums = sums.data, .blocks = blocks};
            parallel_for(x.rows, work, [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r)
                    for (int64_t b = 0; b < blocks; ++b) {
                        const int64_t at = r * blocks + b;
                        quantize_block(x[r] + b * block, quants + at * block, scales + at, sums + at);
                    }
            });
        } else if (in_pairs(format)) {
            inputs = {.pairs = pairs.data, .stride = to / 2};
            for (int64_t r = 0; r < x.rows; ++r) {
                if (x.cols % 2) pairs[r * to / 2 + x.cols / 2] = 0;
                memcpy(pairs + r * to / 2, x[r], (size_t)x.cols * sizeof(T));
            }
        } else if (as_they_are(x)) {
            inputs = {.floats = (const float*)(const void*)x.data, .stride = x.stride};
        } else {
            inputs = {.floats = floats.data, .stride = to};
            parallel_for(x.rows, work, [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                    if (x.cols % 2) floats[r * to + x.cols] = 0.0f;
                    registers(x.cols,
                              [&](int64_t i, auto n) { put(floats + r * to + i, n, get(x[r] + i, n)); });
                }
            });
        }
    }
};

}  // namespace nn::NN_LEVEL
