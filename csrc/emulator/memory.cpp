// Device memory (memory.h): whole pages for every allocation, inaccessible gaps between them.
//
//   ... gap | slack, allocation | gap | slack, allocation | gap ...
//
// An allocation ends with its last page, but for the 256 bytes that its start is aligned to, so that an
// overrun meets the gap and faults even without hooks.
//
// A page table (one pointer per 4 KiB page of the arena, touched only where used) makes memory_find() a
// single load. A freed allocation keeps its addresses a while (quarantine), so that a use after free can be
// named.  A large one gives its pages back to the system at once, and a use after free faults; those of a
// small one stay open, filled with 0xFF, and serve the next allocation of as many pages: system calls and
// page faults are what an allocation costs. Lookups take no lock: the host frees nothing while a kernel runs,
// and kernels only add allocations.
#include "memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "checker.h"

namespace emu {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;                    // what cudaMalloc promises
constexpr size_t LARGEST_ARENA = size_t{64} << 30;
constexpr size_t SMALLEST_ARENA = size_t{64} << 20;
constexpr size_t QUARANTINE_ENTRIES = 256, QUARANTINE_LEAST = 16;
constexpr size_t KEPT_OPEN = size_t{128} << 20;      // bytes of freed allocations whose pages stay open
constexpr size_t LARGE = size_t{4} << 20;            // from here on the fill is mapped, not written
constexpr int FILL = 0xFF;                           // NaN in every float format

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

struct Extent {                                      // an allocation and the pages it owns
    Allocation allocation;
    size_t first_page, pages;
    bool open;                                       // its pages are accessible
};

// ---- the reserved range -----------------------------------------------------------------------------------

char* reserve(size_t bytes) {
    void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? nullptr : static_cast<char*>(range);
}

// Under a limit on address space (ulimit -v) an eighth of it is ours: the shadow memory and the kernels'
// stacks need theirs.
size_t wanted_arena() {
    rlimit limit{};
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return LARGEST_ARENA;
    size_t share = static_cast<size_t>(limit.rlim_cur) / 8 / PAGE * PAGE;
    return std::clamp(share, SMALLEST_ARENA, LARGEST_ARENA);
}

class Arena {
public:
    Arena() {
        for (size_ = wanted_arena(); size_ >= SMALLEST_ARENA; size_ /= 2)
            if ((begin_ = reserve(size_))) break;
        if (!begin_) { size_ = 0; return; }
        gap_ = std::clamp(size_ >> 20, size_t{1}, size_t{16});        // pages: 64 KiB in a full arena
        size_t table_bytes = round_up(size_ / PAGE * sizeof(*table_), PAGE);
        void* table = mmap(nullptr, table_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (table == MAP_FAILED) { munmap(begin_, size_); begin_ = nullptr; size_ = 0; return; }
        table_ = static_cast<std::atomic<Extent*>*>(table);
        next_page_ = gap_;
    }

    char* begin() const { return begin_; }
    size_t bytes() const { return size_; }
    size_t page_count() const { return size_ / PAGE; }
    size_t gap() const { return gap_; }
    char* page(size_t number) const { return begin_ + number * PAGE; }
    Extent* owner(size_t number) const { return table_[number].load(std::memory_order_acquire); }

    void set_owner(size_t first, size_t pages, Extent* extent) {
        for (size_t i = first; i < first + pages; ++i) table_[i].store(extent, std::memory_order_release);
    }

    // Addresses for `pages` pages with a gap after them: the smallest returned range that fits, else fresh
    // ones.  0: none left.
    size_t take(size_t pages) {
        size_t wanted = pages + gap_;
        auto fit = std::find_if(free_.begin(), free_.end(),
                                [&](const auto& range) { return range.second >= wanted; });
        if (fit == free_.end()) return take_fresh(wanted);
        auto [first, length] = *fit;
        free_.erase(fit);
        if (length > wanted) free_[first + wanted] = length - wanted;
        return first;
    }

    void give_back(size_t first, size_t pages) {                       // joined with its neighbours
        size_t length = pages + gap_;
        auto next = free_.lower_bound(first);
        if (next != free_.end() && first + length == next->first) {
            length += next->second;
            next = free_.erase(next);
        }
        if (next != free_.begin()) {
            auto before = std::prev(next);
            if (before->first + before->second == first) { before->second += length; return; }
        }
        free_[first] = length;
    }

private:
    size_t take_fresh(size_t wanted) {
        if (wanted > page_count() || next_page_ > page_count() - wanted) return 0;
        size_t first = next_page_;
        next_page_ += wanted;
        return first;
    }

    char* begin_ = nullptr;
    size_t size_ = 0, gap_ = 1, next_page_ = 1;
    std::atomic<Extent*>* table_ = nullptr;
    std::map<size_t, size_t> free_;                  // first page -> pages, gap included
};

// Never destroyed: reports are written, and the program's own destructors free memory, while the process
// ends.
struct Memory {
    Arena arena;
    std::mutex lock;
    std::deque<Extent*> quarantine;
    size_t quarantined_pages = 0;
    std::map<size_t, std::vector<size_t>>
        open;     // pages -> first pages of ranges that are open, filled and free
    size_t open_bytes = 0;                           // in there and in quarantine
    std::map<const char*, Extent*> registered;       // memory from elsewhere, by start
    std::atomic<size_t> in_use{0};
    std::atomic<uint64_t> serial{0};
};

Memory& memory() {
    static Memory* instance = new Memory;
    return *instance;
}

const bool reserved_at_load =
    arena_bytes() != 0;     // so that in_arena() never meets an arena that does not exist yet

// ---- pages ------------------------------------------------------------------------------------------------

// A small file full of 0xFF, mapped again and again: a large allocation costs no memory until it is written.
int fill_file() {
    static const int file = [] {
        int created = memfd_create("device-fill", MFD_CLOEXEC);
        if (created < 0) return -1;
        std::string chunk(LARGE / 2, static_cast<char>(FILL));
        if (write(created, chunk.data(), chunk.size()) == static_cast<ssize_t>(chunk.size())) return created;
        close(created);
        return -1;
    }();
    return file;
}

bool map_filled(char* begin, size_t bytes) {
    int file = fill_file();
    if (file < 0) return false;
    for (size_t done = 0; done < bytes; done += LARGE / 2) {
        size_t part = std::min(bytes - done, LARGE / 2);
        int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
        if (mmap(begin + done, part, PROT_READ | PROT_WRITE, flags, file, 0) == MAP_FAILED) return false;
    }
    return true;
}

bool open_pages(char* begin, size_t bytes) {
    if (bytes >= LARGE && map_filled(begin, bytes)) return true;
    if (mprotect(begin, bytes, PROT_READ | PROT_WRITE) != 0) return false;
    std::memset(begin, FILL, bytes);
    return true;
}

void close_pages(char* begin, size_t bytes) {        // inaccessible, and the memory goes back to the system
    mmap(begin, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

size_t cgroup_limit() {     // containers: what the machine has is not what we may use
    size_t limit = SIZE_MAX;
    if (FILE* file = std::fopen("/sys/fs/cgroup/memory.max", "r")) {
        if (std::fscanf(file, "%zu", &limit) != 1) limit = SIZE_MAX;
        std::fclose(file);
    }
    return limit;
}

// ---- extents ----------------------------------------------------------------------------------------------

void release_oldest(Memory& m) {
    Extent* oldest = m.quarantine.front();
    m.quarantine.pop_front();
    m.quarantined_pages -= oldest->pages;
    m.arena.set_owner(oldest->first_page, oldest->pages, nullptr);
    if (oldest->open) m.open[oldest->pages].push_back(oldest->first_page);
    else m.arena.give_back(oldest->first_page, oldest->pages);
    delete oldest;
}

void trim_quarantine(Memory& m) {
    constexpr size_t most_pages = KEPT_OPEN / 2 / PAGE;
    auto too_many = [&] {
        return m.quarantine.size() > QUARANTINE_ENTRIES || m.quarantined_pages > most_pages;
    };
    while (m.quarantine.size() > QUARANTINE_LEAST && too_many()) release_oldest(m);
}

void close_open_ranges(Memory& m) {
    for (auto& [pages, ranges] : m.open)
        for (size_t first : ranges) {
            close_pages(m.arena.page(first), pages * PAGE);
            m.arena.give_back(first, pages);
            m.open_bytes -= pages * PAGE;
        }
    m.open.clear();
}

size_t take_open(Memory& m, size_t pages) {
    auto found = m.open.find(pages);
    if (found == m.open.end() || found->second.empty()) return 0;
    size_t first = found->second.back();
    found->second.pop_back();
    m.open_bytes -= pages * PAGE;
    return first;
}

size_t take_closed(Memory& m, size_t pages) {        // what is kept gives way when addresses run out
    for (;;) {
        size_t first = m.arena.take(pages);
        if (first || (m.quarantine.empty() && m.open_bytes == 0)) return first;
        while (!m.quarantine.empty()) release_oldest(m);
        close_open_ranges(m);
    }
}

// First page of `pages` accessible ones, filled.  0: none to be had.
size_t take_pages(Memory& m, size_t pages) {
    if (size_t first = take_open(m, pages)) return first;
    size_t first = take_closed(m, pages);
    if (!first || open_pages(m.arena.page(first), pages * PAGE)) return first;
    close_pages(m.arena.page(first), pages * PAGE);  // e.g. too many mappings
    m.arena.give_back(first, pages);
    return 0;
}

// Freed memory reads as NaN, or faults.
void retire_pages(Memory& m, Extent& extent) {
    char* begin = m.arena.page(extent.first_page);
    size_t bytes = extent.pages * PAGE;
    extent.open = bytes < LARGE && m.open_bytes + bytes <= KEPT_OPEN;
    if (!extent.open) return close_pages(begin, bytes);
    std::memset(begin, FILL, bytes);
    m.open_bytes += bytes;
}

Extent* arena_extent(const Memory& m, const void* p) {
    if (!in_arena(p)) return nullptr;
    return m.arena.owner(static_cast<size_t>(static_cast<const char*>(p) - m.arena.begin()) / PAGE);
}

bool contains(const Allocation& a, const void* p) {
    return static_cast<size_t>(static_cast<const char*>(p) - a.begin) < a.bytes;
}

Extent* registered_extent(const Memory& m, const void* p) {
    auto after = m.registered.upper_bound(static_cast<const char*>(p));
    return after == m.registered.begin() ? nullptr : std::prev(after)->second;
}

}  // namespace

char* arena_begin() {
    static char* const begin = memory().arena.begin();
    return begin;
}

size_t arena_bytes() {
    static const size_t bytes = memory().arena.bytes();
    return bytes;
}

size_t memory_capacity() {
    static const size_t capacity = [] {
        size_t physical = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * PAGE;
        return std::min(std::min(physical, cgroup_limit()) / 10 * 8, arena_bytes() / 10 * 9);
    }();
    return capacity;
}

void* memory_allocate(size_t bytes, MemoryKind kind, std::string label) {
    Memory& m = memory();
    if (bytes > memory_capacity() || m.in_use + bytes > memory_capacity()) return nullptr;
    size_t pages = std::max(round_up(bytes, PAGE) / PAGE, size_t{1});
    std::lock_guard<std::mutex> guard(m.lock);
    size_t first = take_pages(m, pages);
    if (!first) return nullptr;
    char* begin = m.arena.page(first + pages) - std::max(round_up(bytes, ALIGNMENT), ALIGNMENT);
    auto* extent = new Extent{{begin, bytes, kind, false, ++m.serial, std::move(label)}, first, pages, true};
    m.arena.set_owner(first, pages, extent);
    m.in_use += bytes;
    checker_allocated(begin, bytes);
    if (kind != MemoryKind::device) checker_written(begin, bytes);     // the host writes there unseen
    return begin;
}

bool memory_free(void* p) {
    Memory& m = memory();
    std::lock_guard<std::mutex> guard(m.lock);
    Extent* extent = arena_extent(m, p);
    if (!extent || extent->allocation.freed || extent->allocation.begin != p) return false;
    extent->allocation.freed = true;
    m.in_use -= extent->allocation.bytes;
    checker_freed(p, extent->allocation.bytes);
    retire_pages(m, *extent);
    m.quarantine.push_back(extent);
    m.quarantined_pages += extent->pages;
    trim_quarantine(m);
    return true;
}

void memory_label(void* p, std::string label) {
    Memory& m = memory();
    std::lock_guard<std::mutex> guard(m.lock);
    if (Extent* extent = arena_extent(m, p)) extent->allocation.label = std::move(label);
}

const Allocation* memory_find(const void* p) {
    Memory& m = memory();
    Extent* extent = in_arena(p) ? arena_extent(m, p) : registered_extent(m, p);
    return extent && contains(extent->allocation, p) ? &extent->allocation : nullptr;
}

const Allocation* memory_near(const void* p) {
    Memory& m = memory();
    if (!in_arena(p)) {                              // just past a variable: within one page of it
        Extent* below = registered_extent(m, p);
        if (!below) return nullptr;
        const char* end = below->allocation.begin + below->allocation.bytes;
        return static_cast<const char*>(p) < end + PAGE ? &below->allocation : nullptr;
    }
    size_t page = static_cast<size_t>(static_cast<const char*>(p) - m.arena.begin()) / PAGE;
    for (size_t distance = 0; distance <= m.arena.gap();
         ++distance) {     // nearest first; below wins: overruns are commoner
        if (page >= distance && m.arena.owner(page - distance))
            return &m.arena.owner(page - distance)->allocation;
        if (page + distance >= m.arena.page_count()) continue;
        if (m.arena.owner(page + distance)) return &m.arena.owner(page + distance)->allocation;
    }
    return nullptr;
}

void memory_register(void* begin, size_t bytes, MemoryKind kind, std::string label) {
    Memory& m = memory();
    std::lock_guard<std::mutex> guard(m.lock);
    Extent*& slot = m.registered[static_cast<char*>(begin)];
    delete slot;
    slot =
        new Extent{{static_cast<char*>(begin), bytes, kind, false, ++m.serial, std::move(label)}, 0, 0, true};
}

void memory_unregister(void* begin) {
    Memory& m = memory();
    std::lock_guard<std::mutex> guard(m.lock);
    auto found = m.registered.find(static_cast<char*>(begin));
    if (found == m.registered.end()) return;
    delete found->second;
    m.registered.erase(found);
}

size_t memory_in_use() { return memory().in_use; }

}  // namespace emu
