// Stable sorting: keys that compare like the elements, and the place behind them to make all different.
//
// bitonic in shared memory, several short rows per block; longer rows are merged, each element finding its
// place by a binary search in the other half (used)
#include "element.cuh"
#include "layout.cuh"

#include <algorithm>

namespace nn::array {

constexpr int TILE = 1024;

struct Key32 {                                       // elements of at most 4 bytes, rows below 2^32
    uint64_t packed;
    static __device__ __forceinline__ Key32 of(uint64_t key, int64_t place) {
        return {key << 32 | static_cast<uint32_t>(place)};
    }
    static __device__ __forceinline__ Key32 last() { return {~0ULL}; }
    __device__ __forceinline__ int64_t place() const { return static_cast<int64_t>(packed & 0xffffffffULL); }
    __device__ __forceinline__ bool operator<(const Key32& o) const { return packed < o.packed; }
};

struct Key64 {
    uint64_t key, at;
    static __device__ __forceinline__ Key64 of(uint64_t key, int64_t place) {
        return {key, static_cast<uint64_t>(place)};
    }
    static __device__ __forceinline__ Key64 last() { return {~0ULL, ~0ULL}; }
    __device__ __forceinline__ int64_t place() const { return static_cast<int64_t>(at); }
    __device__ __forceinline__ bool operator<(const Key64& o) const {
        return key < o.key || (key == o.key && at < o.at);
    }
};

// Unsigned integers in the order of the elements; 32 bits for all but 64-bit types.
__device__ __forceinline__ uint64_t key_of(const void* x, int dtype, int64_t i, int descending) {
    if (dtype == NN_INT64) {
        const uint64_t key = static_cast<uint64_t>(static_cast<const int64_t*>(x)[i]) ^ 1ULL << 63;
        return descending ? ~key : key;
    }
    if (dtype == NN_FLOAT32 || dtype == NN_FLOAT16 || dtype == NN_BFLOAT16) {
        const float value = load<float>(x, dtype, i);
        if (value != value) return 0xffffffffu;      // last, whichever way
        const uint32_t bits = value == 0.0f ? 0u : __float_as_uint(value);
        const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
        return descending ? ~key & 0xffffffffu : key;
    }
    const uint32_t value = static_cast<uint32_t>(load<int64_t>(x, dtype, i));
    const uint32_t key = dtype == NN_INT32 ? value ^ 0x80000000u : value;
    return descending ? ~key & 0xffffffffu : key;
}

struct Sort {
    int64_t* order;                                  // for rows of one tile
    const void* x;
    void *from, *to;                                 // keys [rows, n]
    int64_t rows, n, run;
    int32_t dtype, descending, tile;                 // tile: a power of 2
};

// Each run of `tile` elements in order.
template <class Key>
__global__ void __launch_bounds__(THREADS) array_sort_tiles(const __grid_constant__ Sort s) {
    __shared__ Key keys[TILE];
    const int64_t tiles_per_row = (s.n + s.tile - 1) / s.tile, tiles = s.rows * tiles_per_row;
    const int together = TILE / s.tile;
    for (int64_t block = blockIdx.x; block * together < tiles; block += gridDim.x) {
        const int64_t first = block * together;
        for (int i = threadIdx.x; i < TILE; i += THREADS) {
            const int64_t tile = first + i / s.tile, row = tile / tiles_per_row;
            const int64_t column = tile % tiles_per_row * s.tile + i % s.tile;
            const bool inside = tile < tiles && column < s.n;
            keys[i] = inside ? Key::of(key_of(s.x, s.dtype, row * s.n + column, s.descending), column)
                             : Key::last();
        }
        for (int size = 2; size <= s.tile; size *= 2)
            for (int distance = size / 2; distance > 0; distance /= 2) {
                __syncthreads();
                for (int pair = threadIdx.x; pair < TILE / 2; pair += THREADS) {
                    const int low = pair / distance * 2 * distance + pair % distance, high = low + distance;
                    const bool upwards = (low & size) == 0 || size == s.tile;
                    const Key a = keys[low], b = keys[high];
                    if ((b < a) == upwards) keys[low] = b, keys[high] = a;
                }
            }
        __syncthreads();
        for (int i = threadIdx.x; i < TILE; i += THREADS) {
            const int64_t tile = first + i / s.tile, row = tile / tiles_per_row;
            const int64_t column = tile % tiles_per_row * s.tile + i % s.tile;
            if (tile >= tiles || column >= s.n) continue;
            if (s.order) s.order[row * s.n + column] = keys[i].place();
            else static_cast<Key*>(s.to)[row * s.n + column] = keys[i];
        }
        __syncthreads();
    }
}

// Runs of `run` elements are merged in pairs.
template <class Key>
__global__ void __launch_bounds__(THREADS) array_sort_merge(const __grid_constant__ Sort s) {
    for (int64_t i = first_thread(); i < s.rows * s.n; i += all_threads()) {
        const int64_t row = i / s.n, column = i % s.n, half = column / s.run;
        const Key* keys = static_cast<const Key*>(s.from) + row * s.n;
        const int64_t other = (half ^ 1) * s.run;    // where the other half begins
        const Key mine = keys[column];
        int64_t low = min(other, s.n), high = min(other + s.run, s.n);
        const int64_t begin = low;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (keys[middle] < mine) low = middle + 1;
            else high = middle;
        }
        const int64_t place = half / 2 * 2 * s.run + (column - half * s.run) + (low - begin);
        if (s.order) s.order[row * s.n + place] = mine.place();
        else static_cast<Key*>(s.to)[row * s.n + place] = mine;
    }
}

