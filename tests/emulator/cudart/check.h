// What the programs of this folder share: a line "name: ok" per check, and the emulator's findings.
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>

static int failures = 0;

#define CHECK(name, condition) check(name, condition, __LINE__)
#define CODE(name, expected, call) check_code(name, expected, call, __LINE__)

inline void check(const char* name, bool ok, int line) {
    if (ok) std::printf("%s: ok\n", name);
    else std::printf("%s: FAILED in line %d\n", name, line);
    failures += !ok;
}

inline void check_code(const char* name, cudaError_t expected, cudaError_t got, int line) {
    if (got != expected) std::printf("%s: expected %s\n", name, cudaGetErrorName(expected));
    if (got != expected) std::printf("%s: got %s\n", name, cudaGetErrorName(got));
    check(name, got == expected, line);
}

// The emulator's own interface, absent on a GPU.
template <class F> F emulator(const char* name) { return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name)); }
inline std::string reports() { return emulator<const char* (*)()>("emu_reports")(); }
inline void clear_reports() { emulator<void (*)()>("emu_clear")(); }
inline void configure(const char* options) { emulator<int (*)(const char*)>("emu_configure")(options); }

// The one finding since the last call: its kind, and a part of its message.  "" as the kind: nothing was
// found.
inline void check_report(const char* name, const char* kind, const char* part, int line) {
    std::string found = reports();
    bool ok = *kind ? found.find("\"kind\": \"" + std::string(kind) + "\"") != std::string::npos &&
                          found.find(part) != std::string::npos
                    : found.find("\"kind\"") == std::string::npos;
    if (!ok) std::printf("%s: reports are %s\n", name, found.c_str());
    check(name, ok, line);
    clear_reports();
}
#define REPORT(name, kind, part) check_report(name, kind, part, __LINE__)
