// Which thread runs next.
//
// A thread runs until it waits, spins, has used up its slice of steps, or ends; the next one is then chosen
// on the bit masks of its warp, else of its block, else among the other resident blocks, and switched to
// directly.  Staying within the warp as long as one of its lanes can run makes the next collective complete
// soonest, on stacks that are still in the cache. Threads that end leave their stack to the next one that
// begins: a kernel without barriers runs on a single stack.
#include <algorithm>

#include "checker.h"
#include "memory.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

constexpr int64_t SLICE = 1 << 20;    // steps between two looks at the clock: about a millisecond
// The automatic budget: a block is stopped when it has used this many steps and this much time.
constexpr int64_t PATIENCE_STEPS = 1 << 26;
constexpr double PATIENCE_SECONDS = 5;
// So often threads may spin before the next block joins: what they wait for may be its work.
constexpr uint32_t VAIN_TURNS = 1 << 11;

constexpr uint32_t bit(uint32_t index) { return 1u << index; }

uint32_t random_bit(Execution& e, uint32_t set) {
    for (uint64_t skip = draw(e) % static_cast<uint32_t>(__builtin_popcount(set)); skip > 0; --skip)
        set &= set - 1;
    return static_cast<uint32_t>(__builtin_ctz(set));
}

// The first of a set in schedule order.
uint32_t first(Execution& e, uint32_t set) {
    if (e.schedule == Schedule::forward) return static_cast<uint32_t>(__builtin_ctz(set));
    if (e.schedule == Schedule::reverse) return 31u - static_cast<uint32_t>(__builtin_clz(set));
    return random_bit(e, set);
}

// Those of a set that come after `index` in schedule order.
uint32_t later(const Execution& e, uint32_t set, uint32_t index) {
    if (e.schedule == Schedule::reverse) return set & (bit(index) - 1);
    return set & ~(bit(index) | (bit(index) - 1));
}

uint32_t next(Execution& e, uint32_t set, uint32_t index) {
    const uint32_t after = e.schedule == Schedule::random ? 0 : later(e, set, index);
    return first(e, after ? after : set);
}

Fiber* enter_warp(Execution& e, Warp& w) { return &w.fibers[first(e, w.ready)]; }

// A thread of the next resident block that has one ready; `block` itself comes last.  Null: there is none.
Fiber* next_block(Execution& e, const ResidentBlock& block) {
    uint32_t slot = block.slot;
    if (e.schedule == Schedule::random) slot = static_cast<uint32_t>(draw(e) % e.resident_count);
    for (uint32_t i = 0; i < e.resident_count; ++i) {
        slot = slot + 1 == e.resident_count ? 0 : slot + 1;
        ResidentBlock& candidate = *e.resident[slot];
        if (candidate.ready_warps) return enter_warp(e, candidate.warps[first(e, candidate.ready_warps)]);
    }
    return nullptr;
}

// After a thread of warp `w` that could go on lets others run: first its own warp's lanes that do not spin,
// then all other warps, then all other blocks, so that whatever it waits for will happen.
Fiber* choose_other(Execution& e, Warp& w) {
    uint32_t lanes = w.ready & ~w.yielded;
    if (!lanes && w.converging && converge(w)) lanes = w.ready & ~w.yielded;
    if (lanes) return &w.fibers[first(e, lanes)];
    w.yielded = 0;
    ResidentBlock& block = *w.block;
    const uint32_t warps = e.schedule == Schedule::random ? block.ready_warps & ~bit(w.index)
                                                          : later(e, block.ready_warps, w.index);
    if (warps && (e.resident_count == 1 || e.schedule != Schedule::random || draw(e) & 1)) {
        return enter_warp(e, block.warps[first(e, warps)]);
    }
    return next_block(e, block);
}

// After a thread of warp `w` cannot go on.  Null: nobody can.
Fiber* choose(Execution& e, Warp& w, uint32_t lane) {
    ResidentBlock& block = *w.block;
    if (!w.ready && (!w.converging || !converge(w))) {
        block.ready_warps &= ~bit(w.index);
        if (block.ready_warps) return enter_warp(e, block.warps[next(e, block.ready_warps, w.index)]);
        return next_block(e, block);
    }
    const uint32_t lanes = w.ready & ~w.yielded;
    if (!lanes) return choose_other(e, w);    // only spinning ones are left, which wait for others
    if (e.schedule == Schedule::random && (draw(e) & 3) == 0)
        return enter_warp(e, block.warps[first(e, block.ready_warps)]);
    return &w.fibers[next(e, lanes, lane)];
}

