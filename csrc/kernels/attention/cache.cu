// nn_cache_append: new keys and values into a contiguous or paged cache, at positions in device memory.
#include <algorithm>

#include "check.h"
#include "nn/attention.h"

namespace nn {

struct AppendPart {
    void* to;
    const void* from;
    int64_t to_strides[3], from_strides[3];      // in units
    int64_t units;                               // in a row
};

struct Append {
    AppendPart part[2];                          // keys, values
    const int32_t *positions, *block_table;
    int64_t groups, queries, rows, capacity, page, max_pages, pages;
};

// A unit a thread: 16 bytes where everything allows it, else one number.
template <class Unit> __global__ void __launch_bounds__(256) cache_append(Append a) {
    const AppendPart& part = a.part[blockIdx.y];
    const int64_t total = a.rows * part.units, step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
        const int64_t row = i / part.units, unit = i % part.units;
        const int64_t t = row % a.queries, group = row / a.queries % a.groups, b = row / a.queries / a.groups;
        const int64_t position = a.positions[b] + t;
        if (position < 0 || position >= a.capacity) continue;
        int64_t to = group * part.to_strides[1];
        if (a.block_table) {
            const int64_t page = a.block_table[b * a.max_pages + position / a.page];
            if (page < 0 || page >= a.pages) continue;
            to += page * part.to_strides[0] + position % a.page * part.to_strides[2];
        } else {
            to += b * part.to_strides[0] + position * part.to_strides[2];
        }
        const int64_t from =
            b * part.from_strides[0] + group * part.from_strides[1] + t * part.from_strides[2];
        static_cast<Unit*>(part.to)[to + unit] = static_cast<const Unit*>(part.from)[from + unit];
    }
}

namespace {

bool divisible(const AppendPart& part, int64_t n) {
    bool even = part.units % n == 0 && aligned(part.to, 16) && aligned(part.from, 16);
    for (int i = 0; i < 3; i++) even = even && part.to_strides[i] % n == 0 && part.from_strides[i] % n == 0;
    return even;
}

void divide(AppendPart* part, int64_t n) {
    part->units /= n;
    for (int i = 0; i < 3; i++) part->to_strides[i] /= n, part->from_strides[i] /= n;
}

template <class Unit> int launch(const Append& a, cudaStream_t stream) {
    const int64_t units = a.rows * std::max(a.part[0].units, a.part[1].units);
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(ceil_div(units, 256), 1 << 16)), 2);
    cache_append<Unit><<<grid, 256, 0, stream>>>(a);
    return launched("cache_append");
}

}  // namespace
}  // namespace nn

NN_API int nn_cache_append(const nn_cache* cache, const void* k, const void* v, const int32_t* positions,
                           int64_t queries, int64_t k_batch_stride, int64_t k_head_stride,
                           int64_t k_position_stride, int64_t v_batch_stride, int64_t v_head_stride,
                           int64_t v_position_stride, nn_stream stream) {
    nn_cache c;
    NN_TRY(nn::read_cache(&c, cache));
    NN_REQUIRE_SIZE(queries, nn::ATTENTION_MAX_LENGTH);
    nn::Append a{{{c.k, k, {c.k_strides[0], c.k_strides[1], c.k_strides[2]},
                   {k_batch_stride, k_head_stride, k_position_stride}, c.width},
                  {c.v, v, {c.v_strides[0], c.v_strides[1], c.v_strides[2]},
                   {v_batch_stride, v_head_stride, v_position_stride}, c.value_width}},
                 positions, c.block_table, c.groups, queries, c.batch * c.groups * queries, c.capacity,
                 c.page,
                 c.max_pages, c.pages};
    NN_REQUIRE(a.rows <= (int64_t{1} << 60) / nn::ATTENTION_MAX_WIDTH,
               "batch, groups, queries: %lld rows are too many", (long long)a.rows);
    if (a.rows == 0 || c.capacity == 0) return NN_OK;
    NN_REQUIRE(k && v && positions, "k, v or positions: a null pointer");
    NN_REQUIRE(nn::aligned(positions, 4), "positions: %p is not aligned to int32", (const void*)positions);
    const int64_t bytes = nn::dtype_bytes(c.dtype), n = 16 / bytes;
    NN_REQUIRE(nn::aligned(k, bytes) && nn::aligned(v, bytes),
               "k or v: not aligned to %d bytes, the size of a number",
               (int)bytes);
    if (nn::divisible(a.part[0], n) && nn::divisible(a.part[1], n)) {
        nn::divide(&a.part[0], n), nn::divide(&a.part[1], n);
        return nn::launch<uint4>(a, nn::native(stream));
    }
    if (bytes == 4) return nn::launch<uint32_t>(a, nn::native(stream));
    return nn::launch<uint16_t>(a, nn::native(stream));
}
