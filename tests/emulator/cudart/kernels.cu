// Launches, symbols, attributes, limits, graphs of kernels, faults: what needs device code.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "check.h"

#include <vector>

__constant__ float weights[4];
__device__ unsigned hits;
__managed__ int managed = 3;

template <class T> __global__ void scale(T* x, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = x[i] * factor + static_cast<T>(weights[i % 4]);
}

struct Options { int offset; char flag; double factor; };
__global__ void by_struct(double* x, Options o) { x[threadIdx.x] = o.flag ? o.offset * o.factor : -1; }
__global__ void count_hits() { atomicAdd(&hits, 1u); }
__global__ void use_managed() { if (!threadIdx.x) managed += 10; }
__global__ void reversed(int* x) {
    extern __shared__ int tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
__global__ void __launch_bounds__(64) bounded(int* x) { x[threadIdx.x] = 1; }
__global__ void statics(int* x) {
    __shared__ int tile[1024];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x ^ 1];
}
__global__ void grid_sum(int* parts, int* total) {
    parts[blockIdx.x] = blockIdx.x + 1;
    cooperative_groups::this_grid().sync();
    if (!blockIdx.x && !threadIdx.x) for (unsigned i = 0; i < gridDim.x; ++i) *total += parts[i];
}
__global__ void write_at(int* x, long long i) { x[i] = 1; }
void not_a_kernel() {}

