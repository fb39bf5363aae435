// Races and uninitialised reads: what an access finds in the cells it covers, and what it leaves there.
//
// Two accesses to a byte by two threads race unless one happened before the other, both only read, or both
// are strong (atomic, volatile, relaxed) at a scope that covers both.  A read leaves itself beside the write
// it saw; a write checks both and replaces them.  A record that happened before its replacement may go:
// whatever comes after the newer comes after the older.
#include <algorithm>

#include "glance.h"

namespace emu {

namespace {

// Entries per cell.  Readers beyond them are forgotten: whoever races with those races with one of the kept
// as well, unless it waited for exactly these.
constexpr uint32_t MOST_OWN_READERS = 64;
constexpr uint32_t MOST_OTHER_READERS = 4;    // of other blocks: what all blocks read is seldom written

uint32_t traits(uint32_t what) {
    uint32_t info = 0;
    if ((what & KIND) != READ) info |= WROTE;
    if ((what & KIND) == ATOMIC) info |= ATOMICALLY;
    if (what & (STRONG | ACQUIRE | RELEASE)) info |= STRONGLY;
    if (what & SCOPE_BLOCK) info |= BLOCK_SCOPE;
    if (what & ASYNC_PROXY) info |= BY_ASYNC;
    return info;
}

// Both sides atomic, volatile or relaxed, and each within the other's scope.
bool both_strong(const Accessor& a, uint32_t own, uint32_t other_warp, uint32_t other) {
    constexpr uint32_t ANY = ATOMICALLY | STRONGLY;
    if (!(own & ANY) || !(other & ANY)) return false;
    return !((own | other) & BLOCK_SCOPE) || other_warp >> (THREAD_BITS - 5) == a.block.ordinal;
}

// The accessor with what its cells share.
struct Visit {
    const Accessor& a;
    uint32_t warp, lane_bit;    // own
    uint32_t info;              // traits and site, no bytes
    bool writes;
    bool local;    // only threads of the own block get here: the floor decides at once

