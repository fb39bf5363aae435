// The usual access at a glance, inlined into access(): where it points, whether its records are settled.
// All else is left to locate_closely() (bounds.cpp) and look_closely() (races.cpp).
#pragma once
#include "watch.h"

namespace emu {

bool locate_closely(Thread&, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site, Place&);
void look_closely(Thread&, const Place&, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site);

// ---- places -----------------------------------------------------------------------------------------------

inline bool inside(uintptr_t address, uint32_t bytes, uintptr_t begin, uintptr_t size) {
    return address - begin < size && bytes <= size - (address - begin);
}

// Which memory an access touches, once it is known to be inside a variable or an allocation.  Reports and
// abandons otherwise.  False: local or constant memory, of which nothing is remembered.
inline bool locate(Thread& t, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site, Place& place) {
    const BlockWatch& b = *t.block->watch;
    const uintptr_t offset = address - b.own_window;
    if ((what & (SHARED | GLOBAL | LOCAL | CONSTANT)) <= SHARED && offset < WINDOW) {
        const Extent& extent = watcher().shared_extents[site % EXTENT_SLOTS];
        place = {t.block->watch, static_cast<uint32_t>(offset)};
        if (inside(offset, bytes, extent.begin, extent.bytes)) return true;
    }
    return locate_closely(t, address, bytes, what, site, place);
}

// Which of the bytes [begin, end) lie in the word, as four bits.
inline uint32_t bytes_in_word(uintptr_t word, uintptr_t begin, uintptr_t end) {
    uint32_t mask = 0xf;
    if (word < begin) mask &= 0xfu << (begin - word);
    if (word + 4 > end) mask &= 0xfu >> (word + 4 - end);
    return mask;
}

// Calls f(cell, bytes, written, offset) for every word of a range; the last two are null and 0 where that is
// not remembered.
template <class F> void for_each_word(const Place& place, uintptr_t address, uint32_t bytes, F f) {
    if (place.window) {
        SharedShadow& shadow = place.window->shadow;
        const uintptr_t begin = place.offset, end = begin + bytes;
        for (uintptr_t word = begin & ~uintptr_t{3}; word < end; word += 4)
            f(shadow.cells[word / 4], bytes_in_word(word, begin, end), &shadow.written, word);
        return;
    }
    GlobalShadow& shadow = watcher().global;
    const bool written = shadow.knows_written(address);
    const uintptr_t end = address + bytes;
    Cell* cell = nullptr;
    for (uintptr_t word = address & ~uintptr_t{3}; word < end; word += 4, ++cell) {
        if (!cell || word % GlobalShadow::PAGE == 0) cell = shadow.cell(word);
        f(*cell, bytes_in_word(word, address, end), written ? &shadow.written : nullptr,
          written ? shadow.offset(word) : 0);
    }
}

// ---- records ----------------------------------------------------------------------------------------------

// A plain access of one word whose records are settled at a glance: by the thread itself, or before the last
// barrier.  All else is left to visit().
struct Glance {
    const BlockWatch& block;
    uint32_t actor, epoch, info;    // info without bytes
    uint32_t first;
    bool local;    // only threads of the own block get here

