// Gather, scatter and search along an axis.  Elements are moved as words of their size; neighbours that
// travel together (rows of an embedding) as words of 16 bytes.
#include "element.cuh"
#include "layout.cuh"

namespace nn::array {

struct Move {
    void* y;
    const void* x;
    const void* index;
    unsigned long long* winner;                      // scatter: 1 + the last entry that names an element
    int64_t length, stride, count;
    int32_t index_dtype, is_float;
    Places<3> places;                                // y, x, index
};

// The place on the axis, or -1.
__device__ __forceinline__ int64_t resolved(const Move& m, int64_t at) {
    int64_t i = load<int64_t>(m.index, m.index_dtype, at);
    if (i < 0) i += m.length;
    return i < 0 || i >= m.length ? -1 : i;
}

template <class Word> __device__ __forceinline__ Word outside(bool is_float) {
    Word word;
    uint8_t* bytes = reinterpret_cast<uint8_t*>(&word);
#pragma unroll
    for (int j = 0; j < int(sizeof(Word)); ++j) bytes[j] = is_float ? 0xff : 0;      // all ones: a NaN
    return word;
}

template <class Word>
__global__ void __launch_bounds__(THREADS) array_gather(const __grid_constant__ Move m) {
    const Word* x = static_cast<const Word*>(m.x);
    for (int64_t i = first_thread(); i < m.count; i += all_threads()) {
        int64_t at[3];
        places(at, m.places, i);
        const int64_t place = resolved(m, at[2]);
        static_cast<Word*>(m.y)[at[0]] = place < 0 ? outside<Word>(m.is_float) : x[at[1] + place * m.stride];
    }
}

__global__ void __launch_bounds__(THREADS) array_scatter_winners(const __grid_constant__ Move m,
                                                                 int64_t indices) {
    for (int64_t j = first_thread(); j < indices; j += all_threads()) {
        const int64_t place = resolved(m, j);
        if (place >= 0) atomicMax(m.winner + place, static_cast<unsigned long long>(j + 1));
    }
}

template <class Word>
__global__ void __launch_bounds__(THREADS) array_scatter(const __grid_constant__ Move m) {
    for (int64_t i = first_thread(); i < m.count; i += all_threads()) {
        int64_t at[3];
        places(at, m.places, i);
        const int64_t place = resolved(m, at[2]);
        if (place >= 0 && m.winner[place] == static_cast<unsigned long long>(at[2] + 1))
            static_cast<Word*>(m.y)[at[0] + place * m.stride] = static_cast<const Word*>(m.x)[at[1]];
    }
}

template <class C> __device__ __forceinline__ bool before(C a, C b) { return a < b || (b != b && a == a); }

template <class C>
__global__ void __launch_bounds__(THREADS) array_searchsorted(int64_t* place, const void* sorted,
                                                              const void* values, int64_t n, int64_t m,
                                                              int right, int dtype) {
    for (int64_t i = first_thread(); i < m; i += all_threads()) {
        const C value = load<C>(values, dtype, i);
        int64_t low = 0, high = n;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            const C x = load<C>(sorted, dtype, middle);
            if (right ? !before(value, x) : before(x, value)) low = middle + 1;
            else high = middle;
        }
        place[i] = low;
    }
}

