// Products with packed weights on every level, against plain sums in double: from one row to many, and a row
// alone with the bits that it has among others.  Weights are laid out here by the text of kernels/packed.h.
//
// A block of 32 activations is whole multiples of a power of two, up to 127 of them: rounded to int8 it is
// what it was, so that what is expected of quantized weights needs no rounding either.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "core/memory.h"
#include "core/threads.h"
#include "tests/calls.h"

namespace {

using nn::DType, test::Prepared, test::Tensor, test::types;

enum Format { f32 = 0, q4_0 = 2, q8_0 = 8, bf16 = 30 };  // GGUF's numbers
constexpr int64_t block = 32, panel_rows = 16;

bool is_quantized(Format format) { return format == q4_0 || format == q8_0; }

// Anything from 0 to 255, as if drawn for the pair
int64_t drawn(int64_t i, int64_t j) { return ((i * 40503 + j * 30011 + 7) * 2654435761 >> 16) & 255; }

uint16_t half_scale(int64_t output, int64_t b) {
    const int64_t fraction = (output * 37 + b * 101) % 1024, exponent = 8 + (output + b) % 5;
    const bool denormal = output % 7 == 3, negative = (output + b) % 3 == 1;
    return static_cast<uint16_t>(negative << 15 | (denormal ? 0 : exponent << 10) | fraction);
}
double of_half(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return half >> 15 ? -size : size;
}

struct Weight {
    Format format;
    int64_t outputs, inputs, blocks = (inputs + block - 1) / block;
    Tensor data{{(outputs + panel_rows - 1) / panel_rows * panel_bytes()}, DType::u8};

    Weight(Format f, int64_t o, int64_t i) : format(f), outputs(o), inputs(i) {
        std::memset(data.data.get(), 0, static_cast<size_t>(data.count));
        for (o = 0; o < outputs; ++o)
            for (i = 0; i < inputs; ++i) put(o, i, data.data.get() + o / panel_rows * panel_bytes());
    }

    int64_t panel_bytes() const {
        const int64_t bytes = format == f32 ? inputs * 64 : blocks * quants_bytes() + blocks * scales_bytes();
        return (bytes + 63) / 64 * 64;
    }
    int64_t quants_bytes() const { return format == bf16 ? 1024 : format == q8_0 ? 512 : 256; }
    int64_t scales_bytes() const { return is_quantized(format) ? 32 : 0; }

    int64_t whole(int64_t o, int64_t i) const {
        return format == q4_0 ? drawn(o, i) % 16 - 8 : drawn(o, i) - 128;
    }
    double value(int64_t o, int64_t i) const {
        const double x = static_cast<double>(whole(o, i));
        return is_quantized(format) ? x * of_half(half_scale(o, i / block)) : x / 64;
    }

