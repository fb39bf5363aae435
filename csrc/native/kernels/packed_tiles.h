// Products of many rows with a packed weight by AMX, in bfloat16 with float32
// sums.  Panels of bf16 are tiles as they lie; those of q8_0 and q4_0 are first
// written out as bfloat16, once for all rows: faster than int8 tiles, whose
// sums would have to leave their tile after every block of 32.
#pragma once
#include "kernels/quantized.h"
#include "kernels/tiles.h"

#if defined(__AMX_BF16__)
namespace nn::NN_LEVEL {

constexpr int64_t tile_rows = 16, tile_pair = 2 * tile_rows;

// Rows as bfloat16, 32 by 32 padded with zeros; rows 64 bytes further apart, so
// that they do not all fall into the same places of the first cache.  `parts`
// 3: float32 as the exact sum of three, of 8 bits each.
struct TileRows {
    int64_t steps, stride,
        size;  // of 32 elements; elements from row to row, and from part to part
    int parts;
    Scratch<uint16_t> data;

    template <class T>
    TileRows(const Rows<const T>& x, int parts_wanted)
        : steps((x.cols + 31) / 32),
          stride(steps * 32 + 32),
          size((x.rows + tile_pair - 1) / tile_pair * tile_pair * stride),
          parts(sizeof(T) == 4 ? parts_wanted : 1),
          data(size * parts) {
        parallel_for(size / stride, (double)x.cols * 8 * parts, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const int64_t cols = r < x.rows ? x.cols : 0;
                if (cols)
                    registers(cols, [&](int64_t i, auto n) { write(r * stride + i, n, get(x[r] + i, n)); });
                for (int part = 0; part < parts; ++part)
                    for (int64_t i = cols; i < stride; ++i) data[part * size + r * stride + i] = 0;
            }
        });
    }

    template <class N>
    void write(int64_t at, N n, Vec v) {
        for (int part = 0; part < parts; ++part) {
            const Vec here = parts == 1 ? v : float_of(bits_of(v) & 0xffff0000u);
            put((bf16*)(void*)(data + part * size + at), n, here);
            const Vec rest = v - here;
            v = rest == rest ? rest : Vec{};  // behind infinity comes nothing
        }
    }
};

// to[32][32]: 32 rows from `row` on times two panels of pairs, tiles of 1 KiB
// each
static inline void tile_products(float* to, const TileRows& x, int64_t row, const uint8_t* first,
                                 const uint8_t* second) {
    const uint16_t* const from = x.data + row * x.stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < x.steps; ++k) {
        _tile_loadd(6, first + k * 1024, 64);
        _tile_loadd(7, second + k * 1024, 64);
        for (int part = 0; part < x.parts; ++part) {
            const uint16_t* const at = from + part * x.size + k * 32;
            _tile_loadd(4, at, x.stride * 2);
            _tile_loadd(5, at + 16 * x.stride, x.stride * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, to, 128);
    _tile_stored(1, to + 16, 128);
    _tile_stored(2, to + 16 * 32, 128);
    _tile_stored(3, to + 16 * 32 + 16, 128);
}

// int32 lanes that hold the weights 4 g + j of 16 outputs; a[j] and a[j + 1]
// are a pair along k
static inline Bits bf16_pair(Vec even, Vec odd) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    alignas(64) constexpr static uint16_t interleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Bits)_mm512_permutexvar_epi16(_mm512_load_si512(interleave), (__m512i)both);
}

template <int shift>
static inline Vec fourth(Bits w) {  // the signed byte at this place
    return __builtin_convertvector((Int)(w << (24 - shift)) >> 24, Vec);
}

// Four weights of 16 outputs each, in w's bytes, as two rows of a tile
static inline void write_four(uint8_t* to, Bits w, Vec scale) {
    const Bits first = bf16_pair(fourth<0>(w) * scale, fourth<8>(w) * scale);
    const Bits second = bf16_pair(fourth<16>(w) * scale, fourth<24>(w) * scale);
    memcpy(to, &first, 64);
    memcpy(to + 64, &second, 64);
}

// A panel of q8_0 or q4_0 as one of bf16: a block of 32 is a tile
static inline void write_out(uint8_t* to, const Packed& weight, const uint8_t* panel) {
    const bool wide = weight.format == Format::q8_0;
    const int64_t blocks = weight.blocks();
    using Wide = Blocks<Format::q8_0>;
    using Narrow = Blocks<Format::q4_0>;
    for (int64_t b = 0; b < blocks; ++b, to += 1024) {
        const uint8_t* const quants = panel + (wide ? Wide::quants(b) : Narrow::quants(b));
        const Vec scale = load_half(panel + (wide ? Wide::scales(b, blocks) : Narrow::scales(b, blocks)));
        for (int g = 0; g < (wide ? 8 : 4); ++g) {
            Bits w;
            memcpy(&w, quants + g * 64, 64);
            if (wide) {
                write_four(to + g * 128, w, scale);
            } else {
                const Bits eights = Bits{} + 0x08080808u;
                const Bits low = (Bits)_mm512_sub_epi8((__m512i)(w & 0x0f0f0f0fu), (__m512i)eights);
                const Bits high = (Bits)_mm512_sub_epi8((__m512i)((w >> 4) & 0x0f0f0f0fu), (__m512i)eights);
                write_four(to + g * 128, low, scale);
                write_four(to + 512 + g * 128, high, scale);
            }
        }
    }
}

}  // namespace nn::NN_LEVEL
#endif
