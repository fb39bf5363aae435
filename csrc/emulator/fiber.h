// Fibers: a switch of stacks in a dozen instructions (x86-64, AArch64), and the pool that the stacks come
// from.
//
// A fiber is nothing but a saved stack pointer; what runs on it is the scheduler's business.  A fiber never
// leaves the OS thread it started on, so thread_local values that a compiler keeps in registers across a
// switch stay right.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

// Saves the callee-saved registers on the present stack, stores its pointer to *from, and continues on `to`.
// The floating-point control word is not part of a fiber's state: kernels run with the default one
// (launch.cpp).
extern "C" void emu_switch(void** from, void* to);

using FiberEntry = void (*)(void* argument);         // must not return

// Lays down on an empty stack what emu_switch expects to find, so that switching to it calls entry(argument).
void* prepare_stack(char* top, FiberEntry entry, void* argument);

// Stacks of one size.  Memory is reserved, not committed: a stack costs the pages that were touched.  Each
// has an inaccessible gap below it, wide enough that a large frame cannot step over it.
class StackPool {
public:
    static constexpr size_t GAP = 64 << 10;
    static constexpr uint32_t NONE = 0xffffffffu;

    ~StackPool();
    void require(size_t bytes);          // usable bytes per stack from now on; all stacks must be free
    uint32_t take();                     // number of a free stack; NONE when the system has no more memory
    void give_back(uint32_t stack) { free_.push_back(stack); }
    void reclaim_all();                  // after an abandoned block: nothing runs on any of them
    char* top(uint32_t stack) const;     // 64-byte aligned, shifted per stack
    bool in_gap(uint32_t stack, const void* address) const;
    size_t bytes() const { return bytes_; }

private:
    bool grow();
    void release();
    char* base(uint32_t stack) const { return chunks_[stack / CHUNK] + (stack % CHUNK) * stride_; }

    static constexpr uint32_t CHUNK = 64;
    size_t bytes_ = 0, stride_ = 0;
    std::vector<char*> chunks_;
    std::vector<uint32_t> free_;
};

}  // namespace emu
