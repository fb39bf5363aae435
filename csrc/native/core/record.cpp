#include "core/record.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "core/memory.h"
#include "core/registry.h"
#include "core/threads.h"

namespace nn {
namespace {

constexpr int64_t most_saved = int64_t(256) << 20;  // of what is changed in place, for the check

bool holds(const char* begin, int64_t bytes, const void* data) {
    return begin <= data && data < begin + std::max<int64_t>(bytes, 1);
}

// First and last byte that an array covers
void extent(const Array& array, char*& begin, int64_t& bytes) {
    int64_t low = 0, high = dtype_size(array.dtype);
    bool empty = false;
    for (int i = 0; i < array.axes; ++i) {
        empty |= array.shape[i] == 0;
        const int64_t span = (array.shape[i] - 1) * array.stride[i] * dtype_size(array.dtype);
        (span < 0 ? low : high) += span;
    }
    begin = static_cast<char*>(array.data) + (empty ? 0 : low);
    bytes = empty ? 0 : high - low;
}

// Calls f(index, item) for every array of the kernel, in a call's order.
template <class F>
void each_array(const Signature& signature, const F& f) {
    int index = 0;
    for (const Item& item : signature.results) f(index++, item, true);
    for (const Item& item : signature.arguments)
        if (item.is_array) f(index++, item, false);
}

}  // namespace

void Recording::note_read(char* data, int64_t bytes) {
    bool named = false;
    for (Range& range : declared_)
        if (holds(range.begin, range.bytes, data)) named = range.read = true;
    const auto same = [&](const Range& range) { return range.begin == data && range.bytes == bytes; };
    if (!named && std::none_of(found_.begin(), found_.end(), same))
        found_.push_back({data, bytes, samples(data, bytes), true});
}

bool Recording::written_to(const Range& range) const {
    return std::any_of(written_.begin(), written_.end(), [&](const Range& other) {
        return range.begin < other.begin + other.bytes && other.begin < range.begin + range.bytes;
    });
}

Recording::~Recording() { pool_give(arena_); }

void Recording::declare(const void* data, int64_t bytes) {
    char* const begin = static_cast<char*>(const_cast<void*>(data));
    declared_.push_back({begin, bytes, samples(begin, bytes)});
}

void Recording::allocated(void* data, int64_t bytes) {
    buffers_.push_back({static_cast<char*>(data), bytes});
    alive_bytes_ += bytes;
    eager_bytes_ = std::max(eager_bytes_, alive_bytes_);
}

void Recording::freed(void* data) {
    for (auto buffer = buffers_.rbegin(); buffer != buffers_.rend(); ++buffer)
        if (buffer->data == data && buffer->held) {
            buffer->held = false;
            alive_bytes_ -= buffer->bytes;
            return;
        }
}

// The latest buffer at this address: an earlier one there has been given back.
int Recording::find_buffer(const void* data) const {
    for (int i = static_cast<int>(buffers_.size()) - 1; i >= 0; --i)
        if (buffers_[i].held && holds(buffers_[i].data, buffers_[i].bytes, data)) return i;
    return -1;
}

bool Recording::declared(const void* data) const {
    if (made_ && !made_(data)) return true;
    return std::any_of(declared_.begin(), declared_.end(),
                       [&](const Range& range) { return holds(range.begin, range.bytes, data); });
}

std::string Recording::before(const Call& call) {
    std::string refusal;
    each_array(call.kernel->signature, [&](int i, const Item& item, bool result) {
        const Array& array = call.array[i];
        if (!array.data || !refusal.empty()) return;
        char* begin;
        int64_t bytes;
        extent(array, begin, bytes);
        if (bytes == 0) return;
        const int buffer = find_buffer(array.data);
        const bool written = buffer >= 0 && (result || buffers_[buffer].first >= 0);
        if (!written && !declared(array.data))
            refusal = item.name +
                      " is neither the result of a recorded kernel nor declared: what made it is not "
                      "part of the recording";
        else if (item.in_place && buffer < 0 && (saved_bytes_ += bytes) > most_saved)
            refusal = item.name + " is changed in place, and the check would have to keep copies of more " +
                      "than " + std::to_string(most_saved >> 20) + " MiB of such memory";
        else if (item.in_place && buffer < 0)
            changed_.push_back({begin, std::vector<char>(begin, begin + bytes)});
        if (!refusal.empty() || buffer >= 0) return;
        if (result || item.in_place)
            written_.push_back({begin, bytes, {}});
        else
            note_read(begin, bytes);
    });
    int number = 0;
    for (const Item& item : call.kernel->signature.arguments)
        if (!item.is_array) {
            const double* at = call.number[number++].at;
            if (at && !declared(at) && refusal.empty())
                refusal = item.name + " is read from memory that is not declared";
        }
    return refusal;
}

void Recording::add(const Call& call, Function run) {
    Step step{call, run, {}, {}};
    const int now = static_cast<int>(steps_.size());
    std::fill(step.buffer, step.buffer + max_arrays, -1);
    each_array(call.kernel->signature, [&](int i, const Item&, bool) {
        step.where[i] = static_cast<char*>(call.array[i].data);
        if (!call.array[i].data) return;
        const int found = step.buffer[i] = find_buffer(call.array[i].data);
        if (found < 0) return;
        Buffer& buffer = buffers_[found];
        if (buffer.first < 0) buffer.first = now;
        buffer.last = now;
    });
    steps_.push_back(step);
}

// Largest first, each at the lowest place where nothing lies that lives at the same time.
void Recording::plan() {
    std::vector<int> order;
    for (int i = 0; i < static_cast<int>(buffers_.size()); ++i)
        if (!buffers_[i].held && buffers_[i].first >= 0) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return buffers_[a].bytes > buffers_[b].bytes; });
    std::vector<int> placed;
    for (int i : order) {
        Buffer& buffer = buffers_[i];
        std::vector<std::pair<int64_t, int64_t>> taken;
        for (int j : placed)
            if (buffers_[j].first <= buffer.last && buffer.first <= buffers_[j].last)
                taken.push_back({buffers_[j].place, buffers_[j].place + buffers_[j].bytes});
        std::sort(taken.begin(), taken.end());
        int64_t place = 0;
        for (auto [begin, end] : taken) {
            if (place + buffer.bytes <= begin) break;
            place = std::max(place, (end + 63) / 64 * 64);
        }
        buffer.place = place;
        arena_bytes_ = std::max(arena_bytes_, place + buffer.bytes);
        placed.push_back(i);
    }
}

