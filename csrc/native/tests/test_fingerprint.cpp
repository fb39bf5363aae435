// Whether changes of memory are seen, wherever they are, and by however many threads.
#include "core/fingerprint.h"

#include <algorithm>
#include <vector>

#include "core/threads.h"
#include "tests/check.h"

namespace {

std::vector<char> drawn(int64_t bytes) {
    std::vector<char> data(static_cast<size_t>(bytes));
    uint32_t state = 7;
    for (char& one : data) one = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
    return data;
}

using Of = nn::Fingerprint (*)(const char*, int64_t);

void sees(Of of, std::vector<char>& data, int64_t place) {
    const auto size = static_cast<int64_t>(data.size());
    nn::set_threads(1);
    const nn::Fingerprint before = of(data.data(), size);
    char& byte = data[static_cast<size_t>(place)];
    byte = static_cast<char>(byte ^ 1);
    CHECK(!(of(data.data(), size) == before));
    byte = static_cast<char>(byte ^ 1);
    for (int threads : {1, 2, 3}) {
        nn::set_threads(threads);
        CHECK(of(data.data(), size) == before);
    }
    nn::set_threads(2);
}

TEST(a_fingerprint_sees_one_bit_that_changes) {
    for (int64_t size : {1, 7, 64, 65, 200}) {
        std::vector<char> data = drawn(size);
        for (int64_t place = 0; place < size; ++place) sees(nn::fingerprint, data, place);
    }
    for (int64_t size : {65535, 65536, 65537, 400000}) {
        std::vector<char> data = drawn(size);
        for (int64_t place = 0; place < size; place += 6551) sees(nn::fingerprint, data, place);
        sees(nn::fingerprint, data, size - 1);
    }
}

TEST(a_fingerprint_is_the_same_inside_a_loop) {
    nn::set_threads(2);
    const std::vector<char> data = drawn(400000);
    const auto of = [&] { return nn::fingerprint(data.data(), static_cast<int64_t>(data.size())); };
    const nn::Fingerprint outside = of();
    nn::parallel_chunks(8, 1, [&](int64_t begin, int64_t end) {
        for (; begin < end; ++begin) CHECK(of() == outside);
    });
}

// Equal pieces that change places, and lengths, are seen, too.
TEST(a_fingerprint_sees_order_and_length) {
    std::vector<char> data = drawn(3 << 16), other = data;
    std::swap_ranges(other.begin(), other.begin() + (1 << 16), other.begin() + (1 << 16));
    const auto size = static_cast<int64_t>(data.size());
    CHECK(!(nn::fingerprint(data.data(), size) == nn::fingerprint(other.data(), size)));
    const std::vector<char> zeros(1 << 17);
    CHECK(!(nn::fingerprint(zeros.data(), 0) == nn::fingerprint(zeros.data(), 1)));
    CHECK(!(nn::fingerprint(zeros.data(), 1 << 16) == nn::fingerprint(zeros.data(), 1 << 17)));
}

// Up to 1 MiB every byte; of more the beginning, the end, and a quarter of 4 MiB in between.
TEST(samples_see_stretches_of_large_memory) {
    std::vector<char> data = drawn(1 << 20);
    for (int64_t place = 0; place < 1 << 20; place += 104729) sees(nn::samples, data, place);
    data = drawn((4 << 20) + 12345);
    const auto size = static_cast<int64_t>(data.size());
    sees(nn::samples, data, 0);
    sees(nn::samples, data, size - 1);
    nn::set_threads(2);
    const nn::Fingerprint before = nn::samples(data.data(), size);
    int64_t seen = 0;
    for (int64_t page = 0; page < size / 4096; ++page) {
        char& byte = data[static_cast<size_t>(page * 4096)];
        byte = static_cast<char>(byte ^ 1);
        seen += !(nn::samples(data.data(), size) == before);
        byte = static_cast<char>(byte ^ 1);
    }
    CHECK(seen > size / 4096 / 8);
}

}  // namespace
