// What nvcc's host code registers before main(): fat binaries, their kernels and variables.  Nothing is
// translated until a kernel or variable of a fat binary is first used.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "../runtime.h"

namespace emu::cudart {

struct FatBinary {
    const char* image = nullptr;             // header, then entries; lies in the program
    size_t bytes = 0;
    bool relocatable = false;                // nvcc -rdc=true
    bool tried = false;                      // translation, successfully or not
    cudaError_t error = cudaSuccess;
    const LoadedModule* module = nullptr;
};

struct Kernel {                              // also what a cudaKernel_t and a cudaFunction_t point to
    FatBinary* binary;
    const void* host;                        // the host stub, by which programs name it
    std::string name;                        // mangled
    const KernelDescriptor* descriptor = nullptr;
    // cudaFuncSetAttribute; -1: not set
    int dynamic_shared = -1;
    int carveout = -1;
    bool non_portable_cluster = false;
    int cluster[3] = {0, 0, 0};
    int cluster_policy = 0;
};

struct Symbol {
    FatBinary* binary;
    std::string name;
    size_t bytes;
    void** managed = nullptr;                // the program's pointer to a __managed__ variable
    char* address = nullptr;
};

// By host stub, or by a cudaKernel_t.  cudaErrorInvalidDeviceFunction for anything else; translates the
// kernel's fat binary.
cudaError_t find_kernel(const void* function, Kernel** kernel);
cudaError_t find_symbol(const void* host_variable, Symbol** symbol);

}  // namespace emu::cudart