void run_thread(Fiber& f) {
    async_thread_begin(f);
    f.launch->kernel->body(f, f.launch->parameters, nullptr);
    async_thread_exit(f);
}

// Takes an ended thread out of everything; who runs next, or null when all have ended.
Fiber* retire(Execution& e, Fiber& f) {
    Warp& w = *f.warp;
    ResidentBlock& block = *w.block;
    const uint32_t lane = bit(f.lane);
    w.live &= ~lane;
    w.ready &= ~lane;
    w.yielded &= ~lane;
    --block.live;
    if (block.live == 0) --e.unfinished;
    if (block.active_barriers) barriers_thread_exited(f);
    if (w.arrived) collectives_thread_exited(f);
    cluster_thread_exited(f);
    if (Fiber* chosen = choose(e, w, f.lane)) return chosen;
    if (e.unfinished == 0) return nullptr;
    report_deadlock(e);
    abandon(f, CUDA_LAUNCH_TIMEOUT);
}

void fiber_main(void* execution);

void*& stack_pointer(Fiber& f) { return f.warp->stack_pointers[f.lane]; }

// Gives a thread that has not begun a stack.
void start(Execution& e, Fiber& f) {
    f.stack = e.stacks.take();
    if (f.stack == StackPool::NONE) {
        {
            report(finding(f, "invalid_launch", 0,
                           format("no memory for the stacks of %u resident threads of %zu bytes each",
                                  e.resident_count * static_cast<uint32_t>(e.launch->threads_per_block),
                                  e.stacks.bytes()),
                           "launch fewer threads per block or, for a cooperative launch, fewer blocks"));
        }
        abandon(f, CUDA_OUT_OF_RESOURCES);
    }
    stack_pointer(f) = prepare_stack(e.stacks.top(f.stack), fiber_main, &e);
}

void fiber_main(void* execution) {
    Execution& e = *static_cast<Execution*>(execution);
    for (;;) {
        Fiber& f = *e.current;
        run_thread(f);
        Fiber* chosen = retire(e, f);
        const uint32_t stack = f.stack;
        f.stack = StackPool::NONE;
        e.current = chosen;
        if (chosen && !stack_pointer(*chosen)) {       // begins on this stack, from its top
            chosen->stack = stack;
            continue;
        }
        e.stacks.give_back(stack);
        void* ended;
        emu_switch(&ended, chosen ? stack_pointer(*chosen) : e.main_stack_pointer);
    }
}

[[gnu::noinline]] void switch_to(Execution& e, Fiber& from, Fiber& to) {
    if (&from == &to) return;
    if (!stack_pointer(to)) start(e, to);
    e.current = &to;
    emu_switch(&stack_pointer(from), stack_pointer(to));
}

[[gnu::noinline]] void block_and_choose(Fiber& me) {
    Execution& e = execution_of(me);
    Fiber* chosen = choose(e, *me.warp, me.lane);
    if (!chosen) {
        report_deadlock(e);
        abandon(me, CUDA_LAUNCH_TIMEOUT);
    }
    switch_to(e, me, *chosen);
}

double seconds_since(std::chrono::steady_clock::time_point when) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - when).count();
}

void begin_patience(Execution& e) {
    e.began = std::chrono::steady_clock::now();
    e.steps_used = 0;
}

bool budget_spent(Execution& e) {
    const int64_t steps = e.launch->chosen.steps;
    if (steps > 0) return e.launch->steps_left.load() <= 0;
    return steps < 0 && e.steps_used > PATIENCE_STEPS && seconds_since(e.began) > PATIENCE_SECONDS;
}

void report_budget(Thread& t, uint32_t site) {
    const Execution& e = execution_of(t);
    const int64_t steps = e.launch->chosen.steps;
    const std::string budget =
        steps > 0 ? format("the launch's budget of %lld steps is spent", static_cast<long long>(steps))
                  : format("the block ran for %.0f s and %lld steps", seconds_since(e.began),
                           static_cast<long long>(e.steps_used));
    report(finding(
        t, "step_budget", site, budget + " (loop iterations and calls) without the kernel coming to an end",
        "look for a loop whose condition never becomes false or a flag that nobody sets; "
        "option steps=N allows more, "
        "steps=0 any number"));
}

}  // namespace

