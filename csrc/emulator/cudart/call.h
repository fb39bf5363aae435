// What every entry point of the stand-in runtime has in common: one lock around all of them, the last error
// of each host thread, and the error that a faulting kernel leaves behind for good.
//
//   extern "C" cudaError_t cudaFree(void* p) {
//       return call("cudaFree", [&] { return free_device(p); });
//   }
#pragma once
#include <cuda_runtime_api.h>

#include <mutex>
#include <new>
#include <string>

namespace emu::cudart {

// Recursive: a stream callback may call back into the runtime.
std::recursive_mutex& runtime_lock();

class CallScope {                            // one API call of this host thread
public:
    explicit CallScope(const char* name);
    ~CallScope();
    CallScope(const CallScope&) = delete;
    CallScope& operator=(const CallScope&) = delete;
    static const char* current();            // name of the innermost call, for reports; "" outside of all

private:
    std::lock_guard<std::recursive_mutex> guard_;
    const char* outer_;
};

// As a call ends: new findings go to the report's file, for a program that will be killed (exit.cpp).
void keep_findings();

class CallbackScope {     // while a host function runs in a stream: it may not use the runtime
public:
    CallbackScope();
    ~CallbackScope();
    static bool active();
};

class PerThreadScope {                       // calls of programs built with --default-stream per-thread
public:
    PerThreadScope();
    ~PerThreadScope();
    static bool active();
};

cudaError_t remember(cudaError_t);     // as the host thread's last error, unless it is success; returns it
cudaError_t last_error();
void forget_last_error();

// After a fault in a kernel the device is lost: every call fails with the same code until cudaDeviceReset().
bool is_sticky(cudaError_t);
cudaError_t device_error();                  // cudaSuccess while the device works
void set_device_error(cudaError_t);

// A finding in a host call; the message is prefixed with the call's name.
void report_call(const char* kind, std::string message, std::string fix);
cudaError_t reject(cudaError_t, const char* kind, std::string message,
                   std::string fix);     // report_call, returns the code
cudaError_t unsupported(const char* what);   // reports that `what` is not emulated: cudaErrorNotSupported
int not_emulated(const char* function);      // the same for a whole entry point (stubs.cpp)

// For calls that must work on a lost device, too: errors, properties, destruction.
template <class Body> cudaError_t call_always(const char* name, Body&& body) {
    CallScope scope(name);
    try {
        return remember(body());
    } catch (const std::bad_alloc&) {
        return remember(cudaErrorMemoryAllocation);
    }
}

template <class Body> cudaError_t call(const char* name, Body&& body) {
    return call_always(name, [&]() -> cudaError_t {
        if (CallbackScope::active())
            return reject(cudaErrorNotPermitted, "invalid_call",
                          "called from a host function that runs in a stream",
                          "Host functions may not call the runtime; signal the host thread instead.");
        if (cudaError_t lost = device_error()) return lost;
        return body();
    });
}

template <class T> cudaError_t give(T* to, T value) {        // an answer through a pointer
    if (!to) return cudaErrorInvalidValue;
    *to = value;
    return cudaSuccess;
}

}  // namespace emu::cudart
