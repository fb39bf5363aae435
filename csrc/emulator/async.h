// Asynchronous copies (cp.async, cp.async.bulk, tensor maps), mbarriers and what else completes on them.
// Part of device.h.
//
// An asynchronous operation is issued now and lands later: at issue with the option cp_async=eager, or (lazy,
// the default) as late as the program allows, when something waits for it.  A correct program cannot tell the
// two apart.
//   cp.async                 lands when its group is waited for, or when an mbarrier that tracks it is polled
//   bulk copies to shared    land when the mbarrier they complete on is polled
//   bulk copies to global    are read at wait_group.read, written at wait_group or when the thread exits
// Implementation: async.cpp (cp.async, deferred operations), mbarrier.cpp, bulk.cpp, tensor_map.cpp.
#pragma once

namespace emu {

// ---- cp.async ---------------------------------------------------------------------------------------------

// `bytes` arrive at `destination`: the first `source_bytes` from `source`, zeros behind them.
void copy_async(Thread&, char* destination, const char* source, uint32_t bytes, uint32_t source_bytes,
                uint32_t site);
void copy_async_commit(Thread&);
void copy_async_wait(Thread&, uint32_t groups_left);    // that many of the youngest groups may stay in flight
void copy_async_wait_all(Thread&);
void copy_async_arrive(Thread&, char* barrier, bool counted, uint32_t site);    // counted: not .noinc

// ---- mbarrier ---------------------------------------------------------------------------------------------

enum Arrival : uint32_t { ARRIVE = 0, DROP = 1, NO_COMPLETE = 2, RELAXED = 4 };  // flags of mbarrier_arrive

void mbarrier_init(Thread&, char* barrier, uint32_t count, uint32_t site);
void mbarrier_invalidate(Thread&, char* barrier, uint32_t site);
// Both return the state before the arrival.
uint64_t mbarrier_arrive(Thread&, char* barrier, uint32_t count, uint32_t flags, uint32_t site);
uint64_t mbarrier_arrive_expect(Thread&, char* barrier, uint32_t bytes, uint32_t flags, uint32_t site);
void mbarrier_expect(Thread&, char* barrier, uint32_t bytes, uint32_t site);
void mbarrier_complete(Thread&, char* barrier, uint32_t bytes, uint32_t site);

enum class Poll : uint32_t { look, wait };  // test_wait only looks, try_wait lets others run first
bool mbarrier_wait(Thread&, Poll, char* barrier, uint64_t state, bool acquire, uint32_t site);
bool mbarrier_wait_parity(Thread&, Poll, char* barrier, uint32_t parity, bool acquire, uint32_t site);

// The word of an mbarrier, and the state that arrive returns:
//   bits 0-19 pending arrivals, 20-39 expected arrivals, 40-60 outstanding bytes (two's complement),
//   61 phase, 62-63 the mark 0b10.
// The mark tells an initialised barrier from fresh shared memory, which is all ones.
constexpr uint32_t MBARRIER_COUNT_LIMIT = (1u << 20) - 1;
inline uint32_t mbarrier_pending_count(uint64_t state) { return state & MBARRIER_COUNT_LIMIT; }

// ---- bulk copies ------------------------------------------------------------------------------------------

// Numbered as CUtensorMapDataType.
enum class Element : uint32_t { u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16 };

constexpr uint32_t NO_MULTICAST = 0;  // a multicast mask has a bit per block of the cluster

void bulk_load(Thread&, char* destination, const char* source, uint32_t bytes, char* barrier, uint32_t blocks,
               uint32_t site);
void bulk_store(Thread&, char* destination, const char* source, uint32_t bytes, uint32_t byte_mask,
                uint32_t site);
void bulk_reduce(Thread&, char* destination, const char* source, uint32_t bytes, Reduce, Element,
                 uint32_t site);
void bulk_reduce_shared(Thread&, char* destination, const char* source, uint32_t bytes, char* barrier, Reduce,
                        Element, uint32_t site);
void bulk_prefetch(Thread&, const char* source, uint32_t bytes, uint32_t site);
void bulk_commit(Thread&);
void bulk_wait(Thread&, uint32_t groups_left, bool only_reads);

// st.async and red.async: `bytes` at `value` go to another block's shared memory and are counted by its
// mbarrier.
void store_async(Thread&, char* destination, const void* value, uint32_t bytes, char* barrier, uint32_t site);
void reduce_async(Thread&, char* destination, const void* value, char* barrier, Reduce, Element,
                  uint32_t site);

// ---- tensor maps (tensor_map.cpp) -------------------------------------------------------------------------

struct Coordinates { int32_t at[5]; };    // innermost dimension first; unused ones are 0
enum class MapField : uint32_t {
    global_address, rank, box_dim, global_dim, global_stride, element_stride,
    elemtype, interleave_layout, swizzle_mode, swizzle_atomicity, fill_mode
};

void tensor_load(Thread&, char* destination, const char* map, uint32_t rank, Coordinates, char* barrier,
                 uint32_t blocks, uint32_t site);
void tensor_store(Thread&, const char* map, uint32_t rank, Coordinates, const char* source, uint32_t site);
void tensor_reduce(Thread&, const char* map, uint32_t rank, Coordinates, const char* source, Reduce,
                   uint32_t site);
void tensor_prefetch(Thread&, const char* map, uint32_t rank, uint32_t site);
void tensor_map_replace(Thread&, char* map, MapField, uint32_t ordinal, uint64_t value, uint32_t site);
void tensor_map_copy(Thread&, char* destination, const char* source, uint32_t site);    // .cp_fenceproxy

void discard(Thread&, char* address, uint32_t bytes, uint32_t site);    // what was there is lost

// ---- addresses in a cluster -------------------------------------------------------------------------------

uint32_t map_to_rank(Thread&, uint32_t shared_address, uint32_t rank, uint32_t site);    // mapa
inline uint32_t rank_of(uint32_t shared_address) { return shared_address / WINDOW; }      // getctarank

// ---- for the runtime --------------------------------------------------------------------------------------

void async_thread_begin(Thread&);
void async_thread_exit(Thread&);

}  // namespace emu
