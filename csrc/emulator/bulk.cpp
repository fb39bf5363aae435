// Bulk copies and reductions (cp.async.bulk, cp.reduce.async.bulk, st.async, red.async): whole runs of bytes
// moved by the async proxy.
//
// Every one is a BulkOperation, a tile in shared memory and runs elsewhere: issued (checked, announced),
// read, written.  Copies that complete on an mbarrier wait in the store of deferred operations; copies to
// global memory wait in their thread's bulk groups.
#include <cstring>

#include "in_flight.h"
#include "reports.h"

namespace emu {

// ---- elements ---------------------------------------------------------------------------------------------

uint32_t element_bytes(Element e) {
    switch (e) {
        case Element::u8: return 1;
        case Element::u16: case Element::f16: case Element::bf16: return 2;
        case Element::u64: case Element::s64: case Element::f64: return 8;
        default: return 4;
    }
}

namespace {

template <class T> void reduce_at(Reduce operation, char* destination, const char* value) {
    atomic_reduce<T>(operation, destination, load<typename T::Value>(value));
}

}  // namespace

void reduce_element(Element e, Reduce operation, char* destination, const char* value, bool in_global) {
    switch (e) {
        case Element::u32: return reduce_at<numbers::U32>(operation, destination, value);
        case Element::s32: return reduce_at<numbers::S32>(operation, destination, value);
        case Element::u64: return reduce_at<numbers::U64>(operation, destination, value);
        case Element::s64: return reduce_at<numbers::S64>(operation, destination, value);
        case Element::f16: return reduce_at<numbers::F16>(operation, destination, value);
        case Element::bf16: return reduce_at<numbers::BF16>(operation, destination, value);
        case Element::f64: return reduce_at<numbers::F64>(operation, destination, value);
        case Element::f32:
            if (in_global) return reduce_at<numbers::F32Flushed>(operation, destination, value);
            return reduce_at<numbers::F32>(operation, destination, value);
        case Element::u8: case Element::u16: return;             // refused when issued
    }
}

// ---- one operation ----------------------------------------------------------------------------------------

namespace {

// The address in the tile that byte `offset` of it has, and how many bytes follow it without a jump.
char* tile_address(const BulkOperation& o, uint32_t offset, uint32_t bytes, uint32_t* together) {
    *together = bytes;
    if (o.swizzle == Swizzle::none) return o.tile + offset;
    const uint32_t place = static_cast<uint32_t>(o.tile - o.issuer->shared) + offset;
    *together = std::min(bytes, 16 - place % 16);
    return o.issuer->shared + swizzled(place, o.swizzle);
}

void put(const BulkOperation& o, char* destination, const char* bytes, uint32_t count) {
    if (o.reduces) {
        const uint32_t step = element_bytes(o.element);
        for (uint32_t i = 0; i < count; i += step)
            reduce_element(o.element, o.operation, destination + i, bytes + i, !o.to_tile);
    } else if (o.byte_mask == 0xffff) {
        std::memcpy(destination, bytes, count);
    } else {
        for (uint32_t i = 0; i < count; ++i)
            if (o.byte_mask >> i % 16 & 1) destination[i] = bytes[i];
    }
}

void read_tile(const BulkOperation& o, const Run& run, char* staged) {
    for (uint32_t done = 0, together; done < run.bytes; done += together) {
        const char* from = tile_address(o, run.offset + done, run.bytes - done, &together);
        std::memcpy(staged + done, from, together);
    }
}

void write_tile(const BulkOperation& o, const Run& run, const char* staged) {
    for (uint32_t done = 0, together; done < run.bytes; done += together) {
        char* to = tile_address(o, run.offset + done, run.bytes - done, &together);
        put(o, to, staged + done, together);
    }
}

void fill_run(const BulkOperation& o, const Run& run, char* staged) {
    if (!o.fill) {
        std::memset(staged, 0, run.bytes);
        return;
    }
    for (uint32_t i = 0; i < run.bytes; ++i) staged[i] = o.fill[i % 16];
}

// To nearest, ties to even; infinities and NaN stay as they are.
void round_to_tf32(std::vector<char>& floats) {
    for (size_t at = 0; at < floats.size(); at += 4) {
        uint32_t bits;
        std::memcpy(&bits, &floats[at], 4);
        if ((bits & 0x7f800000) == 0x7f800000) continue;
        bits = (bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000;
        std::memcpy(&floats[at], &bits, 4);
    }
}

}  // namespace

// Reductions of several threads may be in flight to one place: they are atomic, so their destination gets no
// token.
void BulkOperation::announce() {
    if (!watched(*issuer)) return;
    const uint32_t run_space = ASYNC_PROXY | (run_is_global ? GLOBAL : SHARED);
    if (!to_tile) watch(*issuer, tile, tile_bytes, READ | SHARED | ASYNC_PROXY, site);
    if (to_tile && reduces) watch(*issuer, tile, tile_bytes, ATOMIC | STRONG | SHARED | ASYNC_PROXY, site);
    else tile_token = checker_async_issue(*issuer, tile, tile_bytes, to_tile, site);
    for (const Run& run : runs) {
        if (!run.other) continue;
        watch(*issuer, run.other, run.bytes,
              (to_tile   ? READ
               : reduces ? ATOMIC | STRONG
                         : WRITE) |
                  run_space,
              site);
        if (to_tile || !reduces)
            run_tokens.push_back(checker_async_issue(*issuer, run.other, run.bytes, !to_tile, site));
    }
}

void BulkOperation::land_tile_token() {
    if (watched(*issuer) && !(to_tile && reduces)) checker_async_land(*issuer, tile_token);
}

void BulkOperation::land_run_tokens() {
    if (watched(*issuer)) for (const uint32_t token : run_tokens) checker_async_land(*issuer, token);
}

void BulkOperation::drop_tokens() {
    if (!watched(*issuer)) return;
    checker_async_drop(*issuer, tile_token);
    for (const uint32_t token : run_tokens) checker_async_drop(*issuer, token);
}

void BulkOperation::read() {
    if (was_read) return;
    was_read = true;
    staged.resize(tile_bytes);
    size_t at = 0;
    for (const Run& run : runs) {
        if (!to_tile) read_tile(*this, run, &staged[at]);
        else if (run.other) std::memcpy(&staged[at], run.other, run.bytes);
        else fill_run(*this, run, &staged[at]);
        at += run.bytes;
    }
    if (rounds_to_tf32) round_to_tf32(staged);
    to_tile ? land_run_tokens() : land_tile_token();
}

void BulkOperation::write() {
    if (was_written) return;
    was_written = true;
    size_t at = 0;
    for (const Run& run : runs) {
        if (to_tile) write_tile(*this, run, &staged[at]);
        else if (run.other) put(*this, run.other, &staged[at], run.bytes);
        at += run.bytes;
    }
    to_tile ? land_tile_token() : land_run_tokens();
    if (barrier) barrier_complete(*issuer, barrier, tile_bytes, site);
}

void issue(BulkPointer operation) {
    Thread& t = *operation->issuer;
    operation->announce();
    if (lands_at_issue(t)) operation->land();
    if (!operation->barrier) {
        async_state(t).open.push_back(std::move(operation));
    } else if (!operation->was_read) {
        char* const barrier = operation->barrier;
        const uint32_t site = operation->site;
        defer({barrier, &t, site, 0, std::move(operation)});
    }
}

// ---- groups -----------------------------------------------------------------------------------------------

void bulk_commit(Thread& t) {
    AsyncState& state = async_state(t);
    state.bulk_groups.push_back(std::move(state.open));
    state.open.clear();
}

void bulk_wait(Thread& t, uint32_t groups_left, bool only_reads) {
    if (!t.async) return;
    std::deque<BulkGroup>& groups = t.async->bulk_groups;
    const size_t finished = groups.size() > groups_left ? groups.size() - groups_left : 0;
    for (size_t i = 0; i < finished; ++i)
        for (BulkPointer& operation : groups[i]) {
            operation->waited_for = true;
            operation->read();
            if (!only_reads) operation->write();
        }
    if (!only_reads) groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(finished));
}

// ---- the instructions -------------------------------------------------------------------------------------

namespace {

BulkPointer plain_copy(Thread& t, char* tile, char* other, uint32_t bytes, bool to_tile, uint32_t site) {
    auto operation = std::make_unique<BulkOperation>();
    operation->issuer = &t;
    operation->site = site;
    operation->to_tile = to_tile;
    operation->tile = tile;
    operation->tile_bytes = bytes;
    operation->runs = {{0, bytes, other}};
    return operation;
}

void check_bulk(Thread& t, const char* destination, const char* source, uint32_t bytes, uint32_t site) {
    require_aligned(t, destination, 16, "the destination of a bulk copy", site);
    require_aligned(t, source, 16, "the source of a bulk copy", site);
    if (bytes % 16 == 0) return;
    report(finding(t, "misaligned", site,
                   format("a bulk copy of %u bytes: the size must be a multiple of 16", bytes),
                   "Copy whole 16-byte units in bulk and the rest by ordinary loads and stores."));
    abandon(t, CUDA_MISALIGNED_ADDRESS);
}

bool in_shared(const Thread& t, const char* address) {
    const uint64_t windows = uint64_t(WINDOW) * launch_of(t).blocks_per_cluster;
    return static_cast<uint64_t>(address - t.shared) < windows;
}

}  // namespace

// The same place in the shared memory of another block of the cluster.
char* in_block(const Thread& t, char* shared_address, uint32_t rank) {
    const uint32_t place = static_cast<uint32_t>(shared_address - t.shared) % WINDOW;
    return t.shared + rank * WINDOW + place;
}

// Which blocks of the cluster a multicast goes to; without one, the block that the address names.
std::vector<uint32_t> receivers(Thread& t, const char* destination, uint32_t blocks, uint32_t site) {
    if (blocks == NO_MULTICAST) return {rank_of(static_cast<uint32_t>(destination - t.shared))};
    const uint32_t size = launch_of(t).blocks_per_cluster;
    if (blocks >> size)
        report(
            finding(t, "out_of_bounds", site,
                    format("the multicast mask 0x%x names blocks beyond the %u of the cluster", blocks, size),
                    "Set only the bits of blocks that the cluster has."));
    std::vector<uint32_t> ranks;
    for (uint32_t rank = 0; rank < size; ++rank)
        if (blocks >> rank & 1) ranks.push_back(rank);
    return ranks;
}

void watch_barrier(Thread& t, const char* barrier, uint32_t site) {
    require_aligned(t, barrier, 8, "an mbarrier", site);
    watch(t, barrier, 8, ATOMIC | STRONG | SHARED | UNORDERED, site);
}

void bulk_load(Thread& t, char* destination, const char* source, uint32_t bytes, char* barrier,
               uint32_t blocks, uint32_t site) {
    check_bulk(t, destination, source, bytes, site);
    for (const uint32_t rank : receivers(t, destination, blocks, site)) {
        BulkPointer operation =
            plain_copy(t, in_block(t, destination, rank), const_cast<char*>(source), bytes, true, site);
        operation->run_is_global = !in_shared(t, source);
        operation->barrier = blocks == NO_MULTICAST ? barrier : in_block(t, barrier, rank);
        watch_barrier(t, operation->barrier, site);
        issue(std::move(operation));
    }
}

void bulk_store(Thread& t, char* destination, const char* source, uint32_t bytes, uint32_t byte_mask,
                uint32_t site) {
    check_bulk(t, destination, source, bytes, site);
    BulkPointer operation = plain_copy(t, const_cast<char*>(source), destination, bytes, false, site);
    operation->byte_mask = byte_mask;
    issue(std::move(operation));
}

void bulk_reduce(Thread& t, char* destination, const char* source, uint32_t bytes, Reduce how,
                 Element element, uint32_t site) {
    check_bulk(t, destination, source, bytes, site);
    BulkPointer operation = plain_copy(t, const_cast<char*>(source), destination, bytes, false, site);
    operation->reduces = true;
    operation->operation = how;
    operation->element = element;
    issue(std::move(operation));
}

void bulk_reduce_shared(Thread& t, char* destination, const char* source, uint32_t bytes, char* barrier,
                        Reduce how, Element element, uint32_t site) {
    check_bulk(t, destination, source, bytes, site);
    watch_barrier(t, barrier, site);
    BulkPointer operation = plain_copy(t, destination, const_cast<char*>(source), bytes, true, site);
    operation->run_is_global = false;
    operation->reduces = true;
    operation->operation = how;
    operation->element = element;
    operation->barrier = barrier;
    issue(std::move(operation));
}

void bulk_prefetch(Thread& t, const char* source, uint32_t bytes, uint32_t site) {
    check_bulk(t, source, source, bytes, site);
}

// ---- st.async, red.async: the value travels with the instruction ------------------------------------------

namespace {

void send(Thread& t, char* destination, const void* value, uint32_t bytes, char* barrier,
          BulkPointer operation) {
    require_aligned(t, destination, bytes, "the destination of an asynchronous store", operation->site);
    watch_barrier(t, barrier, operation->site);
    operation->barrier = barrier;
    operation->announce();
    operation->was_read = true;
    operation->staged.assign(static_cast<const char*>(value), static_cast<const char*>(value) + bytes);
    if (lands_at_issue(t)) return operation->write();
    const uint32_t site = operation->site;
    defer({barrier, &t, site, 0, std::move(operation)});
}

}  // namespace

void store_async(Thread& t, char* destination, const void* value, uint32_t bytes, char* barrier,
                 uint32_t site) {
    send(t, destination, value, bytes, barrier, plain_copy(t, destination, nullptr, bytes, true, site));
}

void reduce_async(Thread& t, char* destination, const void* value, char* barrier, Reduce how, Element element,
                  uint32_t site) {
    BulkPointer operation = plain_copy(t, destination, nullptr, element_bytes(element), true, site);
    operation->reduces = true;
    operation->operation = how;
    operation->element = element;
    send(t, destination, value, element_bytes(element), barrier, std::move(operation));
}

void discard(Thread& t, char* address, uint32_t bytes, uint32_t site) {
    require_aligned(t, address, bytes, "the range of discard", site);
    watch(t, address, bytes, WRITE | GLOBAL, site);
    std::memset(address, 0xff, bytes);
}

// ---- mapa -------------------------------------------------------------------------------------------------

uint32_t map_to_rank(Thread& t, uint32_t shared_address, uint32_t rank, uint32_t site) {
    const uint32_t size = launch_of(t).blocks_per_cluster;
    if (rank >= size) {
        report(finding(t, "out_of_bounds", site, format("mapa names block %u of a cluster of %u", rank, size),
                       "The rank must be below cluster.num_blocks()."));
        rank %= size;
    }
    return shared_address % WINDOW + rank * WINDOW;
}

}  // namespace emu