uint64_t draw(Execution& e) {                        // xorshift64*
    e.random ^= e.random >> 12;
    e.random ^= e.random << 25;
    e.random ^= e.random >> 27;
    return (e.random * 0x2545f4914f6cdd1dull) >> 32;
}

void take_slice(Execution& e) {
    int64_t length = e.schedule == Schedule::random ? static_cast<int64_t>(1 + draw(e) % 256) : SLICE;
    if (e.launch->chosen.steps > 0) {
        const int64_t left = e.launch->steps_left.fetch_sub(length);
        length = std::max<int64_t>(0, std::min(length, left));
    }
    e.slice = e.slice_length = length;
}

void out_of_steps(Thread& t, uint32_t site) {
    Execution& e = execution_of(t);
    e.steps_used += e.slice_length - e.slice;
    if (e.launch->error.load(std::memory_order_relaxed)) abandon(t, 0);    // another OS thread's block failed
    if (budget_spent(e)) {
        report_budget(t, site);
        abandon(t, CUDA_LAUNCH_TIMEOUT);
    }
    take_slice(e);
    pass_turn(t);
}

void yield(Thread& t) {
    Execution& e = execution_of(t);
    if (++e.vain_turns >= VAIN_TURNS) {
        e.vain_turns = 0;
        if (admit_next(e)) begin_patience(e);
    }
    pass_turn(t);
}

void pass_turn(Thread& t) {
    Fiber& me = fiber_of(t);
    Execution& e = execution_of(t);
    Warp& w = *me.warp;
    w.yielded |= bit(me.lane);
    switch_to(e, me, *choose_other(e, w));
    w.yielded &= ~bit(me.lane);
}

void preempt_now(Thread& t) {
    Execution& e = execution_of(t);
    e.accesses_left = static_cast<uint32_t>(draw(e) % 64);
    pass_turn(t);
}

void block_current(Thread& t, Wait wait, uint32_t site) {
    Warp& w = *t.warp;
    Execution& e = *w.execution;
    const uint32_t lane = t.lane;
    w.sites[lane] = site;
    w.waits[lane] = wait;
    w.ready &= ~bit(lane);
    const uint32_t ready = w.ready & ~w.yielded;
    if (__builtin_expect(!ready || e.schedule != Schedule::forward, 0)) return block_and_choose(fiber_of(t));
    // The usual case, kept free of calls but for the switch, which is the last thing done: the next ready
    // lane of the warp.
    const uint32_t after = ready & (~1u << lane);
    const uint32_t chosen = static_cast<uint32_t>(__builtin_ctz(after ? after : ready));
    void* const stack = w.stack_pointers[chosen];
    if (__builtin_expect(!stack, 0)) return switch_to(e, fiber_of(t), w.fibers[chosen]);
    e.current = &w.fibers[chosen];
    emu_switch(&w.stack_pointers[lane], stack);
}

void abandon(Thread& t, int cuda_error) {
    Execution& e = execution_of(t);
    int none = 0;
    e.launch->error.compare_exchange_strong(none, cuda_error);
    e.current = nullptr;
    void* abandoned;
    emu_switch(&abandoned, e.main_stack_pointer);
    __builtin_unreachable();
}

void exit_thread(Thread& t) {
    Execution& e = execution_of(t);
    Fiber& me = fiber_of(t);
    async_thread_exit(me);
    Fiber* chosen = retire(e, me);
    e.stacks.give_back(me.stack);
    me.stack = StackPool::NONE;
    if (chosen && !stack_pointer(*chosen)) start(e, *chosen);
    e.current = chosen;
    void* ended;
    emu_switch(&ended, chosen ? stack_pointer(*chosen) : e.main_stack_pointer);
    __builtin_unreachable();
}

void run_resident(Execution& e) {
    begin_patience(e);
    e.vain_turns = 0;
    ResidentBlock& block = *e.resident[0];
    Fiber& f = *enter_warp(e, block.warps[first(e, block.ready_warps)]);
    start(e, f);
    e.current = &f;
    emu_switch(&e.main_stack_pointer, stack_pointer(f));
    e.current = nullptr;
    if (e.launch->error.load()) e.stacks.reclaim_all();       // abandoned threads still hold theirs
}

}  // namespace emu
