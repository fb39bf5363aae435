// Counts of one kernel or of one of its source lines, and their sums.  Internal to the counters.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "descriptor.h"

namespace emu {

constexpr uint32_t FLOP_KINDS = static_cast<uint32_t>(FlopKind::tensor_f64) + 1;

struct MemoryTally {
    uint64_t requests = 0, sectors = 0, ideal_sectors = 0;    // global
    uint64_t shared_requests = 0, bank_wavefronts = 0, ideal_wavefronts = 0;
    uint64_t bytes_read = 0, bytes_written = 0;                      // global, as asked for by all threads
    uint64_t distinct_bytes_read = 0, distinct_bytes_written = 0;    // per launch
    uint64_t atomics = 0;                                            // by thread
    void add(const MemoryTally&);
};

struct Tally {
    MemoryTally memory;
    std::array<uint64_t, FLOP_KINDS> flops{};
    uint64_t instructions = 0, barriers = 0, collectives = 0;
    std::map<std::string, uint64_t> mix;    // instructions by class
    void add(const Tally&);
    std::string json_fields() const;    // "\"sectors\": 12, ..." without braces
};

// Which bytes of global memory were touched, in 32-byte sectors, by group (0: the kernel; others: its lines).
class DistinctBytes {
public:
    void add(uint32_t group, uint64_t sector, uint32_t bytes, bool write);
    void clear();
    template <class F> void for_each(F f) const {    // f(group, read mask, write mask)
        for (const Slot& s : slots_)
            if (s.key) f(static_cast<uint32_t>(s.key >> SECTOR_BITS) - 1, s.read, s.written);
    }

private:
    static constexpr uint32_t SECTOR_BITS = 43;    // 48-bit addresses
    struct Slot {
        uint64_t key;
        uint32_t read, written;
    };    // key 0: free
    Slot& find(uint64_t key);
    void grow();
    std::vector<Slot> slots_;
    size_t used_ = 0;
};

std::string json_text(const std::string&);    // quoted and escaped

}    // namespace emu
