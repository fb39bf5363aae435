// Vector clocks: joining, and copies only where a clock is shared (clocks.h).
#include "clocks.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace emu {

namespace {

constexpr size_t SPARES = 2048;    // clocks kept for reuse: about two per thread of a block

// Clocks of one launch have one size: freed ones are kept for the next barrier.
struct Spares {
    uint32_t size = 0;
    std::vector<Clock*> clocks;
};
Spares& spares() {
    static Spares* instance = new Spares;    // never destroyed: clocks may outlive static objects at exit
    return *instance;
}

size_t bytes_of(uint32_t size) { return sizeof(Clock) + size * sizeof(uint32_t); }

enum class Order { same, first_later, second_later, neither };

Order compare(const Clock& a, const Clock& b) {
    bool more = false, less = false;
    for (uint32_t i = 0; i < a.size; ++i) {
        more |= a.epochs[i] > b.epochs[i];
        less |= a.epochs[i] < b.epochs[i];
    }
    if (more) return less ? Order::neither : Order::first_later;
    return less ? Order::second_later : Order::same;
}

Clock* copy(const Clock& clock) {
    Clock* made = Clock::create(clock.size);
    std::memcpy(made->epochs, clock.epochs, clock.size * sizeof(uint32_t));
    return made;
}

void make_own(Ref<Clock>& clock) {
    if (clock.shared()) clock = Ref<Clock>(copy(*clock));
}

template <class T> void make_own(Ref<T>& object) {
    if (!object.shared()) return;
    T* made = new T(*object);
    made->references = 0;
    object = Ref<T>(made);
}

void join_span(Ref<Blocks::Span>& into, const Ref<Blocks::Span>& from) {
    if (!from || into == from) return;
    if (!into) {
        into = from;
        return;
    }
    make_own(into);
    for (uint32_t i = 0; i < Blocks::SPAN; ++i) join(into->views[i], from->views[i]);
}

}    // namespace

Clock* Clock::create(uint32_t size) {
    Spares& s = spares();
    Clock* clock = nullptr;
    if (s.size == size && !s.clocks.empty()) {
        clock = s.clocks.back();
        s.clocks.pop_back();
    } else {
        clock = static_cast<Clock*>(std::malloc(bytes_of(size)));
        if (!clock) std::abort();
    }
    std::memset(static_cast<void*>(clock), 0, bytes_of(size));
    clock->size = size;
    return clock;
}

void Clock::destroy(Clock* clock) {
    Spares& s = spares();
    if (s.size != clock->size) {
        for (Clock* spare : s.clocks) std::free(spare);
        s.clocks.clear();
        s.size = clock->size;
    }
    if (s.clocks.size() < SPARES) s.clocks.push_back(clock);
    else std::free(clock);
}

void join(Ref<Clock>& into, const Ref<Clock>& from) {
    if (!from || into == from) return;
    if (!into) {
        into = from;
        return;
    }
    const Order order = compare(*into, *from);
    if (order == Order::same || order == Order::first_later) return;
    if (order == Order::second_later) {
        into = from;
        return;
    }
    make_own(into);
    for (uint32_t i = 0; i < into->size; ++i) into->epochs[i] = std::max(into->epochs[i], from->epochs[i]);
}

void raise(Ref<Clock>& clock, uint32_t size, uint32_t thread, uint32_t epoch) {
    if (!clock) clock = Ref<Clock>(Clock::create(size));
    if (clock->epochs[thread] >= epoch) return;
    make_own(clock);
    clock->epochs[thread] = epoch;
}

void join(View& into, const View& from) {
    into.floor = std::max(into.floor, from.floor);
    join(into.clock, from.clock);
}

const View* Blocks::find(uint32_t block) const {
    const uint32_t span = block / SPAN;
    return span < spans.size() && spans[span] ? &spans[span]->views[block % SPAN] : nullptr;
}

void join(Ref<Blocks>& into, const Ref<Blocks>& from) {
    if (!from || into == from) return;
    if (!into) {
        into = from;
        return;
    }
    make_own(into);
    if (into->spans.size() < from->spans.size()) into->spans.resize(from->spans.size());
    for (size_t i = 0; i < from->spans.size(); ++i) join_span(into->spans[i], from->spans[i]);
}

void join(Ref<Blocks>& into, uint32_t block, const View& view) {
    if (view.empty()) return;
    if (!into) into = Ref<Blocks>(new Blocks);
    make_own(into);
    const uint32_t span = block / Blocks::SPAN;
    if (into->spans.size() <= span) into->spans.resize(span + 1);
    Ref<Blocks::Span>& place = into->spans[span];
    if (!place) place = Ref<Blocks::Span>(new Blocks::Span);
    make_own(place);
    join(place->views[block % Blocks::SPAN], view);
}

void join(Ref<Fenced>& into, const Ref<Fenced>& from) {
    if (!from || into == from) return;
    if (!into) {
        into = from;
        return;
    }
    make_own(into);
    for (uint32_t kind = 0; kind < Fenced::KINDS; ++kind) join(into->views[kind], from->views[kind]);
    join(into->others, from->others);
    join(into->near, from->near);
}

}    // namespace emu
