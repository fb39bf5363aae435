// Asynchronous operations between issue and landing: what async.cpp, mbarrier.cpp, bulk.cpp and
// tensor_map.cpp share.  Internal.
#pragma once
#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

#include "checker.h"
#include "runtime.h"

namespace emu {

enum class Swizzle : uint32_t { none, span_32, span_64, span_128 };

// Where a byte of a swizzled tile lies: bits 4.. of the shared address XOR bits 7.. of it, within spans of
// 32, 64 or 128 bytes.
inline uint32_t swizzled(uint32_t address, Swizzle swizzle) {
    const uint32_t chunks = (1u << static_cast<uint32_t>(swizzle)) - 1;      // 0, 1, 3, 7
    return address ^ ((address >> 7 & chunks) << 4);
}

// One cp.async: 4, 8 or 16 bytes.
struct SmallCopy {
    char* destination;
    const char* source;
    uint32_t bytes, source_bytes;
    uint32_t site;
    uint32_t reading, writing;           // the checker's tokens
};

// A contiguous run of a bulk copy: `offset` bytes behind the start of the tile in shared memory (before
// swizzling).
struct Run {
    uint32_t offset;
    uint32_t bytes;
    char* other;  // the other side; null: out of bounds, filled when loading and skipped when storing
};

// One bulk copy or reduction between a tile in shared memory and runs elsewhere (global memory, or another
// block's shared memory).
struct BulkOperation {
    Thread* issuer;
    uint32_t site;
    bool to_tile;                        // loads write the tile, stores read it
    char* tile;
    uint32_t tile_bytes;
    std::vector<Run> runs;
    bool run_is_global = true;  // the other side is global memory, or else another block's shared memory
    Swizzle swizzle = Swizzle::none;
    const char* fill = nullptr;          // 16 bytes repeated where a load is out of bounds; null: zeros
    bool reduces = false;                // combine with what is at the destination
    Reduce operation = Reduce::add;
    Element element = Element::u8;
    bool rounds_to_tf32 = false;         // floats become tf32 on their way to the tile
    uint32_t byte_mask = 0xffff;         // .cp_mask: which bytes of every 16 are written
    char* barrier = nullptr;             // complete_tx here; null: counted by bulk groups
    std::vector<char> staged;            // the bytes between reading and writing, run after run
    bool was_read = false, was_written = false;
    bool waited_for = false;             // by wait_group or wait_group.read
    uint32_t tile_token = 0;
    std::vector<uint32_t> run_tokens;    // one per run that has another side

    void announce();                     // checks and counters at issue
    void read();                         // once: from memory into staged
    void write();                        // once: from staged into memory, and complete_tx
    void land() { read(); write(); }
    void drop_tokens();                  // it will never land

private:
    void land_tile_token();
    void land_run_tokens();
};
using BulkPointer = std::unique_ptr<BulkOperation>;
using BulkGroup = std::vector<BulkPointer>;

// First in, first out, in one piece of memory that is kept: a std::deque would allocate all the time.
template <class T>
class Queue {
public:
    bool empty() const { return head_ == items_.size(); }
    size_t size() const { return items_.size() - head_; }
    T& front() { return items_[head_]; }
    void push_back(const T& item) { items_.push_back(item); }
    void pop_front() {
        if (++head_ < 64 && head_ < items_.size()) return;
        items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
        head_ = 0;
    }
    void clear() {
        items_.clear();
        head_ = 0;
    }

private:
    std::vector<T> items_;
    size_t head_ = 0;
};

// What one thread has in flight.
struct AsyncState {
    Queue<SmallCopy> copies;             // oldest first
    uint64_t issued = 0;                 // cp.async issued so far; the youngest of `copies` has this number
    Queue<uint64_t> groups;              // value of `issued` at each commit not yet waited for
    BulkGroup open;                      // bulk copies to global not yet committed
    std::deque<BulkGroup> bulk_groups;   // committed, oldest first
    // The mbarrier that the thread polls in vain: how often in a row, and for the end of which phase.  Read
    // for deadlocks.
    const char* polled = nullptr;
    uint32_t polled_parity = 0, polled_site = 0, polls = 0;
};

AsyncState& async_state(Thread&);
bool lands_at_issue(const Thread&);      // option cp_async=eager

// Operations that complete on an mbarrier: kept until it is polled.
struct Deferred {
    char* barrier;
    Thread* issuer;
    uint32_t site;
    uint64_t
        copies_until;  // cp.async.mbarrier.arrive: lands the issuer's copies up to this number, then arrives
    BulkPointer bulk;                    // or a bulk operation
};
void issue(BulkPointer);                 // into the store below or the thread's open bulk group
void defer(Deferred);
void settle(const char* barrier);        // lands everything that completes on this mbarrier
// The arrivals by cp.async.mbarrier.arrive whose copies have all landed: on a GPU they have happened by now.
void settle_due_arrivals(const char* barrier);
void land(Deferred&);

void land_copies(Thread&, uint64_t until);
// mbarrier.cpp.  Arrivals and bytes that the system brings when an operation lands are no accesses of the
// thread.
void barrier_track(Thread&, char* barrier, bool counted,
                   uint32_t site);  // checks it; counted: one more arrival will come
void barrier_arrive_on(Thread& issuer, char* barrier, uint32_t site);
void barrier_complete(Thread& issuer, char* barrier, uint32_t bytes, uint32_t site);

char* in_block(const Thread&, char* shared_address,
               uint32_t rank);  // the same place in another block of the cluster
std::vector<uint32_t> receivers(Thread&, const char* destination, uint32_t blocks,
                                uint32_t site);  // ranks a load goes to
void watch_barrier(Thread&, const char* barrier, uint32_t site);

uint32_t element_bytes(Element);
void reduce_element(Element, Reduce, char* destination, const char* value, bool in_global);

void require_aligned(Thread&, const void* address, uint32_t alignment, const char* what, uint32_t site);
void watch(Thread&, const void* address, uint32_t bytes, uint32_t what,
           uint32_t site);  // access() in pieces it can take

}  // namespace emu
