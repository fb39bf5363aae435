// A launch from its request to its end: the parameter buffer, shared windows, blocks handed to OS threads.
//
// What is resident together on one OS thread: one block; the blocks of a cluster; all blocks of a cooperative
// launch, whose grid barrier needs them all to make progress.  Where blocks spin for what others do (a
// semaphore, a barrier of their own making), the next ones join them, as they would have run beside them on a
// GPU.  Launches of one process run one after the other.
#include "launch.h"

#include <fenv.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>

#include "checker.h"
#include "memory.h"
#include "reports.h"

namespace emu {

namespace {

constexpr uint64_t GIGANTIC = uint64_t(1)
                              << 31;    // threads that an automatic step budget lets a launch have
// As many blocks and threads may be resident together where some wait for others.
constexpr uint32_t MOST_BLOCKS = 512;
constexpr uint64_t MOST_THREADS = 1 << 15;
constexpr size_t PAGE = 4096;
constexpr size_t STACK_MARGIN = 64 << 10;               // for registers, calls and the runtime below a kernel
constexpr size_t STACK_MARGIN_HOOKS = 128 << 10;        // and for the checker and its reports
constexpr size_t PARAMETER_ALIGNMENT = 128;             // tensor maps passed by value ask for 64

uint64_t volume(Dim d) { return uint64_t(d.x) * d.y * d.z; }

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// ---- shared windows ---------------------------------------------------------------------------------------

// Bytes of a block's window that the kernel may touch, in units that keep the window aligned to 1024 bytes.
size_t window_bytes(const Launch& l) {
    return round_up(l.kernel->dynamic_shared_offset + l.dynamic_shared, 1024);
}

// Every cluster's windows lie one after the other, shifted so that each window in use ends at a page that
// cannot be touched.
size_t window_shift(size_t used) { return round_up(used, PAGE) - used; }

bool open_windows(Execution& e, uint32_t clusters, uint32_t blocks_per_cluster, size_t used) {
    const size_t stride = size_t(blocks_per_cluster) * WINDOW + PAGE;
    const uint32_t reserved = std::max(clusters, MOST_BLOCKS / blocks_per_cluster);
    const uint64_t key = (uint64_t(used) << 40) ^ (uint64_t(reserved) << 8) ^ blocks_per_cluster;
    if (!e.windows || key != e.windows_key) {
        if (e.windows) munmap(e.windows, e.windows_bytes);
        e.windows_bytes = stride * reserved + PAGE;
        void* place =
            mmap(nullptr, e.windows_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        e.windows = place == MAP_FAILED ? nullptr : static_cast<char*>(place);
        e.windows_key = key;
        e.windows_open = 0;
        if (!e.windows) return false;
    }
    for (; e.windows_open < clusters; ++e.windows_open) {
        for (uint32_t rank = 0; rank < blocks_per_cluster; ++rank) {
            char* window = e.windows + e.windows_open * stride + PAGE + size_t(rank) * WINDOW;
            if (used && mprotect(window, round_up(used, PAGE), PROT_READ | PROT_WRITE)) return false;
        }
    }
    return true;
}

char* cluster_base(const Execution& e, uint32_t cluster, uint32_t blocks_per_cluster, size_t used) {
    const size_t stride = size_t(blocks_per_cluster) * WINDOW + PAGE;
    return e.windows + cluster * stride + PAGE + window_shift(used);
}

// ---- blocks -----------------------------------------------------------------------------------------------

// What stays the same for all blocks of a launch that use this slot.
void lay_out(Execution& e, ResidentBlock& block, uint32_t slot) {
    RunningLaunch& l = *e.launch;
    block.execution = &e;
    block.slot = slot;
    block.launch = &l;
    block.thread_count = static_cast<uint32_t>(l.threads_per_block);
    block.warp_count = (block.thread_count + WARP - 1) / WARP;
    block.fibers.resize(size_t(block.warp_count) * WARP);
    block.warps.resize(block.warp_count);
    for (uint32_t i = 0; i < block.warp_count; ++i) {
        Warp& w = block.warps[i];
        std::memset(static_cast<void*>(&w), 0, sizeof w);
        w.index = i;
        w.block = &block;
        w.execution = &e;
        w.fibers = &block.fibers[size_t(i) * WARP];
        const uint32_t count = std::min(WARP, block.thread_count - i * WARP);
        w.populated = count == WARP ? 0xffffffffu : (1u << count) - 1;
        for (uint32_t lane = 0; lane < WARP; ++lane) w.threads[lane] = &w.fibers[lane];
    }
    Dim at{0, 0, 0};
    for (uint32_t i = 0; i < block.thread_count; ++i) {
        Fiber& f = block.fibers[i];
        std::memset(static_cast<void*>(&f), 0, sizeof f);
        f.x = at.x, f.y = at.y, f.z = at.z;
        f.linear = i;
        f.lane = i % WARP;
        f.steps = &e.slice;
        f.block = &block;
        f.warp = &block.warps[i / WARP];
        f.launch = &l;
        f.executions = l.executions.empty() ? nullptr : l.executions.data();
        f.stack = StackPool::NONE;
        if (++at.x == l.block.x) at.x = 0, ++at.y;
        if (at.y == l.block.y) at.y = 0, ++at.z;
    }
}

Dim unravel(uint64_t linear, Dim extent) {
    const uint64_t plane = uint64_t(extent.x) * extent.y;
    return {static_cast<uint32_t>(linear % extent.x), static_cast<uint32_t>(linear % plane / extent.x),
            static_cast<uint32_t>(linear / plane)};
}

// Which block of the grid a slot holds: unit is the cluster's number, rank the block's place in it.
void place_block(ResidentBlock& block, uint64_t unit, uint32_t rank, char* base) {
    const Launch& l = *block.launch;
    const Dim clusters{l.grid.x / l.cluster.x, l.grid.y / l.cluster.y, l.grid.z / l.cluster.z};
    block.cluster_index = unravel(unit, clusters);
    block.cluster_block = unravel(rank, l.cluster);
    block.index = {block.cluster_index.x * l.cluster.x + block.cluster_block.x,
                   block.cluster_index.y * l.cluster.y + block.cluster_block.y,
                   block.cluster_index.z * l.cluster.z + block.cluster_block.z};
    block.linear = block.index.x + uint64_t(l.grid.x) * (block.index.y + uint64_t(l.grid.y) * block.index.z);
    block.rank = rank;
    block.shared = base;
    block.window = rank * WINDOW;
}

void make_threads_ready(ResidentBlock& block) {
    for (uint32_t i = 0; i < block.thread_count; ++i) {
        Fiber& f = block.fibers[i];
        f.shared = block.shared;
        f.window = block.window;
        f.spins = 0;
        f.frames = nullptr;
        f.cluster_arrived = false;
    }
    for (Warp& w : block.warps) {
        w.ready = w.live = w.populated;
        std::memset(w.stack_pointers, 0, sizeof w.stack_pointers);
        w.yielded = w.converging = w.arrived = w.strict = w.group_arrived = 0;
        std::memset(w.waiting, 0, sizeof w.waiting);
        std::memset(w.counted, 0, sizeof w.counted);
    }
    block.live = block.thread_count;
    block.ready_warps = block.warp_count == 32 ? 0xffffffffu : (1u << block.warp_count) - 1;
    barriers_reset(block);
}

void begin_block(ResidentBlock& block, size_t used) {
    std::memset(block.shared + block.window, 0xff,
                used);    // reads before writes give NaN, also where nothing checks
    if (const Variable* kept = system_shared(*block.launch->kernel)) {
        std::memset(block.shared + block.window + kept->place, 0, kept->bytes);
    }
    make_threads_ready(block);
    wgmma_block_begin(block);
    if (block.launch->hooks) checker_block_begin(block);
}

void end_block(ResidentBlock& block) {
    wgmma_block_exit(block);
    if (block.launch->hooks) checker_block_end(block);
}

uint64_t unit_in_order(const RunningLaunch& l, uint64_t number) {
    if (l.chosen.schedule == Schedule::forward) return number;
    if (l.chosen.schedule == Schedule::reverse) return l.units - 1 - number;
    return (static_cast<unsigned __int128>(number) * l.permutation_factor + l.permutation_offset) % l.units;
}

// Makes the number-th cluster in schedule order the c-th resident one.
void begin_cluster(Execution& e, uint32_t c, uint64_t number) {
    const RunningLaunch& l = *e.launch;
    const size_t used = window_bytes(l);
    const uint32_t per_cluster = l.blocks_per_cluster;
    Cluster& cluster = *e.clusters[c];
    cluster.phase = cluster.arrived = 0;
    cluster.live = static_cast<uint32_t>(per_cluster * l.threads_per_block);
    char* base = cluster_base(e, c, per_cluster, used);
    for (uint32_t rank = 0; rank < per_cluster; ++rank) {
        ResidentBlock& block = *cluster.blocks[rank];
        place_block(block, unit_in_order(l, number), rank, base);
        begin_block(block, used);
    }
    e.resident_count += per_cluster;
    e.unfinished += per_cluster;
}

// Runs `count` clusters together, the first of them the number-th in schedule order.
void run_together(Execution& e, uint64_t number, uint32_t count) {
    e.resident_count = e.unfinished = 0;
    for (uint32_t c = 0; c < count; ++c) begin_cluster(e, c, number + c);
    run_resident(e);
    for (uint32_t i = 0; i < e.resident_count; ++i) end_block(*e.resident[i]);
}

// ---- one OS thread's share --------------------------------------------------------------------------------

// How many clusters are resident together.
uint32_t clusters_together(const RunningLaunch& l) {
    return l.cooperative ? static_cast<uint32_t>(l.units) : 1;
}

void lay_out_cluster(Execution& e, uint32_t c) {
    const uint32_t per_cluster = e.launch->blocks_per_cluster;
    while (e.resident.size() < (c + 1) * per_cluster) e.resident.push_back(std::make_unique<ResidentBlock>());
    while (e.clusters.size() <= c) e.clusters.push_back(std::make_unique<Cluster>());
    Cluster& cluster = *e.clusters[c];
    cluster.blocks.clear();
    for (uint32_t i = c * per_cluster; i < (c + 1) * per_cluster; ++i) {
        ResidentBlock& block = *e.resident[i];
        lay_out(e, block, i);
        block.cluster_state = &cluster;
        cluster.blocks.push_back(&block);
    }
}

size_t stack_bytes(const RunningLaunch& l) {
    if (l.chosen.stack) return round_up(l.chosen.stack, PAGE);
    return round_up(l.kernel->local_bytes + (l.hooks ? STACK_MARGIN_HOOKS : STACK_MARGIN), PAGE);
}

void begin_share(Execution& e, RunningLaunch& l) {
    e.launch = &l;
    e.schedule = l.chosen.schedule;
    e.random = (l.chosen.seed + 1) * 0x9e3779b97f4a7c15ull;
    e.accesses_left = 0;
    e.stacks.require(stack_bytes(l));
    take_slice(e);
    for (uint32_t c = 0; c < clusters_together(l); ++c) lay_out_cluster(e, c);
}

}  // namespace

bool admit_next(Execution& e) {
    RunningLaunch& l = *e.launch;
    const uint32_t per_cluster = l.blocks_per_cluster, c = e.resident_count / per_cluster;
    const uint32_t blocks = (c + 1) * per_cluster;
    if (l.cooperative || blocks > MOST_BLOCKS || blocks * l.threads_per_block > MOST_THREADS) return false;
    if (l.next.load() >= l.units || !open_windows(e, c + 1, per_cluster, window_bytes(l))) return false;
    const uint64_t number = l.next.fetch_add(1);
    if (number >= l.units) return false;    // another OS thread took the last one
    lay_out_cluster(e, c);
    begin_cluster(e, c, number);
    return true;
}

void run_share(Execution& e, RunningLaunch& l) {
    const uint32_t together = clusters_together(l);
    if (!open_windows(e, together, l.blocks_per_cluster, window_bytes(l))) {
        l.error = CUDA_OUT_OF_RESOURCES;
        return;
    }
    begin_share(e, l);
    fenv_t host;
    fegetenv(&host);
    fesetenv(FE_DFL_ENV);    // a host that flushes denormals must not change what kernels compute
    {
        FaultGuard guard(e);
        for (uint64_t number; l.error.load() == 0 && (number = l.next.fetch_add(together)) < l.units;)
            run_together(e, number, together);
    }
    fesetenv(&host);
    e.launch = nullptr;
}

namespace {

// ---- the launch -------------------------------------------------------------------------------------------

int refuse(const RunningLaunch& l, const char* kind, const std::string& message, const char* fix, int error) {
    Report r;
    r.kind = kind;
    r.message = message;
    r.fix = fix;
    r.kernel = l.kernel->name;
    r.module = l.module;
    r.site = Report::NO_SITE;
    r.in_kernel = false;
    report(r);
    return error;
}

int check_size(const RunningLaunch& l) {
    const uint64_t blocks = volume(l.grid);
    if (blocks == 0 || l.threads_per_block == 0 || l.threads_per_block > 1024) {
        return refuse(l, "invalid_launch",
                      format("a launch of %llu blocks of %llu threads is not possible",
                             static_cast<unsigned long long>(blocks),
                             static_cast<unsigned long long>(l.threads_per_block)),
                      "give a grid of at least one block, and blocks of 1 to 1024 threads",
                      CUDA_INVALID_CONFIGURATION);
    }
    const double threads = static_cast<double>(blocks) * static_cast<double>(l.threads_per_block);
    const double allowed =
        l.chosen.steps > 0 ? static_cast<double>(l.chosen.steps) * 1024 : static_cast<double>(GIGANTIC);
    if (l.chosen.steps == 0 || threads <= allowed) return 0;
    return refuse(
        l, "step_budget",
        format(
            "a launch of %llu blocks of %llu threads is %.3g threads, more than can be "
            "emulated in reasonable time (%.3g)",
            static_cast<unsigned long long>(blocks), static_cast<unsigned long long>(l.threads_per_block),
            threads, allowed),
        "test with a smaller grid, or lift the limit with option steps=0", CUDA_LAUNCH_TIMEOUT);
}

Dim cluster_of(const LaunchRequest& q) {
    if (q.cluster.x) return q.cluster;
    const uint32_t* c = q.kernel->cluster;
    return c[0] ? Dim{c[0], std::max(1u, c[1]), std::max(1u, c[2])} : Dim{1, 1, 1};
}

void choose_permutation(RunningLaunch& l) {
    uint64_t seed = l.chosen.seed * 0x9e3779b97f4a7c15ull + 0xbf58476d1ce4e5b9ull;
    l.permutation_offset = (seed >> 20) % l.units;
    l.permutation_factor = (seed >> 11) % l.units | 1;
    while (std::gcd(l.permutation_factor, l.units) != 1) ++l.permutation_factor;
}

void fill(RunningLaunch& l, const LaunchRequest& q) {
    static uint64_t serial = 0;
    l.grid = q.grid;
    l.block = q.block;
    l.cluster = cluster_of(q);
    l.explicit_cluster = q.cluster.x || q.kernel->cluster[0];
    l.dynamic_shared = q.dynamic_shared;
    l.static_shared = q.kernel->static_shared;
    l.serial = ++serial;
    l.kernel = q.kernel;
    l.module = q.module->descriptor;
    l.chosen = options();
    l.hooks = l.module->hooks;
    l.check = l.hooks && l.chosen.check;
    l.count = l.hooks && l.chosen.count;
    l.cooperative = q.cooperative;
    l.grid_workspace = 0;
    l.blocks_per_cluster = static_cast<uint32_t>(volume(l.cluster));
    l.threads_per_block = volume(l.block);
    l.units = l.blocks_per_cluster ? volume(l.grid) / l.blocks_per_cluster : 0;
    l.steps_left = l.chosen.steps;
    if (l.count) l.executions.assign(q.kernel->basic_blocks, 0);
}

void copy_parameters(RunningLaunch& l, void** arguments) {
    l.parameter_buffer.assign(l.kernel->parameter_bytes + PARAMETER_ALIGNMENT, 0);
    const uintptr_t begin =
        round_up(reinterpret_cast<uintptr_t>(l.parameter_buffer.data()), PARAMETER_ALIGNMENT);
    char* buffer = reinterpret_cast<char*>(begin);
    for (uint32_t i = 0; i < l.kernel->parameter_count; ++i) {
        std::memcpy(buffer + l.kernel->parameter_offsets[i], arguments[i], l.kernel->parameter_sizes[i]);
    }
    l.parameters = buffer;
}

// The memory of cooperative_groups::this_grid().sync(): a size and a barrier word, both zero at first.
void* make_grid_workspace(RunningLaunch& l) {
    constexpr size_t BYTES = 256;
    if (!l.cooperative) return nullptr;
    void* workspace = memory_allocate(BYTES, MemoryKind::device, "grid barrier");
    if (!workspace) return nullptr;
    std::memset(workspace, 0, BYTES);
    checker_written(workspace, BYTES);
    l.grid_workspace = reinterpret_cast<uint64_t>(workspace);
    return workspace;
}

void run_all(RunningLaunch& l) {
    const uint64_t helpers = l.hooks || l.cooperative ? 1 : std::min<uint64_t>(l.chosen.threads, l.units);
    static Execution* const own = new Execution;          // launches run one at a time
    if (helpers > 1) run_with_workers(*own, l, static_cast<uint32_t>(helpers - 1));
    else run_share(*own, l);
}

int run(RunningLaunch& l) {
    void* workspace = make_grid_workspace(l);
    const bool told = l.check || l.count;
    if (told) checker_launch_begin(l);
    else checker_launch_unwatched();
    run_all(l);
    if (told) checker_launch_end(l, l.error.load() == 0);
    if (workspace) memory_free(workspace);
    return l.error.load();
}

}  // namespace

int launch(const LaunchRequest& q) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    RunningLaunch l;
    fill(l, q);
    if (const int error = check_size(l)) return error;
    copy_parameters(l, q.arguments);
    if (l.chosen.schedule == Schedule::random) choose_permutation(l);
    return run(l);
}

}  // namespace emu
