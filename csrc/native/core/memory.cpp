#include "core/memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace nn {
namespace {

constexpr size_t header = 64, huge = size_t(2) << 20;
constexpr int64_t spare = int64_t(256) << 20;  // kept beyond what is in use before a miss gives it back

// Kept beyond what is in use at any time.  Not `spare`: what a training step gives back at its end the next
// one takes again.
int64_t most_spare() {
    static const int64_t most = std::max(spare, int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 4);
    return most;
}

struct Header {
    size_t bytes;  // of the whole block, header included
    size_t unused[6];
    size_t mark;  // the word before the data: see pool_owns
};
static_assert(sizeof(Header) == header);
constexpr size_t pool_mark = 0x6e6e706f6f6c2e2e;

struct Pool {
    std::mutex mutex;
    std::map<size_t, std::vector<Header*>> kept;  // by size
    PoolCounters counters{};
};

// Never destroyed: arrays may outlive everything else when the interpreter ends.
Pool& pool() {
    static Pool* one = [] {
        // A child is forked while nobody changes the lists, and may use them.
        pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); },
                       [] { pool().mutex.unlock(); });
        return new Pool;
    }();
    return *one;
}

// The next quarter of an octave; whole huge pages from 2 MiB on.
size_t rounded(size_t bytes) {
    size_t step = 64;
    while (step * 8 < bytes) step *= 2;  // 4 to 8 steps make the size
    const size_t whole = step < huge || bytes < huge ? step : step / huge * huge;
    return (bytes + whole - 1) / whole * whole;
}

Header* from_system(size_t bytes) {
    if (bytes < huge) {
        void* block = std::aligned_alloc(64, bytes);
        if (!block) throw std::bad_alloc();
        return static_cast<Header*>(block);
    }
    // Mapped with room to begin at a huge page; what lies before and after is given back at once.
    char* block = static_cast<char*>(
        mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (block == MAP_FAILED) throw std::bad_alloc();
    const size_t before = (huge - reinterpret_cast<uintptr_t>(block) % huge) % huge;
    if (before) munmap(block, before);
    if (before != huge) munmap(block + before + bytes, huge - before);
#ifdef MADV_HUGEPAGE
    madvise(block + before, bytes, MADV_HUGEPAGE);
#endif
    return reinterpret_cast<Header*>(block + before);
}

void to_system(Header* block) {
    const size_t bytes = block->bytes;
    if (bytes < huge)
        std::free(block);
    else
        munmap(block, bytes);
}

void release_kept(Pool& p) {
    for (auto& [bytes, blocks] : p.kept)
        for (Header* block : blocks) {
            p.counters.bytes_kept -= static_cast<int64_t>(bytes);
            if (bytes >= huge) p.counters.bytes_huge -= static_cast<int64_t>(bytes);
            to_system(block);
        }
    p.kept.clear();
}

Header* header_of(const void* data) {
    return reinterpret_cast<Header*>(static_cast<char*>(const_cast<void*>(data)) - header);
}

void* take(size_t wanted, bool& zeroed) {
    Pool& p = pool();
    if (wanted > (size_t(1) << 60)) throw std::bad_alloc();
    const size_t bytes = rounded(wanted + header);
    const std::lock_guard<std::mutex> lock(p.mutex);
    Header* block;
    zeroed = false;
    if (auto place = p.kept.find(bytes); place != p.kept.end() && !place->second.empty()) {
        block = place->second.back();  // the last one given back: the likeliest to be in a cache
        place->second.pop_back();
        p.counters.bytes_kept -= static_cast<int64_t>(bytes);
    } else {
        if (p.counters.bytes_kept > p.counters.bytes_in_use + spare) release_kept(p);
        try {
            block = from_system(bytes);
        } catch (const std::bad_alloc&) {  // what is kept may be what is missing
            release_kept(p);
            block = from_system(bytes);
        }
        block->bytes = bytes;
        block->mark = pool_mark;
        zeroed = bytes >= huge;
        ++p.counters.fresh;
        if (bytes >= huge) p.counters.bytes_huge += static_cast<int64_t>(bytes);
    }
    ++p.counters.taken;
    p.counters.bytes_in_use += static_cast<int64_t>(bytes);
    if (p.counters.bytes_in_use > p.counters.peak_bytes) p.counters.peak_bytes = p.counters.bytes_in_use;
    return reinterpret_cast<char*>(block) + header;
}

}  // namespace

void* pool_take(size_t bytes) {
    bool zeroed;
    return take(bytes, zeroed);
}

void* pool_take_zeroed(size_t bytes) {
    bool zeroed;
    void* data = take(bytes, zeroed);
    return zeroed ? data : std::memset(data, 0, bytes);
}

bool pool_owns(const void* data) { return static_cast<const size_t*>(data)[-1] == pool_mark; }

void pool_give(void* data) noexcept {
    if (!data) return;
    Pool& p = pool();
    Header* block = header_of(data);
    const std::lock_guard<std::mutex> lock(p.mutex);
    const int64_t bytes = static_cast<int64_t>(block->bytes);
    p.counters.bytes_in_use -= bytes;
    bool keep = p.counters.bytes_kept + bytes <= p.counters.bytes_in_use + most_spare();
    try {
        if (keep) p.kept[block->bytes].push_back(block);
    } catch (const std::bad_alloc&) { keep = false; }  // no memory for the list
    if (keep) {
        p.counters.bytes_kept += bytes;
        return;
    }
    if (block->bytes >= huge) p.counters.bytes_huge -= bytes;
    to_system(block);
}

size_t pool_size(const void* data) { return header_of(data)->bytes - header; }

void pool_trim() noexcept {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    release_kept(p);
}

PoolCounters pool_counters() {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    return p.counters;
}

void pool_reset_peak() {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    p.counters.peak_bytes = p.counters.bytes_in_use;
}

namespace {

bool& following() {
#if defined(__x86_64__)
    static bool whether = __builtin_cpu_is("amd");
#else
    static bool whether = false;
#endif
    return whether;
}

}  // namespace

bool follows_streams() { return following(); }
void follow_streams(bool whether) { following() = whether; }

}  // namespace nn