    bool behind(uint32_t e) const { return e < (local ? block.floor : first); }
    bool own_block(uint32_t a) const { return ((a ^ actor) >> THREAD_BITS) == 0; }
    bool settled(const Write& w, uint32_t bytes) const {
        return !(w.info & bytes) || behind(w.epoch) || w.actor == actor ||
               (!local && own_block(w.actor) && w.epoch < block.floor);
    }
    bool settled(const Entry& r, uint32_t bytes) const {
        return !(r.info & bytes) || behind(r.epoch) ||
               (r.warp == actor / WARP && r.lanes == 1u << actor % WARP) ||
               (!local && own_block(r.warp * WARP) && r.epoch < block.floor);
    }
    bool same_reader(const Entry& r, uint32_t bytes) const {
        return r.warp == actor / WARP && r.epoch == epoch &&
               ((r.info ^ (info | bytes)) & (TRAITS | BYTES)) == 0;
    }
};

inline bool drop_if_behind(const Glance& g, Chunks& chunks, Cell& cell) {
    if (cell.more == 0) return true;
    if (cell.more & Cell::HAS_WRITES) return false;
    const Chunk* chain = chunks.first(cell);
    if (chain && !g.behind(chain->latest)) return false;
    chunks.drop(cell);
    return true;
}

// Among the readers of other warps; false: there is no room without a closer look.
inline bool joins_readers(const Glance& g, Chunks& chunks, Cell& cell, uint32_t bytes) {
    const uint32_t warp = g.actor / WARP, lane_bit = 1u << g.actor % WARP;
    if (Chunk* c = chunks.first(cell)) {
        for (uint32_t i = c->count; i-- > 0;) {    // the newest first: a warp's lanes come one by one
            if (!g.same_reader(c->entries[i], bytes)) continue;
            c->entries[i].lanes |= lane_bit;
            return true;
        }
        if (c->count == Chunk::ENTRIES || c->next) return false;
    }
    chunks.add(cell, Entry{warp, lane_bit, g.epoch, g.info | bytes});
    return true;
}

inline bool glance_read(const Glance& g, Chunks& chunks, Cell& cell, uint32_t bytes, const Written* written,
                        size_t offset) {
    if (cell.more & Cell::HAS_WRITES || !g.settled(cell.write, bytes)) return false;
    Entry& r = cell.read;
    if (g.same_reader(r, bytes)) {    // whose bytes were found written
        r.lanes |= 1u << g.actor % WARP;
        return true;
    }
    const bool others = (r.info & BYTES) && !g.behind(r.epoch);
    const bool known = others && (r.info & bytes) == bytes;
    if (written && !known && (written->word(offset) & bytes) != bytes) return false;
    if (others) return joins_readers(g, chunks, cell, bytes);
    drop_if_behind(g, chunks, cell);
    r = {g.actor / WARP, 1u << g.actor % WARP, g.epoch, g.info | bytes};
    return true;
}

inline bool glance_write(const Glance& g, Chunks& chunks, Cell& cell, uint32_t bytes, Written* written,
                         size_t offset) {
    Write& w = cell.write;
    if (!g.settled(w, bytes) || !g.settled(cell.read, bytes) || !drop_if_behind(g, chunks, cell))
        return false;
    if ((w.info & BYTES & ~bytes) && !g.behind(w.epoch)) return false;
    w = {g.actor, g.epoch, g.info | bytes};
    cell.read.info &= ~bytes;
    if (written) written->set_word(offset, bytes);
    return true;
}

inline void check_access(Thread& t, const Place& place, uintptr_t address, uint32_t bytes, uint32_t what,
                  uint32_t site) {
    const BlockWatch& block = *t.block->watch;
    const ThreadWatch& me = block.threads[t.linear];
    if (what & (KIND & ~WRITE) || what & (STRONG | ACQUIRE | RELEASE | ASYNC_PROXY)) {
        look_closely(t, place, address, bytes, what, site);
        return;
    }
    const bool writes = (what & KIND) == WRITE;
    const bool local = place.window && block.windows_bytes == WINDOW;
    const Glance g{block,
                   me.actor,
                   me.epoch,
                   (writes ? WROTE : 0u) | site << SITE_SHIFT,
                   place.window ? place.window->first : watcher().first,
                   local};
    Chunks& chunks = place.window ? place.window->shadow.chunks : watcher().global.chunks;
    if (bytes <= 4 && place.window) {    // the commonest
        SharedShadow& shadow = place.window->shadow;
        Cell& cell = shadow.cells[place.offset / 4];
        const uint32_t mask = ((1u << bytes) - 1) << place.offset % 4;
        const size_t word = place.offset & ~3u;
        if (writes ? glance_write(g, chunks, cell, mask, &shadow.written, word)
                   : glance_read(g, chunks, cell, mask, &shadow.written, word))
            return;
        look_closely(t, place, address, bytes, what, site);
        return;
    }
    bool all = true;
    for_each_word(place, address, bytes, [&](Cell& cell, uint32_t mask, Written* written, size_t offset) {
        all = all && (writes ? glance_write(g, chunks, cell, mask, written, offset)
                             : glance_read(g, chunks, cell, mask, written, offset));
    });
    if (!all)
        look_closely(t, place, address, bytes, what, site);    // words seen at a glance may be seen again
}

}    // namespace emu