    void put(int64_t o, int64_t i, char* panel) const {
        const int64_t lane = o % panel_rows, b = i / block, k = i % block;
        const int64_t together = b / 2 * 2 + 1 < blocks ? 2 : 1;
        char* const two = panel + b / 2 * 2 * (quants_bytes() + scales_bytes());
        char* const quants = two + b % 2 * quants_bytes();
        const float number = static_cast<float>(value(o, i));
        const char* const upper = reinterpret_cast<const char*>(&number) + 2;
        const uint16_t scale = half_scale(o, b);
        if (format == f32) std::memcpy(panel + (i * 16 + lane) * 4, &number, 4);
        if (format == bf16) std::memcpy(quants + (k / 2 * 16 + lane) * 4 + k % 2 * 2, upper, 2);
        if (format == q8_0) quants[k / 4 * 64 + lane * 4 + k % 4] = static_cast<char>(whole(o, i));
        if (format == q4_0)
            quants[k % 16 / 4 * 64 + lane * 4 + k % 4] |= static_cast<char>((whole(o, i) + 8) << k / 16 * 4);
        if (is_quantized(format))
            std::memcpy(two + together * quants_bytes() + b % 2 * scales_bytes() + lane * 2, &scale, 2);
    }
};

double activation(int64_t row, int64_t i) {
    const int64_t b = i / block, most = (row + b) % block;
    const int64_t whole = i % block == most ? 127 : drawn(row + 1000, i) % 255 - 127;
    return std::ldexp(static_cast<double>(whole), static_cast<int>(-3 - (row + b) % 4));
}

// Element i as bytes; of bfloat16 they are a float's upper two.
void copy(DType dtype, char* array, int64_t i, float& value, bool writes) {
    const int64_t size = nn::dtype_size(dtype);
    char *const element = array + i * size, *const upper = reinterpret_cast<char*>(&value) + 4 - size;
    std::memcpy(writes ? element : upper, writes ? upper : element, static_cast<size_t>(size));
}
void write(Tensor& to, int64_t i, double x) {
    float value = static_cast<float>(x);
    copy(to.dtype, to.data.get(), i, value, true);
}
double read(const Tensor& from, int64_t i) {
    float value = 0;
    copy(from.dtype, from.data.get(), i, value, false);
    return value;
}

// y of rows [first, first + rows) of activations, with weights of this format
Tensor product(const Weight& weight, DType T, int64_t first, int64_t rows) {
    Tensor x({rows, weight.inputs}, T), y({rows, weight.outputs}, T);
    for (int64_t i = 0; i < x.count; ++i)
        write(x, i, activation(first + i / weight.inputs, i % weight.inputs));
    std::memset(y.data.get(), 0x55, static_cast<size_t>(y.bytes()));
    Prepared("packed_linear", T, {y.array(), x.array(), weight.data.array(), nn::Array{}, nn::Array{}},
             {static_cast<double>(weight.format), static_cast<double>(weight.outputs)})();
    return y;
}

void compare(const Weight& weight, const Tensor& y, bool rounds_weights) {
    const double unit = rounds_weights ? 0x1p-8 : 0x1p-17, of_result = y.dtype == DType::bf16 ? 0x1p-8 : 0;
    for (int64_t i = 0; i < y.count; ++i) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < weight.inputs; ++k) {
            const double one = activation(i / weight.outputs, k) * weight.value(i % weight.outputs, k);
            sum += one, size += std::fabs(one);
        }
        if (std::fabs(read(y, i) - sum) <= unit * size + of_result * std::fabs(sum)) continue;
        char what[200];
        std::snprintf(what, sizeof what, "%s, format %d, %ld rows of %ld: row %ld, output %ld is %g, not %g",
                      nn::level_name(nn::level()), weight.format, long(y.shape[0]), long(weight.inputs),
                      long(i / weight.outputs), long(i % weight.outputs), read(y, i), sum);
        test::failed(__FILE__, __LINE__, what);
    }
}

void rows_alone_have_the_same_bits(const Weight& weight, const Tensor& y) {
    const size_t bytes = static_cast<size_t>(weight.outputs * nn::dtype_size(y.dtype));
    for (int64_t r : {int64_t(0), y.shape[0] / 2, y.shape[0] - 1}) {
        const Tensor alone = product(weight, y.dtype, r, 1);
        CHECK(std::memcmp(alone.data.get(), y.data.get() + r * static_cast<int64_t>(bytes), bytes) == 0);
    }
}

// Wide enough for all panels that one row reads together, for every smaller number of them, and for what is
// left behind them.
TEST(packed_products_of_one_row) {
    const bool usual = nn::follows_streams();
    for (nn::Level level : nn::levels_here())
        for (Format format : {f32, bf16, q8_0, q4_0})
            for (int64_t outputs : {250, 200, 100}) {
                CHECK(nn::use_level(nn::level_name(level)));
                const Weight weight(format, outputs, is_quantized(format) ? 96 : 91);
                for (bool streams : {false, true})
                    for (int threads : {1, 2}) {
                        nn::follow_streams(streams), nn::set_threads(threads);
                        for (DType T : types) compare(weight, product(weight, T, 0, 1), false);
                    }
            }
    nn::follow_streams(usual);
}

TEST(packed_products_of_rows) {
    nn::set_threads(2);
    for (nn::Level level : nn::levels_here())
        for (Format format : {f32, bf16, q8_0, q4_0})
            for (auto [outputs, inputs] :
                 {std::tuple<int64_t, int64_t>{1, 32}, {16, 64}, {50, 96}, {33, 224}})
                for (DType T : types) {
                    CHECK(nn::use_level(nn::level_name(level)));
                    const Weight weight(format, outputs, is_quantized(format) ? inputs : inputs - 5);
                    for (int64_t rows : {1, 2, 3, 4, 5, 8, 9, 15, 26, 515}) {
                        if (rows > 26 && outputs != 16) continue;
                        const bool tiles = level == nn::Level::amx && rows > 4;  // other bits, and bfloat16
                        const Tensor y = product(weight, T, 0, rows);
                        compare(weight, y, tiles && is_quantized(format));
                        if (!tiles) rows_alone_have_the_same_bits(weight, y);
                    }
                }
}

}  // namespace