namespace {

constexpr cudaMemcpyKind H2D = cudaMemcpyHostToDevice, D2H = cudaMemcpyDeviceToHost;

template <class T> struct Device {
    T* p = nullptr;
    size_t n;
    explicit Device(std::vector<T> values) : n(values.size()) {
        cudaMalloc(&p, n * sizeof(T));
        cudaMemcpy(p, values.data(), n * sizeof(T), H2D);
    }
    ~Device() { cudaFree(p); }
    std::vector<T> read() const {
        std::vector<T> values(n);
        cudaMemcpy(values.data(), p, n * sizeof(T), D2H);
        return values;
    }
};

void launches() {
    Device<float> f({1, 2, 3, 4, 5});
    Device<int> i({1, 2, 3});
    Device<double> d({0, 0});
    float w[4] = {0.5f, 0, 0, 1};
    CODE("to symbol", cudaSuccess, cudaMemcpyToSymbol(weights, w, sizeof w));
    scale<float><<<2, 4>>>(f.p, 2, 5);
    CODE("launch", cudaSuccess, cudaGetLastError());
    CODE("synchronise", cudaSuccess, cudaDeviceSynchronize());
    CHECK("template of float", f.read() == std::vector<float>({2.5f, 4, 6, 9, 10.5f}));
    scale<int><<<1, 32>>>(i.p, 3, 3);
    CHECK("template of int", i.read() == std::vector<int>({3, 6, 9}));
    by_struct<<<1, 2>>>(d.p, Options{7, 1, 0.5});
    CHECK("struct by value", d.read() == std::vector<double>({3.5, 3.5}));
    void* arguments[] = {&i.p};
    CODE("explicit launch", cudaSuccess,
         cudaLaunchKernel(reversed, dim3(1), dim3(3), arguments, 3 * sizeof(int), nullptr));
    CHECK("dynamic shared memory", i.read() == std::vector<int>({9, 6, 3}));
    CODE("not a kernel", cudaErrorInvalidDeviceFunction,
         cudaLaunchKernel(reinterpret_cast<void*>(not_a_kernel), dim3(1), dim3(1), arguments, 0, nullptr));
    cudaGetLastError();
}

void symbols() {
    float w[4] = {};
    void* address = nullptr;
    size_t bytes = 0;
    unsigned count = 0;
    CODE("partial to symbol", cudaSuccess, cudaMemcpyToSymbol(weights, w, 4, 12));
    CODE("from symbol", cudaSuccess, cudaMemcpyFromSymbol(w, weights, sizeof w));
    CHECK("symbol bytes", w[0] == 0.5f && w[3] == 0);
    CODE("symbol size", cudaSuccess, cudaGetSymbolSize(&bytes, weights));
    CHECK("16 bytes", bytes == 16);
    CODE("too long for symbol", cudaErrorInvalidValue, cudaMemcpyToSymbol(weights, w, 16, 4));
    CODE("symbol address", cudaSuccess, cudaGetSymbolAddress(&address, hits));
    CODE("memset by address", cudaSuccess, cudaMemset(address, 0, 4));
    count_hits<<<3, 5>>>();
    cudaMemcpyFromSymbol(&count, hits, sizeof count);
    CHECK("device variable", count == 15);
    CODE("no symbol", cudaErrorInvalidSymbol, cudaGetSymbolSize(&bytes, &bytes));
    CHECK("managed before", managed == 3);
    managed = 5;
    use_managed<<<1, 2>>>();
    cudaDeviceSynchronize();
    CHECK("managed after", managed == 15);
    cudaGetLastError();
}

void limits() {
    Device<int> x(std::vector<int>(1024, 1));
    clear_reports();
    bounded<<<1, 1025>>>(x.p);
    CODE("too many threads", cudaErrorInvalidConfiguration, cudaGetLastError());
    REPORT("too many threads are named", "invalid_launch", "1025 threads; at most 1024");
    bounded<<<0, 32>>>(x.p);
    CODE("no blocks", cudaErrorInvalidConfiguration, cudaGetLastError());
    bounded<<<dim3(1, 65536), 32>>>(x.p);
    CODE("grid too high", cudaErrorInvalidConfiguration, cudaGetLastError());
    clear_reports();
    bounded<<<1, 65>>>(x.p);
    CODE("launch bounds", cudaErrorInvalidValue, cudaGetLastError());
    REPORT("launch bounds are named", "invalid_launch", "compiled for at most 64 (__launch_bounds__)");
    reversed<<<1, 32, 49153>>>(x.p);
    CODE("too much shared memory", cudaErrorInvalidValue, cudaGetLastError());
    REPORT("the way out is named", "invalid_launch", "cudaFuncAttributeMaxDynamicSharedMemorySize");
    CODE("opt in", cudaSuccess,
         cudaFuncSetAttribute(reversed, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536));
    reversed<<<1, 32, 65536>>>(x.p);
    CODE("more shared memory", cudaSuccess, cudaGetLastError());
    CODE("beyond the device", cudaErrorInvalidValue,
         cudaFuncSetAttribute(reversed, cudaFuncAttributeMaxDynamicSharedMemorySize, 300000));
    statics<<<1, 32, 46000>>>(x.p);
    CODE("static and dynamic", cudaErrorInvalidValue, cudaGetLastError());
    clear_reports();
}

void attributes() {
    cudaFuncAttributes a;
    CODE("attributes", cudaSuccess, cudaFuncGetAttributes(&a, statics));
    CHECK("static shared", a.sharedSizeBytes == 4096 && a.maxDynamicSharedSizeBytes == 49152 - 4096 &&
                               a.maxThreadsPerBlock == 1024);
    CODE("attributes of bounded", cudaSuccess, cudaFuncGetAttributes(&a, bounded));
    CHECK("its bound", a.maxThreadsPerBlock == 64 && a.ptxVersion >= 75 && a.binaryVersion == 80);
    CODE("carveout", cudaSuccess,
         cudaFuncSetAttribute(statics, cudaFuncAttributePreferredSharedMemoryCarveout, 50));
    CODE("attributes of nothing", cudaErrorInvalidDeviceFunction,
         cudaFuncGetAttributes(&a, reinterpret_cast<void*>(not_a_kernel)));
    int blocks = 0, grid = 0, block = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale<float>, 128, 0);
    CHECK("16 blocks of 128 threads", blocks == 16);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale<float>, 16, 0);
    CHECK("32 small blocks", blocks == 32);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale<float>, 128, 40 << 10);
    CHECK("4 blocks of 40 KiB", blocks == 4);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, bounded, 128, 0);
    CHECK("beyond launch bounds", blocks == 0);
    CODE("potential block size", cudaSuccess,
         cudaOccupancyMaxPotentialBlockSize(&grid, &block, scale<float>));
    CHECK("fills the device", block == 1024 && grid == 216);
    size_t shared = 0;
    CODE("available shared memory", cudaSuccess,
         cudaOccupancyAvailableDynamicSMemPerBlock(&shared, scale<float>, 2, 128));
    CHECK("half of it", shared == (82u << 10) - 1024);
    cudaGetLastError();
}

