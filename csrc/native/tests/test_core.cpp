// The core without Python: threads, memory, signatures, the table.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "core/cpu.h"
#include "core/memory.h"
#include "core/registry.h"
#include "core/threads.h"
#include "tests/check.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

namespace {

void each_index_once(int64_t count, int64_t chunk) {
    std::vector<int> seen(static_cast<size_t>(count));
    nn::parallel_chunks(count, chunk, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    for (int one : seen) CHECK(one == 1);
}

TEST(threads_run_every_index_once) {
    for (int threads : {1, 2, 3, 8}) {
        nn::set_threads(threads);
        for (int64_t count : {0, 1, 2, 7, 64, 1000})
            for (int64_t chunk : {1, 3, 100}) each_index_once(count, chunk);
    }
}

// Short loops one after the other: a late thread meets the next one's fields.
TEST(threads_survive_many_short_loops) {
    nn::set_threads(4);
    for (int i = 0; i < 20000; ++i) {
        std::atomic<int64_t> total{0};
        const int64_t count = 2 + i % 9;
        nn::parallel_chunks(count, 1 + i % 2, [&](int64_t begin, int64_t end) { total += end - begin; });
        CHECK(total == count);
    }
}

TEST(threads_wake_after_sleeping) {
    nn::set_threads(3);
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        each_index_once(50, 1);
    }
}

TEST(threads_nest_and_are_shared_by_callers) {
    nn::set_threads(3);
    std::atomic<int64_t> total{0};
    const auto caller = [&] {
        for (int i = 0; i < 200; ++i)
            nn::parallel_chunks(6, 1, [&](int64_t begin, int64_t end) {
                for (int64_t j = begin; j < end; ++j)
                    nn::parallel_chunks(5, 1, [&](int64_t b, int64_t e) { total += e - b; });
            });
    };
    std::thread first(caller), second(caller);
    caller();
    first.join();
    second.join();
    CHECK(total == 3 * 200 * 6 * 5);
}

// The caller gets the exception once no body runs any more, whoever ran the one that threw.
TEST(threads_hand_exceptions_to_the_caller) {
    for (int threads : {1, 2, 8}) {
        nn::set_threads(threads);
        for (int64_t bad : {0, 50, 99}) {
            std::atomic<int> running{0};
            bool caught = false;
            try {
                nn::parallel_chunks(100, 1, [&](int64_t begin, int64_t end) {
                    ++running;
                    std::this_thread::sleep_for(std::chrono::microseconds(20));
                    --running;
                    if (begin <= bad && bad < end) throw std::bad_alloc();
                });
            } catch (const std::bad_alloc&) { caught = true; }
            CHECK(caught && running == 0);
            each_index_once(100, 1);
        }
    }
}

#ifndef SANITIZED  // a forked child may not start threads under the checkers
TEST(threads_work_in_a_forked_child) {
    nn::set_threads(3);
    each_index_once(100, 1);
    const pid_t child = fork();
    if (child == 0) {
        each_index_once(100, 1);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    each_index_once(100, 1);
}
#endif

TEST(memory_comes_back) {
    for (size_t bytes : {size_t(0), size_t(1), size_t(63), size_t(1000), size_t(5) << 20}) {
        void* data = nn::pool_take(bytes);
        CHECK(reinterpret_cast<uintptr_t>(data) % 64 == 0);
        CHECK(nn::pool_size(data) >= bytes && nn::pool_size(data) <= bytes + bytes / 3 + (size_t(2) << 20));
        std::memset(data, 1, nn::pool_size(data));
        const auto before = nn::pool_counters();
        nn::pool_give(data);
        CHECK(nn::pool_take(bytes) == data);
        CHECK(nn::pool_counters().fresh == before.fresh &&
              nn::pool_counters().bytes_in_use == before.bytes_in_use);
        nn::pool_give(data);
    }
    nn::pool_trim();
    CHECK(nn::pool_counters().bytes_kept == 0);
}

TEST(memory_is_shared_by_threads) {
    std::vector<std::thread> users;
    const int64_t before = nn::pool_counters().bytes_in_use;
    for (int t = 0; t < 4; ++t)
        users.emplace_back([t] {
            for (int i = 0; i < 500; ++i) {
                const size_t bytes = static_cast<size_t>(1 + (i * 37 + t) % 5000);
                void* data = nn::pool_take(bytes);
                std::memset(data, t, bytes);
                for (size_t j = 0; j < bytes; ++j) CHECK(static_cast<char*>(data)[j] == t);
                nn::pool_give(data);
            }
        });
    for (std::thread& user : users) user.join();
    CHECK(nn::pool_counters().bytes_in_use == before);
}

TEST(memory_refuses_what_nobody_has) {
    bool refused = false;
    try {
        nn::pool_take(size_t(1) << 62);
    } catch (const std::bad_alloc&) { refused = true; }
    CHECK(refused);
}

// Whether an array of float32 fits `axes`, after x[R,D] with R = 3, D = 4
bool fits(const char* axes, std::vector<int64_t> shape, std::vector<int64_t> stride,
          nn::DType dtype = nn::DType::f32, int itemsize = 4) {
    const std::string text = "k(x[R,D], y[" + std::string(axes) + ")";
    const nn::Signature signature = nn::parse(text.c_str());
    nn::Sizes sizes;
    nn::Array out{};
    std::string why;
    alignas(64) static float memory[4096];
    const int64_t known[2] = {3, 4}, dense[2] = {16, 4};
    CHECK(nn::take(signature.arguments[0], {memory, 2, known, dense, nn::DType::f32, 4}, nn::DType::f32,
                   sizes, out, why));
    return nn::take(signature.arguments[1],
                    {memory + 1024, static_cast<int>(shape.size()), shape.data(), stride.data(), dtype,
                     itemsize},
                    nn::DType::f32, sizes, out, why);
}

TEST(signature_takes_what_the_rule_says) {
    CHECK(fits("R,D]", {3, 4}, {16, 4}));
    CHECK(fits("R,D]", {3, 4}, {-400, 4}));  // any stride before the last axis
    CHECK(fits("R,D]", {3, 4}, {0, 4}));
    CHECK(!fits("R,D]", {3, 4}, {4, 12}));  // the last axis is not dense
    CHECK(!fits("R,D]", {3, 5}, {20, 4}));  // D is 4
    CHECK(!fits("R,D]", {12}, {4}));
    CHECK(!fits("R,D]", {3, 4}, {18, 4}));  // half an element
    CHECK(!fits("R,D]:int", {3, 4}, {16, 4}));
    CHECK(fits("D+1]", {5}, {4}) && !fits("D+1]", {4}, {4}));
    CHECK(fits("R,1]", {3, 1}, {8, 400}));
    CHECK(fits("...,D]", {2, 5, 4}, {160, 32, 4}));  // leading axes of one stride
    CHECK(!fits("...,D]", {2, 5, 4}, {16, 32, 4}));
    CHECK(fits("...]", {2, 5}, {20, 4}) && !fits("...]", {2, 5}, {40, 4}));
    CHECK(fits("...]", {}, {}));
    CHECK(fits("Z,D]", {0, 4}, {0, 0}));  // no elements: any strides
}

TEST(signature_marks) {
    const nn::Signature s = nn::parse("f(codes[P]:bytes, ids[N]:int; outputs:O, k) -> y[N,O], rest[K]:bytes");
    CHECK(s.arguments[0].kind == nn::Kind::bytes && s.arguments[2].size_of == 'O');
    CHECK(s.arguments[3].size_of == 'K' && s.results[1].kind == nn::Kind::bytes);
    CHECK(nn::dtype_of(s.results[1].kind, nn::DType::f32) == nn::DType::u8);
    nn::Sizes sizes;
    sizes.size['N'] = 2;
    nn::bind_number(s.arguments[2], 5.0, sizes);
    std::vector<int64_t> shape;
    CHECK(nn::result_shape(s.results[0], sizes, shape) && shape == (std::vector<int64_t>{2, 5}));
    CHECK(fits("D]:bytes", {4}, {1}, nn::DType::u8, 1) && !fits("D]:bytes", {4}, {4}));
}

TEST(every_kernel_is_in_the_table) {
    CHECK(!nn::kernels().empty());
    for (const nn::Kernel& kernel : nn::kernels()) {
        CHECK(nn::find_kernel(kernel.signature.name) == &kernel);
        CHECK(!kernel.dtypes().empty());
        for (nn::DType dtype : kernel.dtypes())
            for (nn::Level level : nn::levels_here()) CHECK(kernel.find(level, dtype));
    }
    CHECK(!nn::find_kernel("no_such"));
}

TEST(levels_are_chosen_by_name) {
    for (nn::Level level : nn::levels_here()) {
        CHECK(nn::use_level(nn::level_name(level)));
        CHECK(nn::level() == level);
    }
    CHECK(!nn::use_level("avx1024"));
}

}  // namespace
