// Block-wide primitives of CUB, code that nobody here wrote: sum, exclusive scan and radix sort of a block's tile.
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

constexpr int THREADS = 128, ITEMS = 4;

__global__ void block_reduce(int* out, const int* x) {
    using Reduce = cub::BlockReduce<int, THREADS>;
    __shared__ typename Reduce::TempStorage storage;
    int sum = Reduce(storage).Sum(x[blockIdx.x * THREADS + threadIdx.x]);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void block_scan(int* out, const int* x) {
    using Scan = cub::BlockScan<int, THREADS>;
    __shared__ typename Scan::TempStorage storage;
    int items[ITEMS];
    for (int i = 0; i < ITEMS; ++i) items[i] = x[threadIdx.x * ITEMS + i];
    Scan(storage).ExclusiveSum(items, items);
    for (int i = 0; i < ITEMS; ++i) out[threadIdx.x * ITEMS + i] = items[i];
}

__global__ void block_sort(unsigned* keys, int* values) {
    using Sort = cub::BlockRadixSort<unsigned, THREADS, ITEMS, int>;
    __shared__ typename Sort::TempStorage storage;
    unsigned key[ITEMS];
    int value[ITEMS];
    for (int i = 0; i < ITEMS; ++i) key[i] = keys[threadIdx.x * ITEMS + i], value[i] = values[threadIdx.x * ITEMS + i];
    Sort(storage).Sort(key, value);
    for (int i = 0; i < ITEMS; ++i) keys[threadIdx.x * ITEMS + i] = key[i], values[threadIdx.x * ITEMS + i] = value[i];
}
