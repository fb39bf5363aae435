// What decides a kernel's speed, counted: memory requests, bank conflicts, bytes, instructions.  Per kernel
// and source line.
//
// A request is one execution of a memory instruction by a warp.  Lanes run one after the other, so each logs
// its accesses, and where they meet again the n-th access of every lane at a site becomes one request
// (requests.cpp):
//   global   sectors: 32-byte pieces touched; ideal: what its distinct bytes would fill
//   shared   wavefronts: per phase of 32 lanes (16 for 8-byte, 8 for 16-byte accesses and matrix rows) the
//            most distinct words in one
//            of the 32 banks; ideal: the phases.  Lanes that read the same word share it
// Instructions and operations are counted by thread (basic-block counters), collectives by warp, barriers by
// block.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "device.h"

namespace emu {

struct BlockWatch;

struct LoggedAccess {
    uintptr_t address;    // shared: offset from the cluster's windows
    uint32_t bytes;
    uint32_t site;    // MEETING: not an access, the lanes met here
    uint32_t what;    // as in access(), plus SHARED where it is shared memory
    static constexpr uint32_t MEETING = 0xffffffffu;
};
using AccessLog = std::vector<LoggedAccess>;

// One execution by a warp; also for standing alone in tests.
struct Request {
    uint32_t site, what;
    uint32_t lanes;    // that took part
    uintptr_t address[WARP];
    uint32_t bytes[WARP];    // per lane
};

struct Sector {
    uint64_t number;
    uint32_t bytes;
};                                                                // 32 bytes of memory, and which of them
void sectors_of(const Request&, std::vector<Sector>& sectors);    // distinct, ascending
uint32_t wavefronts_of(const Request&, uint32_t* ideal);

// Calls use(request) for each; the logs are empty afterwards.  `logs`: the warp's lanes.
using UseRequest = void (*)(const Request&, void* context);
void group_requests(AccessLog* const* logs, uint32_t lanes, UseRequest use, void* context);

void count_access(Thread&, uintptr_t address, uint32_t bytes, uint32_t what, uint32_t site);
void count_warp_met(Warp&, uint32_t lanes);    // a collective of all live lanes
void count_barrier(BlockWatch&);               // a barrier opened
void count_block_met(BlockWatch&);             // all threads of the block met, or have ended

void counters_launch_begin(const Launch&);
void counters_launch_end(const Launch&, const std::vector<uint64_t>& executions);

const char* instruction_class(const char* opcode);    // "integer", "load.shared", "tensor", ...

std::string counters_json();    // see api.h
void clear_counters();

}    // namespace emu