namespace {

template <class Key> int launch(Sort s, int64_t* order, nn_stream stream) {
    const int64_t tiles = s.rows * ceil_div(s.n, s.tile), blocks = ceil_div(tiles, TILE / s.tile);
    s.order = s.n <= TILE ? order : nullptr;
    array_sort_tiles<Key><<<limited(blocks), THREADS, 0, native(stream)>>>(s);
    NN_TRY(launched("array_sort_tiles"));
    for (s.run = TILE; s.run < s.n; s.run *= 2) {
        std::swap(s.from, s.to);
        s.order = s.run * 2 >= s.n ? order : nullptr;
        array_sort_merge<Key><<<blocks_for(s.rows * s.n), THREADS, 0, native(stream)>>>(s);
        NN_TRY(launched("array_sort_merge"));
    }
    return NN_OK;
}

}  // namespace
}  // namespace nn::array

NN_API int64_t nn_array_argsort_workspace_size(int64_t rows, int64_t n, int32_t dtype) {
    return n <= nn::array::TILE ? 0 : 2 * rows * n * (dtype == NN_INT64 ? 16 : 8);
}

NN_API int nn_array_argsort(int64_t* order, const void* x, int64_t rows, int64_t n, int32_t descending,
                            int32_t dtype, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    using namespace nn::array;
    NN_TRY(nn::check_elements("rows", rows, "n", n));
    NN_REQUIRE(n < (1LL << 32), "n: rows of %lld elements are too long to sort", (long long)n);
    NN_TRY(check_known("dtype", dtype));
    NN_SUPPORT(dtype != NN_FLOAT64, "dtype: float64 cannot be sorted here; cast to float32");
    if (rows == 0 || n == 0) return NN_OK;
    NN_TRY(nn::check_array(order, "order", NN_INT64));
    NN_TRY(nn::check_array(x, "x", dtype));
    const int64_t bytes = nn_array_argsort_workspace_size(rows, n, dtype);
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, bytes));
    int tile = 2;
    while (tile < n && tile < TILE) tile *= 2;
    void* half = static_cast<char*>(workspace) + bytes / 2;
    Sort s{nullptr, x, half, workspace, rows, n, 0, dtype, descending != 0, tile};
    return dtype == NN_INT64 ? launch<Key64>(s, order, stream) : launch<Key32>(s, order, stream);
}
