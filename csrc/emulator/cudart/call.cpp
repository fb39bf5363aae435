// call.h: the state behind it, and the calls that read and clear errors.
#include "call.h"

#include "../reports.h"

namespace emu::cudart {
namespace {

thread_local const char* current_call = "";
thread_local int callbacks = 0;
thread_local int per_thread_calls = 0;
thread_local cudaError_t last = cudaSuccess;
cudaError_t device = cudaSuccess;            // guarded by the lock

}  // namespace

std::recursive_mutex& runtime_lock() {
    static auto* lock = new std::recursive_mutex;     // never destroyed: programs free memory while they end
    return *lock;
}

CallScope::CallScope(const char* name) : guard_(runtime_lock()), outer_(current_call) { current_call = name; }
CallScope::~CallScope() {
    current_call = outer_;
    if (!*outer_) keep_findings();
}
const char* CallScope::current() { return current_call; }

CallbackScope::CallbackScope() { ++callbacks; }
CallbackScope::~CallbackScope() { --callbacks; }
bool CallbackScope::active() { return callbacks != 0; }

PerThreadScope::PerThreadScope() { ++per_thread_calls; }
PerThreadScope::~PerThreadScope() { --per_thread_calls; }
bool PerThreadScope::active() { return per_thread_calls != 0; }

cudaError_t remember(cudaError_t code) {
    if (code != cudaSuccess && code != cudaErrorNotReady) last = code;
    return code;
}

cudaError_t last_error() { return device != cudaSuccess ? device : last; }
void forget_last_error() { last = cudaSuccess; }

bool is_sticky(cudaError_t code) {
    switch (code) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction: case cudaErrorMisalignedAddress: case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc: case cudaErrorLaunchFailure:
            return true;
        default:
            return false;
    }
}

cudaError_t device_error() { return device; }
void set_device_error(cudaError_t code) { device = code; }

void report_call(const char* kind, std::string message, std::string fix) {
    Report finding;
    finding.kind = kind;
    finding.message = *current_call ? std::string(current_call) + ": " + message : std::move(message);
    finding.fix = std::move(fix);
    finding.in_kernel = false;
    report(std::move(finding));
}

cudaError_t reject(cudaError_t code, const char* kind, std::string message, std::string fix) {
    report_call(kind, std::move(message), std::move(fix));
    return code;
}

cudaError_t unsupported(const char* what) {
    return reject(cudaErrorNotSupported, "unsupported", std::string(what) + " is not emulated",
                  "Leave this path out when running under the emulator, or run it on a GPU.");
}

int not_emulated(const char* function) {
    CallScope scope(function);
    return remember(unsupported("this function"));
}

}  // namespace emu::cudart

using namespace emu::cudart;

extern "C" cudaError_t CUDARTAPI cudaGetLastError() {
    CallScope scope("cudaGetLastError");
    cudaError_t code = last_error();
    forget_last_error();
    return code;
}

extern "C" cudaError_t CUDARTAPI cudaPeekAtLastError() {
    CallScope scope("cudaPeekAtLastError");
    return last_error();
}