void extended() {
    Device<int> parts(std::vector<int>(6)), total(std::vector<int>(1));
    cudaLaunchAttribute attribute[2] = {};
    attribute[0].id = cudaLaunchAttributeCooperative;
    attribute[0].val.cooperative = 1;
    attribute[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(6);
    config.blockDim = dim3(32);
    config.attrs = attribute;
    config.numAttrs = 2;
    CODE("cooperative by attribute", cudaSuccess, cudaLaunchKernelEx(&config, grid_sum, parts.p, total.p));
    CHECK("grid barrier", total.read()[0] == 21);
    void* arguments[] = {&parts.p, &total.p};
    CODE("cooperative call", cudaSuccess,
         cudaLaunchCooperativeKernel(grid_sum, dim3(6), dim3(32), arguments));
    CHECK("grid barrier again", total.read()[0] == 42);
    clear_reports();
    CODE("too large to cooperate", cudaErrorCooperativeLaunchTooLarge,
         cudaLaunchCooperativeKernel(grid_sum, dim3(5000), dim3(1024), arguments));
    REPORT("too large is named", "invalid_launch", "only 216 can be resident");
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim = {2, 1, 1};
    CODE("no clusters on sm_80", cudaErrorInvalidConfiguration,
         cudaLaunchKernelEx(&config, grid_sum, parts.p, total.p));
    REPORT("clusters are named", "invalid_launch", "sm_80 has no thread block clusters");
    cudaGetLastError();
}

void graphs() {
    Device<int> x({1, 2, 3, 4});
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    int factor = 2;
    scale<int><<<1, 4, 0, stream>>>(x.p, factor, 4);
    factor = 100;                                    // the graph keeps the argument
    reversed<<<1, 4, 16, stream>>>(x.p);
    CODE("capture kernels", cudaSuccess, cudaStreamEndCapture(stream, &graph));
    CHECK("not run yet", x.read()[0] == 1);
    cudaGraphNode_t nodes[2];
    size_t n = 2;
    cudaGraphGetNodes(graph, nodes, &n);
    cudaKernelNodeParams params;
    CODE("kernel parameters", cudaSuccess, cudaGraphKernelNodeGetParams(nodes[0], &params));
    CHECK("as launched", params.func == reinterpret_cast<void*>(scale<int>) && params.blockDim.x == 4 &&
                             *static_cast<int*>(params.kernelParams[1]) == 2);
    CODE("instantiate", cudaSuccess, cudaGraphInstantiate(&exec, graph, 0));
    cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
    CHECK("replayed", x.read() == std::vector<int>({8, 6, 4, 2}));
    cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
    CHECK("replayed twice", x.read() == std::vector<int>({4, 8, 12, 16}));
    int three = 3, four = 4;
    void* arguments[] = {&x.p, &three, &four};
    params.kernelParams = arguments;
    CODE("set parameters", cudaSuccess, cudaGraphExecKernelNodeSetParams(exec, nodes[0], &params));
    cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
    CHECK("other argument", x.read() == std::vector<int>({48, 36, 24, 12}));
    cudaGraphNode_t added;
    params.blockDim = dim3(2000);
    CODE("kernel node beyond limits", cudaErrorInvalidConfiguration,
         cudaGraphAddKernelNode(&added, graph, nullptr, 0, &params));
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaGetLastError();
    clear_reports();
}

void deferred() {
    configure("defer=1");
    int *x = nullptr, *pinned = nullptr;
    cudaMalloc(&x, 16);
    cudaMallocHost(&pinned, 16);
    pinned[0] = 1, pinned[1] = 2, pinned[2] = 3, pinned[3] = 4;
    cudaStream_t stream;
    cudaStreamCreate(&stream);
    cudaMemcpyAsync(x, pinned, 16, H2D, stream);
    reversed<<<1, 4, 16, stream>>>(x);
    cudaMemcpyAsync(pinned, x, 16, D2H, stream);
    CHECK("stale before synchronising", pinned[0] == 1);
    cudaStreamSynchronize(stream);
    CHECK("fresh after synchronising", pinned[0] == 4 && pinned[3] == 1);
    REPORT("in order", "", "");
    reversed<<<1, 4, 16, stream>>>(x);
    cudaFree(x);
    REPORT("freed under a kernel", "unsynchronized", "while kernel _Z8reversedPi in stream");
    cudaStreamDestroy(stream);
    cudaFreeHost(pinned);
    configure("defer=0;fail_launch=2");
    count_hits<<<1, 1>>>();
    CODE("first launch", cudaSuccess, cudaGetLastError());
    count_hits<<<1, 1>>>();
    CODE("second launch fails", cudaErrorLaunchOutOfResources, cudaGetLastError());
    count_hits<<<1, 1>>>();
    CODE("third launch", cudaSuccess, cudaGetLastError());
}

void faults() {
    Device<int> x({0});
    clear_reports();
    write_at<<<1, 1>>>(x.p, 1 << 14);
    CODE("fault arrives at synchronising", cudaErrorIllegalAddress, cudaDeviceSynchronize());
    void* p = nullptr;
    CODE("and stays", cudaErrorIllegalAddress, cudaMalloc(&p, 4));
    CODE("last error", cudaErrorIllegalAddress, cudaGetLastError());
    CODE("is not taken", cudaErrorIllegalAddress, cudaGetLastError());
    CHECK("fault is reported", reports().find("write_at") != std::string::npos);
    CODE("reset", cudaSuccess, cudaDeviceReset());
    CODE("works again", cudaSuccess, cudaMalloc(&p, 4));
    cudaFree(p);
    clear_reports();
}

}  // namespace

int main() {
    launches();
    symbols();
    limits();
    attributes();
    extended();
    graphs();
    deferred();
    faults();
    return failures;
}
