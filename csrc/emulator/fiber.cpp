// The switch in assembler, and the pool of stacks.
//
// Measured: 7 to 14 ns per switch; ucontext's, which is a system call each, takes 300 ns and more.
#include "fiber.h"

#include <sys/mman.h>

#include <cstring>

#if defined(__x86_64__)

// Ends with `ret`: fibers mostly wait at the same place of the same function, so the processor's return
// predictor, fed by the calls of one fiber, is right about the returns of the next.  With an indirect jump
// instead a barrier took 45 ns, not 29.
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch

.globl emu_fiber_start
.hidden emu_fiber_start
.type emu_fiber_start,@function
emu_fiber_start:
    movq %r12, %rdi
    call *%rbx
    ud2
.size emu_fiber_start, .-emu_fiber_start
)");

#elif defined(__aarch64__)

asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,%function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    br x30
.size emu_switch, .-emu_switch

.globl emu_fiber_start
.hidden emu_fiber_start
.type emu_fiber_start,%function
emu_fiber_start:
    mov x0, x20
    blr x19
    brk #0
.size emu_fiber_start, .-emu_fiber_start
)");

#else
#error "the emulator's fiber switch is written for x86-64 and AArch64"
#endif

extern "C" void emu_fiber_start();

namespace emu {

namespace {

// Stacks that have a gap below them: more would reach Linux's limit of mappings per process (65530).
constexpr uint32_t GUARDED = 1u << 14;

constexpr size_t PAGE = 4096;

size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

}  // namespace

void* prepare_stack(char* top, FiberEntry entry, void* argument) {
    void** slot = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
    // As after a call: the stack is 16-byte aligned where emu_fiber_start begins.
    *--slot = nullptr;
    *--slot = nullptr;
    *--slot = reinterpret_cast<void*>(&emu_fiber_start);
    *--slot = nullptr;                                     // rbp: ends a debugger's backtrace
    *--slot = reinterpret_cast<void*>(entry);              // rbx
    *--slot = argument;                                    // r12
    for (int i = 0; i < 3; ++i) *--slot = nullptr;         // r13 r14 r15
#else
    slot -= 20;
    std::memset(slot, 0, 160);
    slot[0] = reinterpret_cast<void*>(entry);              // x19
    slot[1] = argument;                                    // x20
    slot[11] = reinterpret_cast<void*>(&emu_fiber_start);  // x30
#endif
    return slot;
}

StackPool::~StackPool() { release(); }

void StackPool::release() {
    for (char* chunk : chunks_) munmap(chunk, stride_ * CHUNK);
    chunks_.clear();
    free_.clear();
}

void StackPool::require(size_t bytes) {
    if (bytes <= bytes_) return;
    release();
    bytes_ = whole_pages(bytes);
    // An odd number of pages: at a power of two all stacks would compete for one set of the address
    // translation cache.
    stride_ = bytes_ + GAP + (bytes_ / PAGE % 2 == GAP / PAGE % 2 ? PAGE : 0);
}

bool StackPool::grow() {
    void* chunk = mmap(nullptr, stride_ * CHUNK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) return false;
    const uint32_t first = static_cast<uint32_t>(chunks_.size()) * CHUNK;
    chunks_.push_back(static_cast<char*>(chunk));
    for (uint32_t i = 0; i < CHUNK && first + i < GUARDED; ++i)
        mprotect(base(first + i), stride_ - bytes_, PROT_NONE);
    for (uint32_t i = CHUNK; i-- > 0;) free_.push_back(first + i);
    return true;
}

uint32_t StackPool::take() {
    if (free_.empty() && !grow()) return NONE;
    const uint32_t stack = free_.back();
    free_.pop_back();
    return stack;
}

void StackPool::reclaim_all() {
    free_.clear();
    for (uint32_t i = static_cast<uint32_t>(chunks_.size()) * CHUNK; i-- > 0;) free_.push_back(i);
}

char* StackPool::top(uint32_t stack) const {
    // Tops at equal addresses modulo 4096 would compete for the same few cache sets: twice as slow with 256
    // fibers.
    return base(stack) + stride_ - (stack % 16) * 192 - 64;
}

bool StackPool::in_gap(uint32_t stack, const void* address) const {
    const char* at = static_cast<const char*>(address);
    return stack != NONE && at >= base(stack) && at < base(stack) + stride_ - bytes_;
}

}  // namespace emu