void Recording::move_to_arena() {
    pool_trim();  // what the recorded run needed is not needed beside the arena
    arena_ = static_cast<char*>(pool_take(static_cast<size_t>(arena_bytes_)));
    for (Step& step : steps_)
        for (int i = 0; i < max_arrays; ++i) {
            if (step.buffer[i] < 0 || buffers_[step.buffer[i]].held) continue;
            const Buffer& buffer = buffers_[step.buffer[i]];
            step.call.array[i].data = arena_ + buffer.place + (step.where[i] - buffer.data);
        }
}

std::string Recording::finish() {
    std::string found = changed_between();
    if (found.empty()) {
        plan();
        move_to_arena();
        found = check();
    }
    changed_.clear();
    changed_.shrink_to_fit();
    return found;
}

// Of what kernels only read; see the header.
std::string Recording::changed_between() const {
    int64_t differing = 0, read = 0;
    for (const auto* ranges : {&declared_, &found_})
        for (const Range& range : *ranges)
            if (range.read && !written_to(range)) {
                ++read;
                differing += !(samples(range.begin, range.bytes) == range.bits);
            }
    return differing == 0 ? ""
                          : std::to_string(differing) + " of " + std::to_string(read) +
                                " arrays that kernels read were changed by something else meanwhile, "
                                "which is not recorded";
}

std::string Recording::check() {
    struct Expected {
        char* data;
        int64_t bytes;
        Fingerprint bits;
    };
    std::vector<Expected> expected;
    const auto expect = [&](char* data, int64_t bytes) {
        expected.push_back({data, bytes, fingerprint(data, bytes)});
    };
    for (const Buffer& buffer : buffers_)
        if (buffer.held && buffer.first >= 0) expect(buffer.data, buffer.bytes);
    for (const Changed& one : changed_) expect(one.data, static_cast<int64_t>(one.before.size()));
    for (const Expected& one : expected) std::memset(one.data, 0xff, static_cast<size_t>(one.bytes));
    std::memset(arena_, 0xff, static_cast<size_t>(arena_bytes_));
    for (auto one = changed_.rbegin(); one != changed_.rend(); ++one)  // the earliest state last
        std::memcpy(one->data, one->before.data(), one->before.size());
    replay();
    int64_t wrong = 0;
    for (const Expected& one : expected) wrong += !(fingerprint(one.data, one.bytes) == one.bits);
    return wrong == 0
               ? ""
               : "the replay gave " + std::to_string(wrong) + " of " + std::to_string(expected.size()) +
                     " results otherwise than the recorded run: something between the kernels is not "
                     "recorded";
}

void Recording::replay() const {
    const StayAwake workers_spin_on;
    for (const Step& step : steps_)
        if (!step.run(step.call))
            throw std::runtime_error(step.call.kernel->signature.name +
                                     " does not take the values that its arguments hold now");
}

std::vector<Recording::Timed> Recording::profile(int rounds) const {
    using Clock = std::chrono::steady_clock;
    const StayAwake workers_spin_on;
    std::vector<Timed> found;
    for (const Step& step : steps_) {
        int64_t bytes = 0;
        for (const Array& array : step.call.array) {
            int64_t size = array.data ? dtype_size(array.dtype) : 0;
            for (int i = 0; i < array.axes; ++i) size *= array.shape[i];
            bytes += size;
        }
        found.push_back({step.call.kernel->signature.name, bytes, 0.0});
    }
    for (int round = 0; round < rounds; ++round) {
        auto from = Clock::now();
        for (size_t i = 0; i < steps_.size(); ++i) {
            if (!steps_[i].run(steps_[i].call)) throw std::runtime_error(found[i].kernel + " declined");
            const auto now = Clock::now();
            found[i].seconds += std::chrono::duration<double>(now - from).count() / rounds;
            from = now;
        }
    }
    return found;
}

int64_t Recording::output_bytes() const {
    return std::accumulate(buffers_.begin(), buffers_.end(), int64_t(0),
                           [](int64_t sum, const Buffer& b) { return sum + (b.held ? b.bytes : 0); });
}

std::vector<void*> Recording::outputs() const {
    std::vector<void*> found;
    for (const Buffer& buffer : buffers_)
        if (buffer.held) found.push_back(buffer.data);
    return found;
}

}  // namespace nn
