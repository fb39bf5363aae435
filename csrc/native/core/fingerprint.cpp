#include "core/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/threads.h"

namespace nn {
namespace {

constexpr int64_t line = 64, stretch = 256, piece = int64_t(64) << 10, whole = int64_t(1) << 20;

void mix(Fingerprint& f, const char* data, int64_t bytes) {
    const auto step = [](uint64_t chain, uint64_t word) {
        const uint64_t x = (chain ^ word) * 0x9e3779b97f4a7c15u;
        return x ^ (x >> 29);
    };
    Fingerprint own = f;  // in registers: what is read might be f's own
    int64_t at = 0;
    for (; at + line <= bytes; at += line) {
        uint64_t word[8];
        std::memcpy(word, data + at, line);
        for (int i = 0; i < 8; ++i) own.chain[i] = step(own.chain[i], word[i]);
    }
    for (; at < bytes; ++at) own.chain[0] = step(own.chain[0], static_cast<unsigned char>(data[at]));
    f = own;
}

// part(i, fingerprint) of each of `count` pieces, on all threads, and then of these in order
template <class F>
Fingerprint of_pieces(int64_t count, const F& part) {
    std::vector<Fingerprint> found(static_cast<size_t>(count));
    parallel_chunks(count, 2, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) part(i, found[static_cast<size_t>(i)]);
    });
    Fingerprint all;
    for (const Fingerprint& one : found)
        mix(all, reinterpret_cast<const char*>(one.chain), sizeof one.chain);
    return all;
}

}  // namespace

Fingerprint fingerprint(const char* data, int64_t bytes) {
    return of_pieces((bytes + piece - 1) / piece, [&](int64_t i, Fingerprint& f) {
        mix(f, data + i * piece, std::min(piece, bytes - i * piece));
    });
}

Fingerprint samples(const char* data, int64_t bytes) {
    if (bytes <= whole) return fingerprint(data, bytes);
    constexpr int64_t count = whole / stretch, together = piece / stretch, ahead = 8;
    const int64_t apart = (bytes - stretch) / (count - 1);  // step by step: bytes * i may be too large
    const auto place = [&](int64_t i) { return i + 1 < count ? data + apart * i : data + bytes - stretch; };
    return of_pieces(count / together, [&](int64_t i, Fingerprint& f) {
        for (int64_t j = i * together; j < (i + 1) * together; ++j) {
            const char* const coming = place(std::min(j + ahead, count - 1));
            for (int64_t at = 0; at < stretch; at += line) __builtin_prefetch(coming + at);
            mix(f, place(j), stretch);
        }
    });
}

}  // namespace nn
