// Every registered kernel, with arguments drawn from its own text: ragged sizes, each array its own memory of
// exactly its size, options and optional arrays both ways; one thread and several, to the same bits.
#include <cstring>
#include <memory>

#include "core/blas.h"
#include "core/cpu.h"
#include "core/registry.h"
#include "core/threads.h"
#include "tests/check.h"

namespace {

using nn::DType, nn::Item, nn::Kind;

struct Shape {
    int64_t rows, steps, width, features;
};
constexpr Shape shapes[] = {{1, 1, 2, 1}, {37, 19, 33, 17}, {70, 70, 64, 96}};
constexpr int64_t batch = 2, experts = 3, choices = 2;

// cblas_sgemm as the products call it, in three loops
void three_loops(int, int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    constexpr int transposed = 112;
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
            float sum = 0;
            for (int64_t l = 0; l < k; ++l)
                sum += a[ta == transposed ? l * lda + i : i * lda + l] *
                       b[tb == transposed ? j * ldb + l : l * ldb + j];
            c[i * ldc + j] = alpha * sum + (beta == 0 ? 0 : beta * c[i * ldc + j]);
        }
}
int one() { return 1; }
void nothing(int) {}

// Bytes of a packed weight: kernels/packed.h
int64_t packed_bytes(int format, int64_t outputs, int64_t inputs) {
    const int64_t blocks = (inputs + 31) / 32;
    const int64_t bytes = format == 0    ? inputs * 64
                          : format == 30 ? blocks * 1024
                          : format == 8  ? blocks * 16 * 34
                                         : blocks * 16 * 18;
    return (outputs + 15) / 16 * ((bytes + 63) / 64 * 64);
}

struct Drawn {
    const nn::Kernel& kernel;
    const std::string& name = kernel.signature.name;
    const Shape shape;
    const DType same;
    const bool other;  // the other way of every option; optional arrays left out
    const int format;
    nn::Call call{};
    std::vector<std::unique_ptr<char[]>> memory;
    struct Changed {
        char* data;
        std::vector<char> before;
    };
    std::vector<Changed> changed;  // results, and what is changed in place

    Drawn(const nn::Kernel& k, Shape s, DType t, bool o, int f)
        : kernel(k), shape(s), same(t), other(o), format(f) {
        call.kernel = &kernel;
        numbers();
        int at = 0;
        for (const Item& item : kernel.signature.results) {
            const bool wanted = item.wanted_by < 0 || call.number[item.wanted_by].value != 0;
            call.array[at++] = wanted ? array(item, true) : nn::Array{};
        }
        for (const Item& item : kernel.signature.arguments)
            if (item.is_array) call.array[at++] = item.optional && other ? nn::Array{} : array(item, false);
    }

    bool is(const char* start) const { return name.find(start) == 0; }
    bool is_packed() const { return is("packed_"); }

    int64_t size(const nn::Axis& axis) const {
        switch (axis.letter) {
            case 0: return axis.plus;
            case '.': return is("rope") ? batch : shape.rows;
            case 'B': return batch;
            case 'H': return 4;
            case 'G': return 2;
            case 'T': return shape.steps;
            case 'S': return shape.steps + (is("causal_conv") ? choices - 1 : 4);
            case 'D':
            case 'I': return shape.width;
            case 'v': return shape.width + 3;
            case 'r': return shape.width / 2;
            case 'F': return shape.features;
            case 'C': return 2 * shape.features;
            case 'E': return experts + axis.plus;
            case 'K': return choices;
            case 'M': return shape.rows * choices;
            case 'P': return is("rope_at") ? shape.steps + 4 : 2;
            case 'U': return experts * 2 * packed_bytes(format, shape.features, shape.width);
            case 'W': return bytes();
            case 'X': return 1;
            case 'Y': return shape.steps;
            case 'Z': return shape.steps + 4;
            case 'V':
            case '#':
            case 'O':
            case 'J': return 3 + shape.features;
            default: return shape.rows;
        }
    }
    int64_t bytes() const {
        if (is("packed_experts")) return experts * packed_bytes(format, shape.width, shape.features);
        if (is("packed_swiglu")) return 2 * packed_bytes(format, shape.features, shape.width);
        return is_packed() ? packed_bytes(format, 3 + shape.features, shape.width) : 1;
    }

