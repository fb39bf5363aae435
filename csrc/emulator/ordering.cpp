// What orders memory: barriers, __syncwarp, fences with flags or atomics, mbarriers.  Shuffles, votes and mma
// order nothing.
//
// Fences and flags follow the PTX memory model, leniently where people rely on more: a relaxed or volatile
// load, or an atomic, imports without a fence behind it (the last-block ticket), and what other threads of
// the block fenced before a barrier may be published by the one that goes on to the atomic.
#include <algorithm>

#include "checker.h"
#include "watch.h"

namespace emu {

namespace {

BlockWatch* checked(const Block& block) { return block.watch && block.watch->check ? block.watch : nullptr; }

uint32_t thread_count(const BlockWatch& b) { return static_cast<uint32_t>(b.threads.size()); }

// ---- meeting ----------------------------------------------------------------------------------------------

Knowledge knowledge_of(const ThreadWatch& me) {
    return Knowledge{thread_of_actor(me.actor), me.epoch, me.clock, me.others, me.fenced};
}

void learn(ThreadWatch& me, const Knowledge& met) {
    join(me.clock, met.clock);
    join(me.others, met.others);
    join(me.fenced, met.fenced);
}

// What a set of threads knows together, their own accesses included.
Knowledge pool(const BlockWatch& b, const std::vector<Knowledge>& brought) {
    Knowledge all;
    for (const Knowledge& k : brought) {
        join(all.clock, k.clock);
        join(all.others, k.others);
        join(all.fenced, k.fenced);
    }
    for (const Knowledge& k : brought) raise(all.clock, thread_count(b), k.thread, k.epoch);
    return all;
}

// All threads of the block that still run have met: from now on they know all that the block did.
void meet_all(BlockWatch& b) {
    Knowledge all;
    for (const ThreadWatch& t : b.threads) {
        if (t.others) join(all.others, t.others);
        if (t.fenced) join(all.fenced, t.fenced);
    }
    b.floor = watcher().next_tick();
    for (ThreadWatch& t : b.threads) {
        t.epoch = b.floor;
        t.clock.reset();
        t.others = all.others;
        t.fenced = all.fenced;
    }
}

// The epoch of a thread that arrived somewhere and runs on: one tick for all that arrive in one phase, if
// that is later.
void start_epoch(BarrierWatch& barrier, ThreadWatch& me) {
    if (barrier.pending == 0) barrier.pending = watcher().next_tick();
    me.epoch = me.epoch < barrier.pending ? barrier.pending : watcher().next_tick();
}

void arrive(BarrierWatch& barrier, ThreadWatch& me) {
    barrier.arrived.push_back(knowledge_of(me));
    start_epoch(barrier, me);
}

void open(BarrierWatch& barrier) {
    barrier.arrived.clear();
    barrier.pending = 0;
}

}    // namespace

// ---- barriers of a block, of a warp -----------------------------------------------------------------------

void checker_barrier_arrive(Thread& t, uint32_t id) {
    BlockWatch* b = checked(*t.block);
    if (b) arrive(b->barriers[id], b->threads[t.linear]);
}

void checker_barrier_release(Block& block, uint32_t id, Thread* const* waiting, uint32_t count) {
    if (!block.watch) return;
    block.watch->met = count == static_cast<const ResidentBlock&>(block).live;
    BlockWatch* b = checked(block);
    if (!b) return;
    BarrierWatch& barrier = b->barriers[id];
    if (b->met) {
        meet_all(*b);
    } else {
        const Knowledge all = pool(*b, barrier.arrived);
        const uint32_t epoch = watcher().next_tick();
        for (uint32_t i = 0; i < count; ++i) {
            ThreadWatch& me = watch_of(*waiting[i]);
            learn(me, all);
            me.epoch = epoch;
        }
    }
    open(barrier);
}

void checker_warp_sync(Warp& warp, uint32_t mask) {
    BlockWatch* b = checked(*warp.block);
    if (!b) return;
    mask &= warp.live;
    if (static_cast<uint32_t>(__builtin_popcount(mask)) == warp.block->live) {
        meet_all(*b);
        return;
    }
    ThreadWatch* lanes = &b->threads[warp.index * WARP];
    static thread_local std::vector<Knowledge> brought;
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        brought.push_back(knowledge_of(lanes[__builtin_ctz(rest)]));
    const Knowledge all = pool(*b, brought);
    brought.clear();
    const uint32_t epoch = watcher().next_tick();
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        ThreadWatch& me = lanes[__builtin_ctz(rest)];
        me.clock = all.clock;    // each lane's own was joined into it
        me.others = all.others;
        me.fenced = all.fenced;
        me.epoch = epoch;
    }
}

// ---- barriers of a cluster --------------------------------------------------------------------------------

void checker_cluster_arrive(Thread& t) {
    BlockWatch* b = checked(*t.block);
    if (b) arrive(b->cluster_barrier, b->threads[t.linear]);
}

