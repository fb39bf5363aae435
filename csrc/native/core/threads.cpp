#include "core/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/cpu.h"

namespace nn {
namespace {

constexpr int most_threads = 256;
constexpr std::chrono::nanoseconds spin_time = std::chrono::microseconds(60);
constexpr std::chrono::nanoseconds longest_spin = std::chrono::milliseconds(20);  // even where somebody asked to stay awake

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// How many chunks of a share nobody has claimed, and the loop it belongs to, in one word: a thread that comes
// late finds another loop's number there, or no chunk left, and claims nothing.  It counts down, so that what
// a claim depends on is in this word alone: the other fields may be the next loop's already when a late
// thread reads them.
struct alignas(64) Cursor {
    std::atomic<uint64_t> word{0};
};
constexpr uint64_t pack(uint32_t loop, uint32_t unclaimed) { return uint64_t(loop) << 32 | unclaimed; }

struct Pool {
    std::mutex one_at_a_time;   // held by the thread whose loop is running
    std::atomic<int> count{0};  // threads, the caller's among them

    // the loop, in one cache line, which its number shares: a worker that sees the number has the rest.
    // Written while no chunk of the loop before is left: who claims one has read that one's.
    alignas(64) std::atomic<uint32_t> loop{0};
    std::atomic<int> shares{1};
    std::atomic<Body> body{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<int64_t> size{0}, chunk{1};
    std::atomic<int64_t> chunks{0};
    Cursor cursor[most_threads];
    alignas(64) std::atomic<int64_t> left{0};  // chunks not finished
    alignas(64) std::atomic<int> awake{0};     // StayAwakes that live

    std::mutex failing;
    std::exception_ptr failure;  // the loop's first

    std::mutex sleep;
    std::condition_variable wake;
    std::atomic<int> sleeping{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> workers;

    ~Pool() { end_workers(); }
    void end_workers();
    void ensure_workers(int wanted);
    void work(int self);
    void help(int self, uint32_t number);
    int64_t run_share(int share, uint32_t number);
    void run_chunk(Body run, void* with, int64_t begin, int64_t end);
    void wait_for(uint32_t seen);
};

thread_local bool inside = false;

int default_threads() {
    const char* given = std::getenv("NN_THREADS");
    const int wanted = given ? std::atoi(given) : 0;
    return std::clamp(wanted > 0 ? wanted : usable_cores(), 1, most_threads);
}

std::unique_ptr<Pool>& holder() {
    static std::unique_ptr<Pool> pool;
    return pool;
}

// After fork() the child has no workers, and locks may be held by threads that are gone: it begins anew.
void forget_after_fork() {
    const int count = holder() ? holder()->count.load() : 0;
    holder().release();
    inside = false;
    if (count) {
        holder() = std::make_unique<Pool>();
        holder()->count.store(count);
    }
}

Pool& pool() {
    static const bool once = [] {
        holder() = std::make_unique<Pool>();
        holder()->count.store(default_threads());
        pthread_atfork(nullptr, nullptr, forget_after_fork);
        return true;
    }();
    (void)once;
    return *holder();
}

int64_t first_chunk(int share, int64_t chunks, int shares) { return chunks * share / shares; }

void Pool::end_workers() {
    {
        const std::lock_guard<std::mutex> lock(sleep);
        stop = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
    stop = false;
}

// Where the system has no more threads, those there are do the others' shares.
void Pool::ensure_workers(int wanted) {
    while (static_cast<int>(workers.size()) < wanted - 1) {
        const int self = static_cast<int>(workers.size()) + 1;
        try {
            workers.emplace_back([this, self] { work(self); });
        } catch (const std::exception&) { return; }
    }
}

// What a body throws is kept for the caller: the loop's other chunks still use what the caller's stack holds.
void Pool::run_chunk(Body run, void* with, int64_t begin, int64_t end) {
    try {
        run(with, begin, end);
    } catch (...) {
        const std::lock_guard<std::mutex> lock(failing);
        if (!failure) failure = std::current_exception();
    }
}

// Claims chunks of the share and runs them until none is left of this loop; how many it ran.
int64_t Pool::run_share(int share, uint32_t number) {
    const Body run = body.load(std::memory_order_relaxed);
    void* const with = context.load(std::memory_order_relaxed);
    const int64_t total = size.load(std::memory_order_relaxed), step = chunk.load(std::memory_order_relaxed);
    const int64_t all = chunks.load(std::memory_order_relaxed);
    const int parts = shares.load(std::memory_order_relaxed);
    if (share >= parts) return 0;
    int64_t ran = 0;
    const int64_t last = first_chunk(share + 1, all, parts);
    std::atomic<uint64_t>& word = cursor[share].word;
    uint64_t seen = word.load(std::memory_order_acquire);
    while (uint32_t(seen >> 32) == number && uint32_t(seen) > 0) {
        if (!word.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        const int64_t begin = (last - int64_t(uint32_t(seen))) * step;
        run_chunk(run, with, begin, std::min(begin + step, total));
        ++ran;
        seen = word.load(std::memory_order_acquire);
    }
    return ran;
}

void Pool::help(int self, uint32_t number) {
    inside = true;
    const int parts = shares.load(std::memory_order_relaxed);
    for (int i = 0; i < parts; ++i)
        if (const int64_t ran = run_share((self + i) % parts, number))
            left.fetch_sub(ran, std::memory_order_release);
    inside = false;
}

// Until another loop is there: awake for a moment, then asleep.
void Pool::wait_for(uint32_t seen) {
    const auto from = std::chrono::steady_clock::now();
    for (int i = 1; loop.load(std::memory_order_acquire) == seen; ++i) {
        pause();
        if (i % 64) continue;
        const auto waited = std::chrono::steady_clock::now() - from;
        if (waited > (awake.load(std::memory_order_relaxed) ? longest_spin : spin_time)) break;
    }
    if (loop.load(std::memory_order_acquire) != seen) return;
    std::unique_lock<std::mutex> lock(sleep);
    sleeping.fetch_add(1);  // before the loop's number is looked at again: see parallel_chunks
    wake.wait(lock, [&] { return stop || loop.load() != seen; });
    sleeping.fetch_sub(1);
}

void Pool::work(int self) {
    uint32_t seen = loop.load(std::memory_order_acquire);
    for (;;) {
        if (self < shares.load(std::memory_order_relaxed)) help(self, seen);
        wait_for(seen);
        if (stop.load(std::memory_order_acquire)) return;
        seen = loop.load(std::memory_order_acquire);
    }
}

}  // namespace

int threads() { return pool().count.load(std::memory_order_relaxed); }

StayAwake::StayAwake() { pool().awake.fetch_add(1, std::memory_order_relaxed); }
StayAwake::~StayAwake() { pool().awake.fetch_sub(1, std::memory_order_relaxed); }

void set_threads(int count) { pool().count.store(std::clamp(count, 1, most_threads)); }

void parallel_chunks(int64_t count, int64_t chunk, Body body, void* context) {
    if (count <= 0) return;
    chunk = std::max<int64_t>(chunk, 1);
    chunk = std::max(chunk, count / (int64_t(1) << 30) + 1);  // chunks are counted in 32 bits
    const int64_t chunks = (count + chunk - 1) / chunk;
    if (inside || chunks == 1 || threads() == 1) return body(context, 0, count);
    Pool& p = pool();
    const std::unique_lock<std::mutex> mine(p.one_at_a_time, std::try_to_lock);
    if (!mine.owns_lock()) return body(context, 0, count);
    const int parts = static_cast<int>(std::min<int64_t>(p.count.load(), chunks));
    p.ensure_workers(parts);
    p.body.store(body, std::memory_order_relaxed);
    p.context.store(context, std::memory_order_relaxed);
    p.size.store(count, std::memory_order_relaxed);
    p.chunk.store(chunk, std::memory_order_relaxed);
    p.chunks.store(chunks, std::memory_order_relaxed);
    p.shares.store(parts, std::memory_order_relaxed);
    p.left.store(chunks, std::memory_order_relaxed);
    const uint32_t number = p.loop.load(std::memory_order_relaxed) + 1;
    for (int share = 0; share < parts; ++share) {
        const int64_t unclaimed = first_chunk(share + 1, chunks, parts) - first_chunk(share, chunks, parts);
        p.cursor[share].word.store(pack(number, static_cast<uint32_t>(unclaimed)), std::memory_order_release);
    }
    p.loop.store(number);  // sequentially consistent with `sleeping`: one sees the other
    if (p.sleeping.load() > 0) {
        const std::lock_guard<std::mutex> lock(p.sleep);
        p.wake.notify_all();
    }
    p.help(0, number);
    for (int i = 1; p.left.load(std::memory_order_acquire) > 0; ++i) {
        if (i % 256 == 0)
            std::this_thread::yield();
        else
            pause();
    }
    if (p.failure) std::rethrow_exception(std::exchange(p.failure, nullptr));
}

}  // namespace nn
