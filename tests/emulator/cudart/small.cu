// One kernel and a few calls: built in the ways that decide whether a program can be emulated at all, and
// with --default-stream per-thread, which calls the runtime by other names.
#include "check.h"

#include <thread>

__device__ int total;
__global__ void add(int* x, int amount) {
    x[threadIdx.x] += amount;
    atomicAdd(&total, amount);
}

int main() {
    int host[4] = {1, 2, 3, 4}, sum = -1, *x = nullptr;
    CODE("malloc", cudaSuccess, cudaMalloc(&x, sizeof host));
    CODE("in", cudaSuccess, cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    add<<<1, 4>>>(x, 10);
    CODE("launch", cudaSuccess, cudaGetLastError());
    CODE("out", cudaSuccess, cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost));
    CODE("synchronise", cudaSuccess, cudaStreamSynchronize(nullptr));
    CHECK("added", host[0] == 11 && host[3] == 14);
    CODE("symbol", cudaSuccess, cudaMemcpyFromSymbol(&sum, total, sizeof sum));
    CHECK("summed", sum == 40);
    unsigned long long mine = 0, other = 0;
    cudaStreamGetId(nullptr, &mine);
    std::thread([&] { cudaStreamGetId(nullptr, &other); }).join();
    std::printf("default streams: %s\n", mine == other ? "one" : "one per thread");
    CODE("free", cudaSuccess, cudaFree(x));
    return failures;
}
