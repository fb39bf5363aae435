// Allocation, copies, fills and questions about memory, without a kernel.
#include "check.h"

#include <cstdint>
#include <vector>

namespace {

constexpr cudaMemcpyKind H2D = cudaMemcpyHostToDevice, D2H = cudaMemcpyDeviceToHost,
                         D2D = cudaMemcpyDeviceToDevice;

void allocation() {
    void *p = nullptr, *q = nullptr, *none = &p;
    CODE("malloc", cudaSuccess, cudaMalloc(&p, 1000));
    CODE("malloc again", cudaSuccess, cudaMalloc(&q, 4));
    CHECK("aligned to 256",
          reinterpret_cast<uintptr_t>(p) % 256 == 0 && reinterpret_cast<uintptr_t>(q) % 256 == 0);
    CODE("malloc of nothing", cudaSuccess, cudaMalloc(&none, 0));
    CHECK("nothing is null", none == nullptr);
    CODE("malloc to null", cudaErrorInvalidValue, cudaMalloc(nullptr, 4));
    CODE("too much", cudaErrorMemoryAllocation, cudaMalloc(&none, size_t{1} << 50));
    CODE("last error", cudaErrorMemoryAllocation, cudaPeekAtLastError());
    CODE("last error is taken", cudaErrorMemoryAllocation, cudaGetLastError());
    CODE("no error any more", cudaSuccess, cudaGetLastError());
    std::vector<unsigned char> bytes(1000);
    CODE("read back", cudaSuccess, cudaMemcpy(bytes.data(), p, 1000, D2H));
    CHECK("fresh memory is 0xFF", bytes == std::vector<unsigned char>(1000, 0xff));
    clear_reports();
    CODE("free", cudaSuccess, cudaFree(p));
    CODE("free null", cudaSuccess, cudaFree(nullptr));
    CODE("free twice", cudaErrorInvalidValue, cudaFree(p));
    REPORT("free twice is named", "use_after_free", "cudaMalloc 1 is freed a second time");
    CODE("free the middle", cudaErrorInvalidValue, cudaFree(static_cast<char*>(q) + 1));
    REPORT("free the middle is named", "invalid_call", "byte 1 of the 4 bytes of cudaMalloc 2");
    CODE("free host memory", cudaErrorInvalidValue, cudaFree(bytes.data()));
    CODE("copy from freed", cudaErrorInvalidValue, cudaMemcpy(bytes.data(), p, 4, D2H));
    clear_reports();
    CODE("free host function on device memory", cudaErrorInvalidValue, cudaFreeHost(q));
    REPORT("wrong function", "invalid_call", "with the wrong function");
    CODE("free the other", cudaSuccess, cudaFree(q));
}

void large() {
    char *p = nullptr, last = 0;
    const size_t bytes = size_t{1} << 30;
    CODE("1 GiB", cudaSuccess, cudaMalloc(reinterpret_cast<void**>(&p), bytes));
    CODE("its last byte", cudaSuccess, cudaMemcpy(&last, p + bytes - 1, 1, D2H));
    CHECK("is filled", last == static_cast<char>(0xff));
    CODE("write there", cudaSuccess, cudaMemset(p + bytes - 1, 7, 1));
    CODE("read there", cudaSuccess, cudaMemcpy(&last, p + bytes - 1, 1, D2H));
    CHECK("was written", last == 7);
    size_t left = 0, all = 0;
    CODE("mem info", cudaSuccess, cudaMemGetInfo(&left, &all));
    CHECK("is in use", all - left >= bytes);
    CODE("free 1 GiB", cudaSuccess, cudaFree(p));
    cudaMemGetInfo(&left, &all);
    CHECK("is free again", left == all);
}

void many() {
    bool ok = true;
    for (int i = 0; i < 20000 && ok; ++i) {          // more than the quarantine holds
        void* p = nullptr;
        ok = cudaMalloc(&p, 16 + i % 5000) == cudaSuccess && cudaMemset(p, i, 16) == cudaSuccess &&
             cudaFree(p) == cudaSuccess;
    }
    CHECK("20000 allocations", ok);
    std::vector<void*> kept(3000);
    for (void*& p : kept) ok = ok && cudaMalloc(&p, 1) == cudaSuccess;
    for (void* p : kept) ok = ok && cudaFree(p) == cudaSuccess;
    CHECK("3000 at once", ok);
}

void ranges() {
    int host[4] = {1, 2, 3, 4}, back[4] = {};
    int *a = nullptr, *b = nullptr;
    cudaMalloc(reinterpret_cast<void**>(&a), 16);
    cudaMalloc(reinterpret_cast<void**>(&b), 16);
    clear_reports();
    CODE("in", cudaSuccess, cudaMemcpy(a, host, 16, H2D));
    CODE("across", cudaSuccess, cudaMemcpy(b, a, 16, D2D));
    CODE("out, direction found", cudaSuccess, cudaMemcpy(back, b, 16, cudaMemcpyDefault));
    CHECK("bytes arrived", !std::memcmp(host, back, 16));
    CODE("host to host", cudaSuccess, cudaMemcpy(back, host, 16, cudaMemcpyHostToHost));
    CODE("nothing to copy", cudaSuccess, cudaMemcpy(nullptr, nullptr, 0, H2D));
    REPORT("correct copies are silent", "", "");
    CODE("too long", cudaErrorInvalidValue, cudaMemcpy(a, host, 20, H2D));
    REPORT("too long is named", "out_of_bounds", "writes 20 bytes from byte 0 of the 16 bytes of cudaMalloc");
    CODE("past the end", cudaErrorInvalidValue, cudaMemcpy(back, a + 4, 4, D2H));
    REPORT("past the end is named", "out_of_bounds", "reads 4 bytes from byte 16 of the 16 bytes");
    CODE("swapped kind", cudaErrorInvalidValue, cudaMemcpy(a, host, 16, D2H));
    REPORT("swapped kind is named", "host_pointer", "cudaMemcpy: writes byte 0 of the 16 bytes");
    CODE("device as host", cudaErrorInvalidValue, cudaMemcpy(a, b, 16, H2D));
    REPORT("device as host is named", "host_pointer", "as host memory");
    CODE("null", cudaErrorInvalidValue, cudaMemcpy(a, nullptr, 16, H2D));
    CODE("no kind", cudaErrorInvalidMemcpyDirection, cudaMemcpy(a, host, 16, static_cast<cudaMemcpyKind>(9)));
    CODE("memset too long", cudaErrorInvalidValue, cudaMemset(a, 0, 17));
    CODE("memset of host memory", cudaErrorInvalidValue, cudaMemset(host, 0, 16));
    CODE("memset", cudaSuccess, cudaMemset(a, 0x11, 8));
    cudaMemcpy(back, a, 16, D2H);
    CHECK("half was set", back[0] == 0x11111111 && back[1] == 0x11111111 && back[2] == 3);
    cudaFree(a);
    cudaFree(b);
}

void pitched() {
    char host[3 * 5], back[3 * 5] = {};
    for (int i = 0; i < 15; ++i) host[i] = static_cast<char>(i);
    void* p = nullptr;
    size_t pitch = 0;
    CODE("malloc pitch", cudaSuccess, cudaMallocPitch(&p, &pitch, 5, 3));
    CHECK("pitch", pitch >= 5 && pitch % 256 == 0);
    CODE("2d in", cudaSuccess, cudaMemcpy2D(p, pitch, host, 5, 5, 3, H2D));
    CODE("2d set", cudaSuccess, cudaMemset2D(static_cast<char*>(p) + 1, pitch, 9, 2, 3));
    CODE("2d out", cudaSuccess, cudaMemcpy2DAsync(back, 5, p, pitch, 5, 3, D2H, nullptr));
    CHECK("2d bytes", back[5] == 5 && back[6] == 9 && back[7] == 9 && back[8] == 8 && back[14] == 14);
    CODE("2d wider than its pitch", cudaErrorInvalidPitchValue, cudaMemcpy2D(p, pitch, host, 4, 5, 3, H2D));
    CODE("2d too high", cudaErrorInvalidValue, cudaMemcpy2D(p, pitch, host, 5, 5, 4, H2D));
    cudaFree(p);

    cudaPitchedPtr volume;
    CODE("malloc 3d", cudaSuccess, cudaMalloc3D(&volume, cudaExtent{4, 2, 3}));
    unsigned char in[24], out[24] = {};
    for (int i = 0; i < 24; ++i) in[i] = static_cast<unsigned char>(i);
    cudaMemcpy3DParms copy{};
    copy.srcPtr = cudaPitchedPtr{in, 4, 4, 2};
    copy.dstPtr = volume;
    copy.extent = cudaExtent{4, 2, 3};
    copy.kind = H2D;
    CODE("3d in", cudaSuccess, cudaMemcpy3D(&copy));
    CODE("3d set", cudaSuccess, cudaMemset3D(volume, 0xaa, cudaExtent{1, 2, 3}));
    copy.srcPtr = volume;
    copy.dstPtr = cudaPitchedPtr{out, 4, 4, 2};
    copy.kind = D2H;
    CODE("3d out", cudaSuccess, cudaMemcpy3D(&copy));
    bool same = true;
    for (int i = 0; i < 24; ++i) same = same && out[i] == (i % 4 ? in[i] : 0xaa);
    CHECK("3d bytes", same);
    cudaFree(volume.ptr);
}

void host_memory() {
    int *pinned = nullptr, *device = nullptr, plain[4] = {};
    void* mapped = nullptr;
    CODE("malloc host", cudaSuccess, cudaMallocHost(reinterpret_cast<void**>(&pinned), 16));
    pinned[3] = 5;                                   // the host may write there
    CODE("device pointer", cudaSuccess, cudaHostGetDevicePointer(&mapped, pinned, 0));
    cudaMalloc(reinterpret_cast<void**>(&device), 16);
    CODE("pinned in", cudaSuccess, cudaMemcpy(device, pinned, 16, H2D));
    clear_reports();
    CODE("pinned too short", cudaErrorInvalidValue, cudaMemcpy(pinned + 2, device, 16, D2H));
    REPORT("pinned too short is named", "out_of_bounds", "cudaMallocHost 1");
    cudaPointerAttributes a;
    cudaPointerGetAttributes(&a, pinned);
    CHECK("pinned is host", a.type == cudaMemoryTypeHost && a.hostPointer == pinned);
    cudaPointerGetAttributes(&a, device + 1);
    CHECK("device is device",
          a.type == cudaMemoryTypeDevice && a.devicePointer == device + 1 && !a.hostPointer);
    CODE("unknown memory is no error", cudaSuccess, cudaPointerGetAttributes(&a, plain));
    CHECK("unknown is unregistered", a.type == cudaMemoryTypeUnregistered);
    CODE("register", cudaSuccess, cudaHostRegister(plain, sizeof plain, cudaHostRegisterDefault));
    CODE("register twice", cudaErrorHostMemoryAlreadyRegistered,
         cudaHostRegister(plain, sizeof plain, cudaHostRegisterDefault));
    cudaPointerGetAttributes(&a, plain);
    CHECK("registered is host", a.type == cudaMemoryTypeHost);
    CODE("unregister", cudaSuccess, cudaHostUnregister(plain));
    CODE("unregister twice", cudaErrorHostMemoryNotRegistered, cudaHostUnregister(plain));
    CODE("cudaFree of pinned memory", cudaErrorInvalidValue, cudaFree(pinned));
    CODE("free host", cudaSuccess, cudaFreeHost(pinned));
    int* managed = nullptr;
    CODE("malloc managed", cudaSuccess,
         cudaMallocManaged(reinterpret_cast<void**>(&managed), 8, cudaMemAttachGlobal));
    managed[0] = 1;
    cudaPointerGetAttributes(&a, managed);
    CHECK("managed is managed",
          a.type == cudaMemoryTypeManaged && a.hostPointer == managed && a.devicePointer == managed);
    CODE("prefetch", cudaSuccess,
         cudaMemPrefetchAsync(managed, 8, cudaMemLocation{cudaMemLocationTypeDevice, 0}, 0, nullptr));
    CODE("advise", cudaSuccess,
         cudaMemAdvise(managed, 8, cudaMemAdviseSetReadMostly,
                       cudaMemLocation{cudaMemLocationTypeDevice, 0}));
    cudaFree(managed);
    cudaFree(device);
}

void stream_ordered() {
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    void* p = nullptr;
    CODE("malloc async", cudaSuccess, cudaMallocAsync(&p, 64, stream));
    CODE("memset async", cudaSuccess, cudaMemsetAsync(p, 1, 64, stream));
    CODE("free async", cudaSuccess, cudaFreeAsync(p, stream));
    cudaStreamSynchronize(stream);
    CODE("freed", cudaErrorInvalidValue, cudaMemsetAsync(p, 1, 64, stream));
    cudaMemPool_t pool;
    CODE("default pool", cudaSuccess, cudaDeviceGetDefaultMemPool(&pool, 0));
    uint64_t threshold = 1 << 20, read = 0;
    CODE("set threshold", cudaSuccess,
         cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
    CODE("get threshold", cudaSuccess, cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &read));
    CHECK("threshold", read == threshold);
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = cudaMemLocation{cudaMemLocationTypeDevice, 0};
    CODE("create pool", cudaSuccess, cudaMemPoolCreate(&pool, &properties));
    CODE("malloc from pool", cudaSuccess, cudaMallocFromPoolAsync(&p, 64, pool, stream));
    CODE("free from pool", cudaSuccess, cudaFreeAsync(p, stream));
    CODE("destroy pool", cudaSuccess, cudaMemPoolDestroy(pool));
    cudaStreamDestroy(stream);
}

void injection() {
    void* p = nullptr;
    configure("fail_malloc=2");
    CODE("first allocation", cudaSuccess, cudaMalloc(&p, 4));
    cudaFree(p);
    CODE("second allocation fails", cudaErrorMemoryAllocation, cudaMalloc(&p, 4));
    CODE("third allocation", cudaSuccess, cudaMalloc(&p, 4));
    cudaFree(p);
}

void statistics() {
    clear_reports();
    char host[8] = {};
    void* p = nullptr;
    cudaMalloc(&p, 8);
    cudaMemcpy(p, host, 8, H2D);
    cudaMemcpy(host, p, 4, D2H);
    cudaMemset(p, 0, 3);
    cudaDeviceSynchronize();
    cudaFree(p);
    std::string json = emulator<const char* (*)()>("emu_statistics")();
    auto has = [&](const char* text) { return json.find(text) != std::string::npos; };
    CHECK("copies are counted",
          has("\"copies\": 2,") && has("\"bytes_to_device\": 8,") && has("\"bytes_to_host\": 4,"));
    CHECK("fills are counted", has("\"fills\": 1,") && has("\"bytes_filled\": 3,"));
    CHECK("the rest is counted", has("\"allocations\": 1,") && has("\"frees\": 1,") &&
                                     has("\"synchronizations\": 1,") && has("\"blocking_copies\": 2,"));
}

}  // namespace

int main(int count, char**) {
    allocation();
    if (count == 1) large();                         // not where address space is limited
    many();
    ranges();
    pitched();
    host_memory();
    stream_ordered();
    injection();
    statistics();
    return failures;
}