void checker_cluster_release(Block* const* blocks, uint32_t count) {
    Ref<Blocks> everyone;
    for (uint32_t i = 0; i < count; ++i) {
        BlockWatch* b = checked(*blocks[i]);
        if (!b) continue;
        b->cluster_phase = pool(*b, b->cluster_barrier.arrived);
        join(everyone, b->cluster_phase.others);
        join(everyone, b->ordinal, View{b->floor, b->cluster_phase.clock});
    }
    for (uint32_t i = 0; i < count; ++i) {
        BlockWatch* b = checked(*blocks[i]);
        if (!b) continue;
        b->cluster_phase.others = everyone;
        open(b->cluster_barrier);
    }
}

void checker_cluster_wait(Thread& t) {
    BlockWatch* b = checked(*t.block);
    if (!b) return;
    learn(b->threads[t.linear], b->cluster_phase);
    b->threads[t.linear].epoch = watcher().next_tick();
}

// ---- fences -----------------------------------------------------------------------------------------------

namespace {

// All that happened before now, as seen by `me`: of its own block.
View present(const BlockWatch& b, const ThreadWatch& me) {
    View view{b.floor, me.clock};
    raise(view.clock, thread_count(b), thread_of_actor(me.actor), me.epoch);
    return view;
}

Fenced& own_fenced(ThreadWatch& me) {
    Fenced* made = me.fenced ? new Fenced(*me.fenced) : new Fenced;
    made->references = 0;
    me.fenced = Ref<Fenced>(made);
    return *made;
}

}    // namespace

void fence(Thread& t, Fence kind, uint32_t) {
    BlockWatch* b = checked(*t.block);
    if (!b || kind == Fence::proxy_alias || kind == Fence::proxy_tensormap) return;
    ThreadWatch& me = b->threads[t.linear];
    const View now = present(*b, me);
    Fenced& fenced = own_fenced(me);
    const bool wide = kind == Fence::device || kind == Fence::system ||
                      (kind == Fence::cluster && t.launch->explicit_cluster);
    if (kind == Fence::proxy_async) {
        join(fenced.views[Fenced::PROXY], now);
    } else {
        join(fenced.views[Fenced::BLOCK], now);
        if (wide) join(fenced.views[Fenced::DEVICE], now);
        if (wide) fenced.others = me.others;
        fenced.near = me.others;
    }
    me.epoch = watcher().next_tick();
}

// ---- through memory ---------------------------------------------------------------------------------------

namespace {

PublishedTable& table_of(Thread& t, uintptr_t address) {
    const BlockWatch& b = *t.block->watch;
    const uintptr_t offset = address - b.shared;
    if (offset >= b.windows_bytes) return watcher().published;
    BlockWatch* owner = watch_of_rank(b, static_cast<uint32_t>(offset / WINDOW));
    return owner ? owner->published : watcher().published;
}

void publish_to_block(Published& p, uint32_t ordinal, const View& view, const Ref<Blocks>& others) {
    if (view.empty()) return;
    for (PublishedInBlock& known : p.blocks) {
        if (known.block != ordinal) continue;
        join(known.view, view);
        join(known.others, others);
        return;
    }
    p.blocks.push_back({ordinal, view, others});
}

void publish_fenced(Published& p, uint32_t ordinal, const Ref<Fenced>& fenced) {
    if (p.fenced_block != ordinal) p.fenced.reset();
    p.fenced_block = ordinal;
    join(p.fenced, fenced);
}

}    // namespace

void publish(Thread& t, uintptr_t address, bool release, bool block_scope) {
    BlockWatch& b = *t.block->watch;
    ThreadWatch& me = b.threads[t.linear];
    if (!release && !me.fenced) return;
    Published& p = table_of(t, address)[address];
    const View now = release ? present(b, me) : me.fenced->views[Fenced::BLOCK];
    publish_to_block(p, b.ordinal, now, release ? me.others : me.fenced->near);
    if (!block_scope) {
        join(p.everyone, b.ordinal, release ? now : me.fenced->views[Fenced::DEVICE]);
        join(p.everyone, release ? me.others : me.fenced->others);
    }
    publish_fenced(p, b.ordinal, me.fenced);
    if (release) me.epoch = watcher().next_tick();
}

// At block scope only what threads of the own block released counts.
void import(Thread& t, uintptr_t address, bool block_scope) {
    BlockWatch& b = *t.block->watch;
    PublishedTable& table = table_of(t, address);
    if (table.empty()) return;
    const auto found = table.find(address);
    if (found == table.end()) return;
    const Published& p = found->second;
    ThreadWatch& me = b.threads[t.linear];
    for (const PublishedInBlock& known : p.blocks) {
        if (known.block != b.ordinal) continue;
        join(me.clock, known.view.clock);
        join(me.others, known.others);
    }
    if (p.everyone && !block_scope) {
        if (const View* own = p.everyone->find(b.ordinal)) join(me.clock, own->clock);
        join(me.others, p.everyone);
    }
    if (p.fenced_block == b.ordinal) join(me.fenced, p.fenced);
}

void checker_release(Thread& t, const void* object) {
    if (checked(*t.block)) publish(t, reinterpret_cast<uintptr_t>(object), true, false);
}

void checker_acquire(Thread& t, const void* object) {
    if (checked(*t.block)) import(t, reinterpret_cast<uintptr_t>(object), false);
}

}    // namespace emu
