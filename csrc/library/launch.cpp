// device/launch.h.
#include "device/launch.h"

#include <map>
#include <mutex>
#include <utility>

namespace nn {
namespace {

std::mutex lock;

int query(int index, Device* device) {
    int major = 0, minor = 0;
    NN_TRY(checked(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "capability"));
    NN_TRY(checked(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "capability"));
    device->capability = 10 * major + minor;
    NN_TRY(checked(cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index),
                   "multiprocessors"));
    return checked(cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                   "shared memory per block");
}

}  // namespace

int current_device(Device* device) {
    static std::map<int, Device> known;
    int index = 0;
    NN_TRY(checked(cudaGetDevice(&index), "cudaGetDevice"));
    std::lock_guard<std::mutex> guard(lock);
    auto found = known.find(index);
    if (found == known.end()) {
        Device fresh{};
        NN_TRY(query(index, &fresh));
        found = known.emplace(index, fresh).first;
    }
    *device = found->second;
    return NN_OK;
}

int allow_shared_bytes(const void* kernel, int bytes) {
    static std::map<std::pair<int, const void*>, int> allowed;
    if (bytes <= 48 * 1024) return NN_OK;
    int index = 0;
    NN_TRY(checked(cudaGetDevice(&index), "cudaGetDevice"));
    std::lock_guard<std::mutex> guard(lock);
    int& now = allowed[{index, kernel}];
    if (now >= bytes) return NN_OK;
    NN_TRY(checked(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "shared memory of a kernel"));
    now = bytes;
    return NN_OK;
}

}  // namespace nn
