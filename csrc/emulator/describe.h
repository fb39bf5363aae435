// Addresses and kernels in the words of their source.  Internal.
#pragma once
#include <string>

#include "memory.h"
#include "reports.h"

namespace emu {

struct Wanted {    // what an instruction asked for
    uint32_t bytes, what, site;
};

const char* verb(uint32_t what);               // "read", "write", "atomic"
std::string signature(const char* mangled);    // "scan<128>(int*, int)"
std::string last_name(const char* mangled);    // of a variable: "tile"
std::string dim_text(const Dim&);              // "(5,0,0)"
Dim thread_index(const Launch&, uint32_t linear);
Dim block_index(const Launch&, uint64_t linear);

// "tile[12] (byte 48 of 4096, shared)": the element as seen by an access of `width` bytes; 0: bytes only.
std::string describe_place(const Launch&, const Block*, const void* address, uint32_t width);
std::string describe_shared_overrun(const Launch&, const Block&, uintptr_t address, const Wanted&);
std::string describe_global_overrun(const Launch&, const Block&, uintptr_t address, const Wanted&,
                                    const Allocation* near, bool freed);

}    // namespace emu