    bool valid(uint32_t epoch) const { return epoch >= a.first; }
    bool settled(uint32_t epoch) const { return local && epoch < a.block.floor; }
    bool ordered(uint32_t actor, uint32_t epoch) const {
        return happened_before(a.block, a.me, actor, epoch);
    }
};

// ---- conflicts --------------------------------------------------------------------------------------------

void check_entry(const Visit& v, const Entry& e) {
    for (uint32_t lanes = e.lanes; lanes; lanes &= lanes - 1) {
        const uint32_t actor = e.warp * WARP + static_cast<uint32_t>(__builtin_ctz(lanes));
        if (v.ordered(actor, e.epoch) || both_strong(v.a, v.info, e.warp, e.info)) continue;
        report_race(v.a, actor, e.info);
        return;    // one report per pair of instructions is enough
    }
}

bool all_ordered(const Visit& v, const Entry& e) {
    for (uint32_t lanes = e.lanes; lanes; lanes &= lanes - 1) {
        if (!v.ordered(e.warp * WARP + static_cast<uint32_t>(__builtin_ctz(lanes)), e.epoch)) return false;
    }
    return true;
}

// A generic write that the async proxy reads needs fence.proxy.async between, besides the ordering.
void check_proxy(const Visit& v, uint32_t actor, uint32_t epoch, uint32_t info) {
    if (v.writes || !(v.info & BY_ASYNC) || (info & BY_ASYNC) || !v.a.in_window) return;
    if (block_of_actor(actor) != v.a.block.ordinal) return;
    const Fenced* fenced = v.a.me.fenced.get();
    if (!fenced || !fenced->views[Fenced::PROXY].knows(thread_of_actor(actor), epoch))
        report_unfenced_proxy(v.a, actor, info);
}

void check_write(const Visit& v, const Write& w, uint32_t bytes) {
    if (!(w.info & bytes) || !v.valid(w.epoch)) return;
    if (v.info & BY_ASYNC) check_proxy(v, w.actor, w.epoch, w.info);
    if (w.actor == v.a.me.actor || v.settled(w.epoch) || v.ordered(w.actor, w.epoch)) return;
    if (!both_strong(v.a, v.info, w.actor / WARP, w.info)) report_race(v.a, w.actor, w.info);
}

void check_read(const Visit& v, const Entry& r, uint32_t bytes) {
    if (!(r.info & bytes) || !v.valid(r.epoch) || v.settled(r.epoch)) return;
    if (r.warp == v.warp && r.lanes == v.lane_bit) return;
    check_entry(v, r);
}

// Everything in the chunks: what is in flight conflicts whoever issued it.  True: something was in flight.
bool check_more(const Visit& v, Cell& cell, uint32_t bytes) {
    bool in_flight = false;
    for (Chunk* c = v.a.chunks.first(cell); c; c = v.a.chunks.next(*c)) {
        for (uint32_t i = 0; i < c->count; ++i) {
            const Entry& e = c->entries[i];
            if (!(e.info & bytes) || !(v.writes || e.info & WROTE)) continue;
            if (e.info & IN_FLIGHT) {
                in_flight = true;
                report_race(v.a, e.warp * WARP + static_cast<uint32_t>(__builtin_ctz(e.lanes)), e.info);
            } else if (v.valid(e.epoch) && !v.settled(e.epoch)) {
                if (!v.writes && v.info & BY_ASYNC)
                    check_proxy(v, e.warp * WARP + static_cast<uint32_t>(__builtin_ctz(e.lanes)), e.epoch,
                                e.info);
                check_entry(v, e);
            }
        }
    }
    return in_flight;
}

// ---- records ----------------------------------------------------------------------------------------------

bool same_kind(uint32_t info, uint32_t other) { return ((info ^ other) & (TRAITS | BYTES)) == 0; }

// A reader that has no room in the cell itself.
void add_reader(const Visit& v, Cell& cell, uint32_t bytes) {
    const Entry mine{v.warp, v.lane_bit, v.a.me.epoch, v.info | bytes};
    uint32_t own = 0, others = 0;
    for (Chunk* c = v.a.chunks.first(cell); c; c = v.a.chunks.next(*c)) {
        for (uint32_t i = 0; i < c->count; ++i) {
            Entry& e = c->entries[i];
            if (e.info & (WROTE | IN_FLIGHT)) continue;
            if (e.warp == mine.warp && e.epoch == mine.epoch && same_kind(e.info, mine.info)) {
                e.lanes |= mine.lanes;
                return;
            }
            const bool superseded = (e.info & BYTES & ~bytes) == 0 && all_ordered(v, e);
            const bool other = e.warp >> (THREAD_BITS - 5) != v.a.block.ordinal;
            if (!v.valid(e.epoch) || v.settled(e.epoch) || superseded) e.info = 0;
            else if (!other) ++own;
            else if (++others > MOST_OTHER_READERS) e.info = 0;
        }
    }
    v.a.chunks.tidy(cell);
    if (own < MOST_OWN_READERS) v.a.chunks.add(cell, mine);
}

void record_read(const Visit& v, Cell& cell, uint32_t bytes) {
    Entry& r = cell.read;
    if (r.warp == v.warp && r.epoch == v.a.me.epoch && same_kind(r.info, v.info | bytes)) {
        r.lanes |= v.lane_bit;
        return;
    }
    const bool own = r.warp == v.warp && r.lanes == v.lane_bit && (r.info & BYTES & ~bytes) == 0;
    if (!(r.info & BYTES) || !v.valid(r.epoch) || v.settled(r.epoch) || own) {
        r = {v.warp, v.lane_bit, v.a.me.epoch, v.info | bytes};
        return;
    }
    add_reader(v, cell, bytes);
}

// A write has replaced what was known of these bytes.
void drop_bytes(const Visit& v, Cell& cell, uint32_t bytes) {
    bool emptied = false;
    for (Chunk* c = v.a.chunks.first(cell); c; c = v.a.chunks.next(*c)) {
        for (uint32_t i = 0; i < c->count; ++i) {
            Entry& e = c->entries[i];
            if (e.info & IN_FLIGHT) continue;
            e.info &= ~bytes;
            if (!v.valid(e.epoch) || v.settled(e.epoch)) e.info &= ~static_cast<uint32_t>(BYTES);
            emptied |= (e.info & BYTES) == 0;
        }
    }
    if (emptied) v.a.chunks.tidy(cell);
}

void record_write(const Visit& v, Cell& cell, uint32_t bytes) {
    cell.read.info &= ~bytes;
    if (cell.more) drop_bytes(v, cell, bytes);
    Write& w = cell.write;
    const uint32_t left = w.info & BYTES & ~bytes;
    if (left && v.valid(w.epoch) && !v.settled(w.epoch)) {    // other bytes of the word, by an earlier write
        if (w.actor == v.a.me.actor && w.epoch == v.a.me.epoch && ((w.info ^ v.info) & TRAITS) == 0) {
            bytes |= left;
        } else {
            const Entry before{w.actor / WARP, 1u << w.actor % WARP, w.epoch,
                               (w.info & ~static_cast<uint32_t>(BYTES)) | left};
            v.a.chunks.add(cell, before);
        }
    }
    w = {v.a.me.actor, v.a.me.epoch, v.info | bytes};
}

// ---- one cell ---------------------------------------------------------------------------------------------

inline void visit(const Visit& v, Cell& cell, uint32_t bytes, Written* written, size_t offset) {
    check_write(v, cell.write, bytes);
    bool in_flight = false;
    if (v.writes) check_read(v, cell.read, bytes);
    if (__builtin_expect(cell.more != 0, 0)) in_flight = check_more(v, cell, bytes);
    if (!v.writes) {
        if (written && !in_flight && (written->word(offset) & bytes) != bytes) {
            report_uninitialized(v.a);
            written->set_word(offset, bytes);    // once
        }
        record_read(v, cell, bytes);
        return;
    }
    if (written) {
        // An atomic also reads; whether it is an exchange, which need not care, is looked up only when it
        // matters.
        if (v.info & ATOMICALLY && !in_flight && (written->word(offset) & bytes) != bytes)
            report_uninitialized(v.a);
        written->set_word(offset, bytes);
    }
    record_write(v, cell, bytes);
}

Accessor accessor(Thread& t, const Place& place, uintptr_t address, uint32_t bytes, uint32_t what,
                  uint32_t site) {
    BlockWatch& block = *t.block->watch;
    Watcher& w = watcher();
    return Accessor{t,
                    block,
                    block.threads[t.linear],
                    address,
                    bytes,
                    what,
                    site,
                    place.window != nullptr,
                    place.window ? place.window->first : w.first,
                    place.window ? place.window->shadow.chunks : w.global.chunks};
}

Visit visitor(const Accessor& a, uint32_t site) {
    return Visit{a,
                 a.me.actor / WARP,
                 1u << a.me.actor % WARP,
                 traits(a.what) | site << SITE_SHIFT,
                 (a.what & KIND) != READ,
                 a.in_window && a.block.windows_bytes == WINDOW};
}

}    // namespace

void look_closely(Thread& t, const Place& place, uintptr_t address, uint32_t bytes, uint32_t what,
                  uint32_t site) {
    const Accessor a = accessor(t, place, address, bytes, what, site);
    const Visit v = visitor(a, site);
    for_each_word(place, address, bytes, [&](Cell& cell, uint32_t mask, Written* written, size_t offset) {
        visit(v, cell, mask, written, offset);
    });
}

// ---- in flight --------------------------------------------------------------------------------------------

// The bytes are marked until the operation lands.  Who writes must come after all earlier accesses, as if it
// wrote now.
void mark_in_flight(Thread& t, const Place& place, const InFlight& f) {
    const Accessor a =
        accessor(t, place, f.address, f.bytes, f.write ? WRITE | ASYNC_PROXY : READ | ASYNC_PROXY, f.site);
    const Visit v = visitor(a, f.site);
    for_each_word(place, f.address, f.bytes, [&](Cell& cell, uint32_t mask, Written*, size_t) {
        if (f.write) {
            check_write(v, cell.write, mask);
            check_read(v, cell.read, mask);
            if (cell.more) check_more(v, cell, mask);
        }
        const uint32_t info = v.info | IN_FLIGHT | mask;
        if (Chunk* c =
                a.chunks.first(cell)) {    // copies into neighbouring bytes, or the same range issued twice
            for (; c; c = a.chunks.next(*c))
                for (uint32_t i = 0; i < c->count; ++i)
                    if (c->entries[i].warp == v.warp && c->entries[i].lanes == v.lane_bit &&
                        c->entries[i].info == info)
                        return;
        }
        a.chunks.add(cell, Entry{v.warp, v.lane_bit, a.me.epoch, info});
    });
}

void unmark_in_flight(Thread& t, const Place& place, const InFlight& f, bool record) {
    const Accessor a =
        accessor(t, place, f.address, f.bytes, f.write ? WRITE | ASYNC_PROXY : READ | ASYNC_PROXY, f.site);
    const Visit v = visitor(a, f.site);
    const uint32_t issuer = f.actor / WARP, lane_bit = 1u << f.actor % WARP;    // another thread may land it
    for_each_word(place, f.address, f.bytes, [&](Cell& cell, uint32_t mask, Written* written, size_t offset) {
        for (Chunk* c = a.chunks.first(cell); c; c = a.chunks.next(*c))
            for (uint32_t i = 0; i < c->count; ++i) {
                Entry& e = c->entries[i];
                if (e.info & IN_FLIGHT && e.warp == issuer && e.lanes == lane_bit &&
                    site_of_info(e.info) == f.site)
                    e.info &= ~mask;
            }
        a.chunks.tidy(cell);
        if (!record) return;
        if (f.write) {
            record_write(v, cell, mask);
            if (written) written->set_word(offset, mask);
        } else {
            record_read(v, cell, mask);
        }
    });
}

}    // namespace emu