    void numbers() {
        int at = 0;
        for (const Item& item : kernel.signature.arguments) {
            if (item.is_array) continue;
            double& value = call.number[at++].value;
            value = item.has_default ? item.fallback : 0.5;
            if (item.is_flag && other) value = !item.fallback;
            if (item.size_of) value = static_cast<double>(size({item.size_of, 0}));
            if (item.name == "features") value = static_cast<double>(shape.features);
            if (item.name == "format") value = format;
            if (item.name == "window" && other) value = 3;
            if (item.name == "step") value = 3;
        }
    }

    nn::Array array(const Item& item, bool result) {
        const bool number = result && kernel.signature.returns_number;
        const DType type = number ? DType::f64 : nn::dtype_of(item.kind, same);
        nn::Array a{nullptr, {}, {}, static_cast<int32_t>(item.axes.size()), type};
        int64_t count = 1;
        for (int i = a.axes - 1; i >= 0; --i) {
            a.shape[i] = size(item.axes[static_cast<size_t>(i)]);
            a.stride[i] = count, count *= a.shape[i];
        }
        const size_t all = static_cast<size_t>(count * nn::dtype_size(a.dtype));
        memory.push_back(std::make_unique<char[]>(all));
        a.data = memory.back().get();
        if (!result) fill(item, a, count);
        if (result || item.in_place) {
            char* const data = static_cast<char*>(a.data);
            changed.push_back({data, std::vector<char>(data, data + all)});
        }
        return a;
    }

    int64_t whole(const Item& item, int64_t i, int64_t count) const {
        if (item.name == "order" || item.name == "inverse") return count - 1 - i;  // its own inverse
        if (item.name == "offsets") return shape.rows * choices * i / (count - 1);
        return i * 7 % 3;
    }

    void fill(const Item& item, const nn::Array& a, int64_t count) {
        char* const to = static_cast<char*>(a.data);
        for (int64_t i = 0; i < count; ++i) {
            const float value = static_cast<float>((i * 37 + 101) % 199) / 100.0f - 0.9f;
            const int64_t integer = whole(item, i, count);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            const uint16_t half = static_cast<uint16_t>(bits >> 16);
            if (a.dtype == DType::f32) std::memcpy(to + 4 * i, &value, 4);
            if (a.dtype == DType::bf16) std::memcpy(to + 2 * i, &half, 2);
            if (a.dtype == DType::i64) std::memcpy(to + 8 * i, &integer, 8);
            if (a.dtype == DType::boolean) to[i] = i % 3 != 0;
            if (a.dtype == DType::u8) to[i] = static_cast<char>(i * 5 % 64);
        }
    }

    std::vector<char> run(nn::Function function, int threads) {
        nn::set_threads(threads);
        for (Changed& one : changed)
            if (!one.before.empty()) std::memcpy(one.data, one.before.data(), one.before.size());
        if (!function(call)) test::failed(__FILE__, __LINE__, name + ": declined");
        std::vector<char> bits;
        for (Changed& one : changed) bits.insert(bits.end(), one.data, one.data + one.before.size());
        return bits;
    }
};

void same_bits(Drawn& drawn) {
    for (nn::Level level : nn::levels_here()) {
        CHECK(nn::use_level(nn::level_name(level)));
        const nn::Function function = drawn.kernel.find(level, drawn.same);
        CHECK(function);
        const std::vector<char> first = drawn.run(function, 1);
        if (drawn.run(function, 5) != first)
            test::failed(__FILE__, __LINE__, drawn.name + ": other bits with more threads");
    }
}

TEST(drawn_from_its_text) {
    nn::set_blas(reinterpret_cast<uintptr_t>(three_loops), reinterpret_cast<uintptr_t>(one),
                 reinterpret_cast<uintptr_t>(nothing));
    for (const nn::Kernel& kernel : nn::kernels())
        for (const Shape& shape : shapes)
            for (DType same : kernel.dtypes())
                for (bool other : {false, true})
                    for (int format : {0, 30, 8, 2}) {
                        const bool packed = kernel.signature.name.find("packed_") == 0;
                        if (format && !packed) continue;
                        if (format && format != 30 && (shape.width % 32 || shape.features % 32)) continue;
                        Drawn drawn(kernel, shape, same, other, format);
                        same_bits(drawn);
                    }
    nn::set_blas(0, 0, 0);
}

}  // namespace
