// The router's jitter: x times uniform numbers around 1, by place and counter.
//
// words drawn into memory, five maps to make factors of them -> drawn where they are used, four elements per
// thread, which are one block of Philox (used)
#include "device/arguments.h"
#include "device/launch.h"
#include "device/pack.cuh"
#include "device/philox.cuh"
#include "nn/router.h"

namespace nn {

constexpr int JITTER_THREADS = 256, DRAWN = 4;
constexpr int64_t JITTER_BLOCKS = 65536, JITTER_MOST = int64_t{1} << 34;      // a block's number has 32 bits

// Each factor is rounded as the host rounds it: no multiply-add.
template <class T>
__global__ void __launch_bounds__(JITTER_THREADS)
    router_jitter(T* y, const T* x, const int64_t* counter, int64_t count, float low, float width,
                  bool vector) {
    const uint64_t key = static_cast<uint64_t>(counter[0]);
    const uint32_t a = static_cast<uint32_t>(counter[1]), b = static_cast<uint32_t>(counter[2]);
    const uint32_t c = static_cast<uint32_t>(counter[3]);
    const int64_t threads = int64_t{gridDim.x} * JITTER_THREADS;
    for (int64_t block = int64_t{blockIdx.x} * JITTER_THREADS + threadIdx.x; block * DRAWN < count;
         block += threads) {
        const Words words = philox(key, static_cast<uint32_t>(block), a, b, c);
        const int64_t at = block * DRAWN;
        float v[DRAWN] = {};
        if (vector && at + DRAWN <= count) load_floats(v, x + at);
        else
#pragma unroll
            for (int i = 0; i < DRAWN; ++i)
                if (at + i < count) v[i] = to_float(x[at + i]);
#pragma unroll
        for (int i = 0; i < DRAWN; ++i)
            v[i] = __fmul_rn(v[i], __fadd_rn(low, __fmul_rn(width, uniform(words.at[i]))));
        if (vector && at + DRAWN <= count) store_floats(y + at, v);
        else
#pragma unroll
            for (int i = 0; i < DRAWN; ++i)
                if (at + i < count) y[at + i] = from_float<T>(v[i]);
    }
}

template <class T>
static int launch_jitter(void* y, const void* x, const int64_t* counter, int64_t count, double epsilon,
                         nn_stream stream) {
    const int64_t blocks = ceil_div(ceil_div(count, DRAWN), JITTER_THREADS);
    const bool vector = aligned(x, sizeof(T) * DRAWN) && aligned(y, sizeof(T) * DRAWN);
    router_jitter<<<static_cast<unsigned>(blocks < JITTER_BLOCKS ? blocks : JITTER_BLOCKS), JITTER_THREADS, 0,
                    native(stream)>>>(static_cast<T*>(y), static_cast<const T*>(x), counter, count,
                                      static_cast<float>(1.0 - epsilon), static_cast<float>(2.0 * epsilon),
                                      vector);
    return launched("router_jitter");
}

}  // namespace nn

NN_API int nn_router_jitter_forward(void* y, const void* x, const int64_t* counter, int64_t count,
                                    double epsilon, int32_t dtype, nn_stream stream) {
    NN_REQUIRE(count >= 0 && count <= nn::JITTER_MOST, "count: %lld is not in 0 ... 2^34", (long long)count);
    NN_REQUIRE(epsilon >= 0.0 && epsilon <= 1.0, "epsilon: %g is not in [0, 1]", epsilon);
    NN_TRY(nn::check_floating("dtype", dtype));
    if (count == 0) return NN_OK;
    NN_TRY(nn::check_array(y, "y", dtype));
    NN_TRY(nn::check_array(x, "x", dtype));
    NN_TRY(nn::check_array(counter, "counter", NN_INT64));
    NN_FOR_FLOATING(dtype, T, return nn::launch_jitter<T>(y, x, counter, count, epsilon, stream));
    return NN_OK;
}
