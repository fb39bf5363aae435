// What is remembered of memory: per 4 bytes the last write and the last reads, per byte whether it was ever
// written.
//
// Nothing is cleared between blocks and launches: a record is void when its epoch lies before `first`, the
// tick at which the block (shared memory) or the launch (global memory) began.  A cell holds one writer and
// the readers of one warp at one epoch; what does not fit (readers of several warps, bytes of one word
// written by different threads, copies in flight) goes to chunks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emu {

// A thread of a launch: the block's ordinal (in order of start) and the thread's number.  The upper 27 bits
// name its warp.
constexpr uint32_t THREAD_BITS = 10;
constexpr uint32_t ORDINALS = 1u << (32 - THREAD_BITS);
inline uint32_t block_of_actor(uint32_t actor) { return actor >> THREAD_BITS; }
inline uint32_t thread_of_actor(uint32_t actor) { return actor & ((1u << THREAD_BITS) - 1); }

// How something was accessed: bytes of the word (bits 0-3), flags, site.
enum Trait : uint32_t {
    BYTES = 0xf,
    WROTE = 1 << 4,
    ATOMICALLY = 1 << 5,
    STRONGLY = 1 << 6,
    BLOCK_SCOPE = 1 << 7,
    BY_ASYNC = 1 << 8,
    IN_FLIGHT = 1 << 9,
    TRAITS = 0x3f0,
};
constexpr uint32_t SITE_SHIFT = 10;
inline uint32_t site_of_info(uint32_t info) { return info >> SITE_SHIFT; }

struct Write {    // the last one
    uint32_t actor, epoch, info;
};

struct Entry {        // one access, or equal ones by several lanes of a warp
    uint32_t warp;    // actor / 32
    uint32_t lanes;
    uint32_t epoch, info;
};

struct Cell {
    Write write;
    Entry read;
    uint32_t more;    // first chunk; 0: none.  Valid only if that chunk says so
    static constexpr uint32_t HAS_WRITES =
        1u << 31;    // in more: the chunks hold writes or operations in flight, not only reads
};
static_assert(sizeof(Cell) == 32, "two cells per cache line");

// Further entries of one cell.
struct Chunk {
    static constexpr uint32_t ENTRIES = 7;
    const Cell* owner;
    uint32_t next, count;
    uint32_t latest;    // in the first chunk: the latest epoch of the chain's entries
    Entry entries[ENTRIES];
};

class Chunks {
public:
    void clear() {
        used_ = 1;
        free_ = 0;
    }
    // The first chunk of a cell, or null.  A cell may hold the number of a chunk that was given to another
    // since.
    Chunk* first(Cell& cell) {
        const uint32_t number = cell.more & ~Cell::HAS_WRITES;
        if (number == 0) return nullptr;
        if (number < used_ && at(number).owner == &cell) return &at(number);
        cell.more = 0;
        return nullptr;
    }
    Chunk* next(const Chunk& chunk) { return chunk.next ? &at(chunk.next) : nullptr; }
    void add(Cell& cell, const Entry& entry);
    void tidy(Cell& cell);    // gives back what holds no entries (info without bytes) any more
    void drop(Cell& cell);    // gives back all

private:
    static constexpr uint32_t PAGE = 1024;
    Chunk& at(uint32_t number) { return pages_[number / PAGE][number % PAGE]; }
    uint32_t take(const Cell& owner);
    void give_back(uint32_t number);

    std::vector<std::unique_ptr<Chunk[]>> pages_;    // chunks keep their place
    uint32_t used_ = 1, free_ = 0;
};

// One bit per byte: was it written?
class Written {
public:
    Written() = default;
    void use(uint8_t* bits) { bits_ = bits; }
    bool present() const { return bits_ != nullptr; }
    uint32_t word(size_t offset) const {
        return bits_[offset >> 3] >> (offset & 4) & 0xf;
    }    // offset: multiple of 4
    void set_word(size_t offset, uint32_t mask) {
        bits_[offset >> 3] |= static_cast<uint8_t>(mask << (offset & 4));
    }
    void set(size_t offset, size_t bytes);
    void clear(size_t offset, size_t bytes);

private:
    uint8_t* bits_ = nullptr;
};

// A window of shared memory.
struct SharedShadow {
    explicit SharedShadow(size_t window);
    ~SharedShadow();
    SharedShadow(const SharedShadow&) = delete;
    SharedShadow& operator=(const SharedShadow&) = delete;
    Cell* cells;
    Written written;
    Chunks chunks;

private:
    size_t cell_bytes_, bit_bytes_;
    void* bits_;
};

// All global memory.  The arena's cells are found by arithmetic; other memory (module variables, registered
// host memory) has pages of cells in a table.
class GlobalShadow {
public:
    static constexpr size_t PAGE = 4096;

    GlobalShadow();
    Cell* cell(uintptr_t address) {    // followed by those of the same 4 KiB page
        const size_t offset = address - arena_;
        return cells_ && offset < arena_bytes_ ? cells_ + offset / 4 : outside(address);
    }
    bool knows_written(uintptr_t address) const {
        return written.present() && address - arena_ < arena_bytes_;
    }
    size_t offset(uintptr_t address) const { return address - arena_; }
    void forget();      // all cells, when the tick begins anew
    Written written;    // by offset()
    Chunks chunks;

private:
    Cell* outside(uintptr_t address);
    uintptr_t arena_;
    size_t arena_bytes_;
    Cell* cells_ = nullptr;    // null: no room for them, the table serves all
    std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages_;
    uintptr_t last_page_ = 0;
    Cell* last_cells_ = nullptr;
};

}    // namespace emu
