// What a stream or a graph executes: one object per operation.  An operation is checked when it is submitted,
// and run at once, at the next synchronisation (Options::defer), or with its graph.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "registration.h"

namespace emu::cudart {

struct Range {                               // memory that an operation touches
    const char* begin;
    size_t bytes;
    bool written;
    bool exact;     // false: an allocation the kernel was given; how much it touches is unknown
};

struct Work {
    uint64_t sequence = 0;                   // order of submission over all streams

    virtual ~Work() = default;
    virtual cudaError_t run() = 0;
    virtual std::unique_ptr<Work> copy() const = 0;
    virtual cudaGraphNodeType type() const = 0;
    virtual std::string describe() const = 0;
    virtual std::vector<Range> ranges() const { return {}; }
    virtual void keep() {}     // what the caller lent (arguments) is copied: the operation outlives the call
    virtual void stage() {}     // before it waits in a stream: pageable host memory is read now, as on a GPU
};

template <class Self> struct WorkOf : Work {
    std::unique_ptr<Work> copy() const override {
        return std::make_unique<Self>(static_cast<const Self&>(*this));
    }
};

// ---- kernels ----------------------------------------------------------------------------------------------

struct KernelWork : WorkOf<KernelWork> {
    Kernel* kernel = nullptr;
    dim3 grid{0, 0, 0}, block{0, 0, 0}, cluster{0, 0, 0};     // cluster 0: none given
    uint32_t shared = 0;                     // dynamic, bytes
    bool cooperative = false;
    int priority = 0;
    void** arguments = nullptr;              // one pointer per parameter: the caller's, or own_pointers

    KernelWork() = default;
    KernelWork(const KernelWork&);
    KernelWork& operator=(const KernelWork&) = delete;
    cudaError_t check();                     // the limits of the device; what a launch returns at once
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeKernel; }
    std::string describe() const override;
    std::vector<Range> ranges() const override;
    void keep() override;

private:
    std::vector<char> own_bytes_;
    std::vector<void*> own_pointers_;
    LaunchRequest request() const;
    void point();
};

// ---- copies and fills -------------------------------------------------------------------------------------

struct CopyWork : WorkOf<CopyWork> {         // depth slices of height rows of width bytes
    char* destination = nullptr;
    const char* source = nullptr;
    size_t destination_pitch = 0, source_pitch = 0;            // bytes from row to row
    size_t destination_slice = 0, source_slice = 0;            // bytes from slice to slice
    size_t width = 0, height = 1, depth = 1;
    cudaMemcpyKind kind = cudaMemcpyDefault;

    cudaError_t check();                     // sides and ranges; settles the direction of cudaMemcpyDefault
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeMemcpy; }
    std::string describe() const override;
    std::vector<Range> ranges() const override;
    void stage() override;
    bool empty() const { return !width || !height || !depth; }
    size_t bytes() const { return width * height * depth; }

private:
    std::shared_ptr<std::vector<char>> staged_;      // of pageable memory, read at submission
    uint64_t source_sum_ = 0;     // of pinned memory at submission: it must not change until the copy ran
    bool watch_source_ = false;
    uint64_t checksum() const;
    void transfer() const;
    void count() const;
};

CopyWork linear_copy(void* destination, const void* source, size_t bytes, cudaMemcpyKind);
CopyWork pitched_copy(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                      size_t width, size_t height, cudaMemcpyKind);
cudaError_t volume_copy(const cudaMemcpy3DParms&, CopyWork*);      // refuses arrays

struct FillWork : WorkOf<FillWork> {
    char* destination = nullptr;
    size_t pitch = 0, slice = 0, width = 0, height = 1, depth = 1;     // width in bytes
    uint32_t value = 0, element = 1;         // element: 1, 2 or 4 bytes

    cudaError_t check();
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeMemset; }
    std::string describe() const override;
    std::vector<Range> ranges() const override;
    bool empty() const { return !width || !height || !depth; }
};

// ---- the rest ---------------------------------------------------------------------------------------------

struct HostWork : WorkOf<HostWork> {
    cudaHostFn_t function = nullptr;
    void* data = nullptr;
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeHost; }
    std::string describe() const override { return "a host function"; }
};

struct CallbackWork : WorkOf<CallbackWork> {         // cudaStreamAddCallback
    cudaStreamCallback_t function = nullptr;
    cudaStream_t stream = nullptr;
    void* data = nullptr;
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeHost; }
    std::string describe() const override { return "a stream callback"; }
};

struct EmptyWork : WorkOf<EmptyWork> {
    cudaError_t run() override { return cudaSuccess; }
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeEmpty; }
    std::string describe() const override { return "an empty node"; }
};

struct FreeWork : WorkOf<FreeWork> {         // cudaFreeAsync
    void* pointer = nullptr;
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeMemFree; }
    std::string describe() const override { return "cudaFreeAsync"; }
};

// ---- memory, as host calls see it (host_memory.cpp) -------------------------------------------------------

// Is [p, p + bytes) memory the device can use?  Otherwise reports, and returns the error.  verb: "reads",
// "writes", ...
cudaError_t check_device_range(const void* p, size_t bytes, const char* verb);
// The host's side of a copy: pageable memory is not known, pinned and managed memory is checked.
cudaError_t check_host_range(const void* p, size_t bytes, const char* verb);
bool is_device_accessible(const void* p);    // device, managed, pinned or a variable
bool is_device_only(const void* p);
std::string describe_memory(const void* p);  // "byte 16 of the 256 bytes of cudaMalloc 3"

}  // namespace emu::cudart
