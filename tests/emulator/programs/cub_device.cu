// Device-wide primitives of CUB in a whole program: reduce, exclusive scan and radix sort, compared with the host's answers.
// Exit status 0: all equal.  Build with -cudart shared to run it without a GPU.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_scan.cuh>

#define CHECK(call)                                                                             \
    do {                                                                                        \
        cudaError_t error_ = (call);                                                            \
        if (error_ != cudaSuccess) {                                                            \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));         \
            std::exit(2);                                                                       \
        }                                                                                       \
    } while (0)

template <class Call>
void with_storage(Call call) {
    size_t bytes = 0;
    CHECK(call(nullptr, bytes));
    void* storage;
    CHECK(cudaMalloc(&storage, bytes));
    CHECK(call(storage, bytes));
    CHECK(cudaFree(storage));
}

int main() {
    const int n = 5000;
    std::vector<unsigned> host(n);
    unsigned state = 1;
    for (unsigned& x : host) x = (state = state * 1664525u + 1013904223u) >> 8;
    unsigned *x, *y;
    CHECK(cudaMalloc(&x, n * sizeof *x));
    CHECK(cudaMalloc(&y, n * sizeof *y));
    CHECK(cudaMemcpy(x, host.data(), n * sizeof *x, cudaMemcpyHostToDevice));
    std::vector<unsigned> got(n), expected(n);
    int wrong = 0;

    with_storage([&](void* storage, size_t& bytes) { return cub::DeviceReduce::Sum(storage, bytes, x, y, n); });
    CHECK(cudaMemcpy(got.data(), y, sizeof *y, cudaMemcpyDeviceToHost));
    unsigned sum = 0;
    for (unsigned value : host) sum += value;
    wrong += got[0] != sum;
    std::printf("reduce %s\n", got[0] == sum ? "ok" : "WRONG");

    with_storage([&](void* storage, size_t& bytes) { return cub::DeviceScan::ExclusiveSum(storage, bytes, x, y, n); });
    CHECK(cudaMemcpy(got.data(), y, n * sizeof *y, cudaMemcpyDeviceToHost));
    for (int i = 1; i < n; ++i) expected[i] = expected[i - 1] + host[i - 1];
    wrong += got != expected;
    std::printf("scan %s\n", got == expected ? "ok" : "WRONG");

    with_storage([&](void* storage, size_t& bytes) { return cub::DeviceRadixSort::SortKeys(storage, bytes, x, y, n); });
    CHECK(cudaMemcpy(got.data(), y, n * sizeof *y, cudaMemcpyDeviceToHost));
    expected = host;
    std::sort(expected.begin(), expected.end());
    wrong += got != expected;
    std::printf("sort %s\n", got == expected ? "ok" : "WRONG");

    CHECK(cudaFree(x));
    CHECK(cudaFree(y));
    return wrong != 0;
}
