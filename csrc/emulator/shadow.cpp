// Shadow memory (shadow.h): reserved, not allocated; the system gives pages where cells are touched.
#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "memory.h"

namespace emu {

namespace {

constexpr size_t SYSTEM_PAGE = 4096;
constexpr size_t LARGE = 1 << 16;    // bytes of bits from which on pages are given back rather than cleared

void* reserve(size_t bytes) {
    void* range =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? nullptr : range;
}

}    // namespace

// ---- chunks -----------------------------------------------------------------------------------------------

uint32_t Chunks::take(const Cell& owner) {
    uint32_t number = free_;
    if (number) {
        free_ = at(number).next;
    } else {
        number = used_++;
        if (number / PAGE == pages_.size()) pages_.emplace_back(new Chunk[PAGE]);
    }
    at(number).owner = &owner;
    at(number).next = 0;
    at(number).count = 0;
    return number;
}

void Chunks::give_back(uint32_t number) {
    at(number).owner = nullptr;
    at(number).next = free_;
    free_ = number;
}

void Chunks::add(Cell& cell, const Entry& entry) {
    Chunk* chunk = first(cell);
    uint32_t flag = cell.more & Cell::HAS_WRITES;
    if (!chunk || chunk->count == Chunk::ENTRIES) {
        const uint32_t following = cell.more & ~Cell::HAS_WRITES;
        const uint32_t latest = chunk ? chunk->latest : 0;
        cell.more = take(cell);
        chunk = &at(cell.more);
        chunk->next = following;
        chunk->latest = latest;
    }
    if (entry.info & (WROTE | IN_FLIGHT)) flag = Cell::HAS_WRITES;
    cell.more |= flag;
    chunk->latest = std::max(chunk->latest, entry.epoch);
    chunk->entries[chunk->count++] = entry;
}

void Chunks::drop(Cell& cell) {
    if (first(cell)) {
        for (uint32_t number = cell.more & ~Cell::HAS_WRITES; number;) {
            const uint32_t following = at(number).next;
            give_back(number);
            number = following;
        }
    }
    cell.more = 0;
}

void Chunks::tidy(Cell& cell) {
    if (!first(cell)) return;
    uint32_t begin = cell.more & ~Cell::HAS_WRITES;
    uint32_t flag = 0, latest = 0;
    for (uint32_t* link = &begin; *link;) {
        const uint32_t number = *link;
        Chunk& chunk = at(number);
        uint32_t kept = 0;
        for (uint32_t i = 0; i < chunk.count; ++i) {
            const Entry& e = chunk.entries[i];
            if (!(e.info & BYTES)) continue;
            if (e.info & (WROTE | IN_FLIGHT)) flag = Cell::HAS_WRITES;
            latest = std::max(latest, e.epoch);
            chunk.entries[kept++] = e;
        }
        chunk.count = kept;
        if (kept) {
            link = &chunk.next;
        } else {
            *link = chunk.next;
            give_back(number);
        }
    }
    cell.more = begin ? begin | flag : 0;
    if (begin) at(begin).latest = latest;
}

// ---- which bytes were written -----------------------------------------------------------------------------

void Written::set(size_t offset, size_t bytes) {
    if (!bits_) return;
    for (; bytes && offset % 8; ++offset, --bytes)
        bits_[offset >> 3] |= static_cast<uint8_t>(1u << (offset & 7));
    std::memset(bits_ + offset / 8, 0xff, bytes / 8);
    for (offset += bytes / 8 * 8, bytes %= 8; bytes; ++offset, --bytes)
        bits_[offset >> 3] |= static_cast<uint8_t>(1u << (offset & 7));
}

void Written::clear(size_t offset, size_t bytes) {
    if (!bits_) return;
    const auto clear_one = [&](size_t at) { bits_[at >> 3] &= static_cast<uint8_t>(~(1u << (at & 7))); };
    for (; bytes && offset % 8; ++offset, --bytes) clear_one(offset);
    uint8_t* begin = bits_ + offset / 8;
    const size_t whole = bytes / 8;
    if (whole < LARGE) {
        std::memset(begin, 0, whole);
    } else {
        const size_t head = (SYSTEM_PAGE - reinterpret_cast<uintptr_t>(begin) % SYSTEM_PAGE) % SYSTEM_PAGE;
        const size_t pages = (whole - head) / SYSTEM_PAGE * SYSTEM_PAGE;
        std::memset(begin, 0, head);
        if (madvise(begin + head, pages, MADV_DONTNEED) != 0) std::memset(begin + head, 0, pages);
        std::memset(begin + head + pages, 0, whole - head - pages);
    }
    for (offset += whole * 8, bytes %= 8; bytes; ++offset, --bytes) clear_one(offset);
}

// ---- shared -----------------------------------------------------------------------------------------------

SharedShadow::SharedShadow(size_t window) : cell_bytes_(window / 4 * sizeof(Cell)), bit_bytes_(window / 8) {
    cells = static_cast<Cell*>(reserve(cell_bytes_));
    bits_ = reserve(bit_bytes_);
    if (!cells || !bits_) std::abort();    // 2 MB of addresses: nothing would run any more
    written.use(static_cast<uint8_t*>(bits_));
}

SharedShadow::~SharedShadow() {
    munmap(cells, cell_bytes_);
    munmap(bits_, bit_bytes_);
}

// ---- global -----------------------------------------------------------------------------------------------

GlobalShadow::GlobalShadow()
    : arena_(reinterpret_cast<uintptr_t>(arena_begin())), arena_bytes_(arena_bytes()) {
    if (arena_bytes_ == 0) return;
    cells_ = static_cast<Cell*>(reserve(arena_bytes_ / 4 * sizeof(Cell)));
    written.use(static_cast<uint8_t*>(reserve(arena_bytes_ / 8)));
}

void GlobalShadow::forget() {
    if (cells_) madvise(cells_, arena_bytes_ / 4 * sizeof(Cell), MADV_DONTNEED);
    pages_.clear();
    last_page_ = 0;
}

Cell* GlobalShadow::outside(uintptr_t address) {
    const uintptr_t page = address / PAGE;
    if (page != last_page_) {
        std::unique_ptr<Cell[]>& cells = pages_[page];
        if (!cells) cells.reset(new Cell[PAGE / 4]());
        last_page_ = page;
        last_cells_ = cells.get();
    }
    return last_cells_ + address % PAGE / 4;
}

}    // namespace emu
