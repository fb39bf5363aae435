// A matrix in shared memory as a wgmma descriptor gives it, and what wgmma.cpp tells the checks in
// wgmma_rules.cpp.  Internal.
#pragma once
#include <cstdint>

#include "matrix.h"
#include "runtime.h"

namespace emu {

// Bits of a descriptor: 0-13 start, 16-29 leading offset, 32-45 stride offset (all in 16 bytes), 49-51 base
// offset, 62-63 swizzle.  A matrix is a number of lines (rows of A, columns of B) of 32 bytes along K, in
// chunks of 16 bytes.
struct SharedMatrix {
    uint32_t start, leading, stride;     // bytes
    uint32_t span;  // 16-byte chunks that lie together: 1 without swizzle, or 2, 4, 8 (32, 64, 128 bytes)
    bool transposed;                     // a chunk holds 8 lines of one k instead of one line's 8 or 16 k
    uint32_t base_offset;

    SharedMatrix(uint64_t descriptor, bool transposed);
    // K-major: chunk `along` (0 or 1) of a line.  Transposed: k = `along`, 8 lines from `line` on.  An
    // address in the window.
    uint32_t chunk(uint32_t line, uint32_t along) const;
};

// visit(address of 16 bytes in the window, first line, chunk within the line or k)
template <class Visit> void each_chunk(const SharedMatrix& m, uint32_t lines, Visit visit) {
    const uint32_t step = m.transposed ? 8 : 1, count = m.transposed ? 16 : 2;
    for (uint32_t line = 0; line < lines; line += step)
        for (uint32_t i = 0; i < count; ++i) visit(m.chunk(line, i), line, i);
}

// Each thread before it joins the others, and the last of them for all: what is checked (wgmma_rules.cpp).
void wgmma_begin(Thread&, const Wgmma&, uint32_t site);
void wgmma_issued(Thread* const* threads, void* const* arguments, uint32_t site);

}  // namespace emu
