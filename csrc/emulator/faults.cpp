// Faults of the host processor inside a kernel (SIGSEGV, SIGBUS, SIGFPE, SIGILL) become reports.
//
// The handlers are installed only while a launch runs.  A handler does next to nothing: it notes what
// happened and lets the thread continue in land(), on a stack of its own (the fiber's may be what
// overflowed), outside of signal context, where a report can be made and the block abandoned like after any
// other error.  Faults elsewhere go to the handlers that were there before.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstring>
#include <mutex>

#include "memory.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t FAULT_STACK = 256 << 10;
constexpr size_t SIGNAL_STACK = 64 << 10;
constexpr uintptr_t NULL_RANGE = 1 << 16;            // an address below: a null pointer and an index

std::mutex installing;
uint32_t installed;                                  // guards in existence, on all OS threads
struct sigaction previous[NSIG];
thread_local Execution* running;                     // whose fibers run on this OS thread

// ---- after the fault, out of signal context ---------------------------------------------------------------

std::string signal_text(int signal) {
    switch (signal) {
        case SIGFPE: return "an arithmetic exception of the host processor";
        case SIGILL: return "an illegal instruction of the host processor";
        default: return "an access to memory that is not accessible";
    }
}

std::string place_text(const Fiber& f, const void* address) {
    if (reinterpret_cast<uintptr_t>(address) < NULL_RANGE) {
        return format("a null pointer (address 0x%zx)", reinterpret_cast<size_t>(address));
    }
    const std::string known = describe_address(*f.launch, f.block, address);
    if (known.empty() || known.rfind("address ", 0) == 0) return format("address %p", address);
    return format("%s (address %p)", known.c_str(), address);
}

const char* advice(const Fiber& f) {
    return f.launch->check
               ? "see the reports before this one; guard the index, or check what the host passes"
               : "run in check mode, which names the line; then guard the index, "
                 "or check what the host passes";
}

int report_fault(const Execution& e) {
    const Fiber& f = *e.current;
    const Fault& fault = e.fault;
    if (fault.known_address && e.stacks.in_gap(f.stack, fault.address)) {
        report(finding(
            f, "stack_overflow", Report::NO_SITE,
            format(
                "the thread's stack of %zu bytes is used up (local arrays, deep calls or endless recursion)",
                e.stacks.bytes()),
            "end the recursion, make local arrays smaller, or give more with option stack=BYTES"));
        return CUDA_ILLEGAL_ADDRESS;
    }
    if (fault.known_address && (fault.signal == SIGSEGV || fault.signal == SIGBUS)) {
        report(finding(f, "out_of_bounds", Report::NO_SITE,
                       signal_text(fault.signal) + ": " + place_text(f, fault.address), advice(f)));
        return CUDA_ILLEGAL_ADDRESS;
    }
    report(finding(f, "fault", Report::NO_SITE, signal_text(fault.signal), advice(f)));
    return fault.signal == SIGSEGV ? CUDA_ILLEGAL_ADDRESS : CUDA_LAUNCH_FAILURE;
}

extern "C" void emu_land_after_fault() {
    Execution& e = *running;
    const int error = report_fault(e);
    abandon(*e.current, error);
}

// ---- in the handler ---------------------------------------------------------------------------------------

void continue_at_landing(ucontext_t* context, char* stack_top) {
#if defined(__x86_64__)
    context->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(stack_top - 8);       // as after a call
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&emu_land_after_fault);
#else
    context->uc_mcontext.sp = reinterpret_cast<uintptr_t>(stack_top);
    context->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&emu_land_after_fault);
#endif
}

void pass_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& before = previous[signal];
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
    sigaction(signal, &before, nullptr);    // the instruction faults again, as if nobody had been here
}

void handle(int signal, siginfo_t* info, void* context) {
    Execution* const e = running;
    const bool sent_by_program = info->si_code <= 0;
    if (!e || !e->current || sent_by_program) return pass_on(signal, info, context);
    // A general protection fault (an address that cannot exist) comes with code SI_KERNEL and no address.
    e->fault = Fault{signal, info->si_addr, info->si_code != SI_KERNEL};
    continue_at_landing(static_cast<ucontext_t*>(context), e->fault_stack + FAULT_STACK);
}

// ---- installing -------------------------------------------------------------------------------------------

char* reserve(size_t bytes) {
    void* place =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return place == MAP_FAILED ? nullptr : static_cast<char*>(place);
}

// The handler cannot run on a fiber's stack.  An OS thread that has an alternate stack keeps it.
void give_signal_stack() {
    thread_local bool given = false;
    if (given) return;
    given = true;
    stack_t present{};
    sigaltstack(nullptr, &present);
    if (!(present.ss_flags & SS_DISABLE)) return;
    stack_t wanted{};
    wanted.ss_sp = reserve(SIGNAL_STACK);
    wanted.ss_size = SIGNAL_STACK;
    if (wanted.ss_sp) sigaltstack(&wanted, nullptr);
}

void install() {
    struct sigaction ours{};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    for (int signal : SIGNALS) sigaction(signal, &ours, &previous[signal]);
}

void restore() {
    for (int signal : SIGNALS) sigaction(signal, &previous[signal], nullptr);
}

}  // namespace

FaultGuard::FaultGuard(Execution& e) : outer_(running) {
    if (!e.fault_stack) e.fault_stack = reserve(FAULT_STACK);
    give_signal_stack();
    running = &e;
    const std::lock_guard<std::mutex> lock(installing);
    if (installed++ == 0) install();
}

FaultGuard::~FaultGuard() {
    running = outer_;
    const std::lock_guard<std::mutex> lock(installing);
    if (--installed == 0) restore();
}

Execution::~Execution() {
    if (fault_stack) munmap(fault_stack, FAULT_STACK);
    if (windows) munmap(windows, windows_bytes);
}

}  // namespace emu
