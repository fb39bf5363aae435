// What a level can do at best; see core/ceiling.h.  Multiply-adds in registers, in twelve independent chains,
// so that neither latency nor memory counts; and reads, at several places in turn.
#include "core/ceiling.h"

#include "kernels/kernel.h"
#include "kernels/tiles.h"

namespace nn::NN_LEVEL {

constexpr int chains = 12;

#define NN_CEILING(name, operations, function)                                                      \
    static const Ceiling ceiling_##function = {name, this_level, (double)(operations), function};   \
    __attribute__((section(NN_CEILINGS), used)) static const Ceiling* at_##function = &ceiling_##function;
#ifdef __APPLE__
#define NN_CEILINGS "__DATA,nn_ceilings"
#else
#define NN_CEILINGS "nn_ceilings"
#endif

// step: of chain k; the chains stay in registers because the compiler is told that they change.
#define NN_ROUNDS(register_type, first, step)                                               \
    register_type sum[chains];                                                              \
    for (int k = 0; k < chains; ++k) sum[k] = (first);                                      \
    for (int64_t i = 0; i < rounds; ++i)                                                    \
        _Pragma("GCC unroll 12") for (int k = 0; k < chains; ++k) sum[k] = (step);          \
    for (int k = 0; k < chains; ++k) asm volatile("" ::"m"(sum[k]));

#if defined(__AMX_INT8__)

// Four products of a tile of 16 x 64 bytes with one of 64 bytes x 16: two factors each way.
struct ZeroTiles {
    const Tiles tiles;
    ZeroTiles() {
        _tile_zero(4);
        _tile_zero(5);
        _tile_zero(6);
        _tile_zero(7);
    }
};

static void bfloat16(int64_t rounds, const char*, int) {
    const ZeroTiles tiles;
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}
NN_CEILING("bfloat16", 4 * 16 * 16 * 32 * 2, bfloat16)

static void int8(int64_t rounds, const char*, int) {
    const ZeroTiles tiles;
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
}
NN_CEILING("int8", 4 * 16 * 16 * 64 * 2, int8)

#else

static void float32(int64_t rounds, const char*, int) {
    Vec factor = set(0.5f), more = set(1.0f);
    asm volatile("" : "+m"(factor), "+m"(more));  // not known while compiling
    NN_ROUNDS(Vec, set((float)k), sum[k] * factor + more)
}
NN_CEILING("float32", chains * width * 2, float32)

#if defined(__AVX512BF16__)
static void bfloat16(int64_t rounds, const char*, int) {
    Bits pairs = Bits{} + 0x3f803f80u;  // 1.0 twice
    asm volatile("" : "+m"(pairs));
    NN_ROUNDS(Vec, set((float)k), dot2(sum[k], pairs, pairs))
}
NN_CEILING("bfloat16", chains * width * 4, bfloat16)
#endif

#if defined(__AVX512VNNI__)
static void int8(int64_t rounds, const char*, int) {
    __m512i bytes = _mm512_set1_epi8(1);
    asm volatile("" : "+m"(bytes));
    NN_ROUNDS(__m512i, _mm512_set1_epi32(k), _mm512_dpbusd_epi32(sum[k], bytes, bytes))
}
NN_CEILING("int8", chains * width * 8, int8)
#endif

// A line of 64 bytes from each place in turn.
template <int streams>
static void read_at(int64_t bytes, const char* data) {
    constexpr int registers_per_line = 64 / (4 * width);
    const int64_t part = bytes / streams / 64 * 64;
    Bits sum[streams][registers_per_line] = {};
    for (int64_t at = 0; at < part; at += 64)
        for (int s = 0; s < streams; ++s)
            for (int r = 0; r < registers_per_line; ++r) {
                Bits line;
                memcpy(&line, data + s * part + at + r * sizeof line, sizeof line);
                sum[s][r] ^= line;
            }
    for (int s = 0; s < streams; ++s)
        for (int r = 0; r < registers_per_line; ++r) asm volatile("" ::"m"(sum[s][r]));  // somebody wants it
}

static void read(int64_t bytes, const char* data, int streams) {
    if (streams >= 8)
        read_at<8>(bytes, data);
    else if (streams >= 4)
        read_at<4>(bytes, data);
    else if (streams >= 2)
        read_at<2>(bytes, data);
    else
        read_at<1>(bytes, data);
}
NN_CEILING("read", 0, read)

#endif

}  // namespace nn::NN_LEVEL
