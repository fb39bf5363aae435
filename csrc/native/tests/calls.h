// Arrays with memory of their own, and calls of kernels with them.
#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/registry.h"
#include "tests/check.h"

namespace test {

using nn::DType;

// Dense, its own memory exactly as large as it must be, so that a checker sees a step beyond.
struct Tensor {
    std::vector<int64_t> shape;
    DType dtype;
    std::unique_ptr<char[]> data;
    int64_t count = 1;

    Tensor(std::vector<int64_t> s, DType d = DType::f32, int seed = 1) : shape(std::move(s)), dtype(d) {
        for (int64_t size : shape) count *= size;
        data = std::make_unique<char[]>(static_cast<size_t>(bytes()));
        for (int64_t i = 0; i < count; ++i) set(i, seed);
    }
    int64_t bytes() const { return count * nn::dtype_size(dtype); }
    void set(int64_t i, int seed) {
        const float value = static_cast<float>((i * 37 + seed * 101) % 199) / 100.0f - 0.9f;
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (dtype == DType::f32) std::memcpy(data.get() + 4 * i, &value, 4);
        if (dtype == DType::bf16) bits >>= 16, std::memcpy(data.get() + 2 * i, &bits, 2);
        const int64_t whole = (i * 7 + seed) % 5;
        if (dtype == DType::i64) std::memcpy(data.get() + 8 * i, &whole, 8);
    }
    nn::Array array() const {
        nn::Array a{data.get(), {}, {}, static_cast<int32_t>(shape.size()), dtype};
        int64_t stride = 1;
        for (int i = a.axes - 1; i >= 0; --i)
            a.shape[i] = shape[static_cast<size_t>(i)], a.stride[i] = stride, stride *= a.shape[i];
        return a;
    }
};

struct Prepared {
    nn::Call call{};
    nn::Function run = nullptr;

    Prepared(const char* name, DType same, std::vector<nn::Array> arrays, std::vector<double> numbers = {}) {
        call.kernel = nn::find_kernel(name);
        CHECK(call.kernel);
        CHECK(static_cast<int>(arrays.size()) == call.kernel->signature.arrays());
        for (size_t i = 0; i < arrays.size(); ++i) call.array[i] = arrays[i];
        for (size_t i = 0; i < numbers.size(); ++i) call.number[i] = {numbers[i], nullptr};
        run = call.kernel->find(nn::level(), same);
        CHECK(run);
    }
    void operator()() const { CHECK(run(call)); }
};

inline constexpr DType types[] = {DType::f32, DType::bf16};

}  // namespace test