namespace {

// Words of 16 bytes instead of elements, where the innermost axis is dense in y and x, has one index, and all
// keeps alignment; the bytes of a word.
int64_t widened_words(nn_array_layout* l, Move* m, int64_t bytes) {
    const int inner = static_cast<int>(l->ndim) - 1;
    const int64_t n = 16 / bytes;
    bool fits = l->shape[inner] % n == 0 && l->strides[0][inner] == 1 && l->strides[1][inner] == 1 &&
                l->strides[2][inner] == 0 && m->stride % n == 0 && aligned(m->y, 16) && aligned(m->x, 16);
    for (int axis = 0; axis < inner; ++axis)
        fits = fits && l->strides[0][axis] % n == 0 && l->strides[1][axis] % n == 0;
    if (!fits) return bytes;
    l->shape[inner] /= n, m->stride /= n, m->count /= n;
    for (int axis = 0; axis < inner; ++axis) l->strides[0][axis] /= n, l->strides[1][axis] /= n;
    return 16;
}

template <class Word> void move(const Move& m, bool scatter, nn_stream stream) {
    if (scatter) array_scatter<Word><<<blocks_for(m.count), THREADS, 0, native(stream)>>>(m);
    else array_gather<Word><<<blocks_for(m.count), THREADS, 0, native(stream)>>>(m);
}

int run(Move m, const nn_array_layout* layout, int32_t dtype, bool scatter, int64_t indices,
        nn_stream stream) {
    NN_TRY(check_known("dtype", dtype));
    NN_REQUIRE(known(m.index_dtype) && !floating(m.index_dtype) && m.index_dtype != NN_FLOAT64 &&
                   m.index_dtype != NN_BOOL, "index_dtype: %s is no integer", dtype_name(m.index_dtype));
    NN_TRY(check_count("length", m.length));
    nn_array_layout l;
    NN_TRY(merged(&l, layout, 3, &m.count));
    if (m.count == 0) return NN_OK;
    NN_TRY(check_array(m.y, "y", dtype));
    NN_TRY(m.length ? check_array(m.x, "x", dtype) : check_optional(m.x, "x", dtype));
    NN_TRY(check_array(m.index, "index", m.index_dtype));
    m.is_float = floating(dtype) || dtype == NN_FLOAT64;
    const int64_t bytes = widened_words(&l, &m, dtype_bytes(dtype));
    m.places = as_parameter<3>(l, m.count);
    if (scatter) {
        const size_t bytes = static_cast<size_t>(m.length) * 8;
        NN_TRY(checked(cudaMemsetAsync(m.winner, 0, bytes, native(stream)), "cudaMemsetAsync"));
        array_scatter_winners<<<blocks_for(indices), THREADS, 0, native(stream)>>>(m, indices);
        NN_TRY(launched("array_scatter_winners"));
    }
    switch (bytes) {
        case 1: move<uint8_t>(m, scatter, stream); break;
        case 2: move<uint16_t>(m, scatter, stream); break;
        case 4: move<uint32_t>(m, scatter, stream); break;
        case 8: move<uint64_t>(m, scatter, stream); break;
        default: move<uint4>(m, scatter, stream);
    }
    return launched(scatter ? "array_scatter" : "array_gather");
}

}  // namespace
}  // namespace nn::array

NN_API int nn_array_gather(void* y, const void* x, const void* index, const nn_array_layout* layout,
                           int64_t length, int64_t stride, int32_t dtype, int32_t index_dtype,
                           nn_stream stream) {
    nn::array::Move m{y, x, index, nullptr, length, stride, 0, index_dtype, 0, {}};
    return nn::array::run(m, layout, dtype, false, 0, stream);
}

NN_API int nn_array_scatter(void* y, const void* x, const void* index, const nn_array_layout* layout,
                            int64_t length, int64_t stride, int64_t indices, int32_t dtype,
                            int32_t index_dtype, void* workspace, int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(nn::check_count("indices", indices));
    NN_TRY(nn::check_count("length", length));
    if (length == 0) return NN_OK;
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, 8 * length));
    auto* winner = static_cast<unsigned long long*>(workspace);
    nn::array::Move m{y, x, index, winner, length, stride, 0, index_dtype, 0, {}};
    return nn::array::run(m, layout, dtype, true, indices, stream);
}

NN_API int nn_array_searchsorted(int64_t* place, const void* sorted, const void* values, int64_t n, int64_t m,
                                 int32_t right, int32_t dtype, nn_stream stream) {
    using namespace nn::array;
    NN_TRY(nn::check_count("n", n));
    NN_TRY(nn::check_count("m", m));
    NN_TRY(check_known("dtype", dtype));
    NN_SUPPORT(dtype != NN_FLOAT64, "dtype: float64; cast to float32");
    if (m == 0) return NN_OK;
    NN_TRY(nn::check_array(place, "place", NN_INT64));
    NN_TRY(nn::check_array(values, "values", dtype));
    NN_TRY(n ? nn::check_array(sorted, "sorted", dtype) : nn::check_optional(sorted, "sorted", dtype));
    auto kernel = floating(dtype) ? array_searchsorted<float> : array_searchsorted<int64_t>;
    kernel<<<blocks_for(m), THREADS, 0, nn::native(stream)>>>(place, sorted, values, n, m, right, dtype);
    return nn::launched("array_searchsorted");
}
