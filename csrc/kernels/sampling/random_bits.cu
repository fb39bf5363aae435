// Words of the counter-based generator.
//
// four words to a thread, stored one by one -> at once, where they lie on 16 bytes (used)
#include "device/arguments.h"
#include "device/launch.h"
#include "device/pack.cuh"
#include "device/philox.cuh"
#include "nn/sampling.h"

namespace nn {

__global__ void __launch_bounds__(256)
random_bits(uint32_t* out, const uint64_t* key, const int64_t* words, int64_t count, bool at_once) {
    const int64_t block = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (4 * block >= count) return;
    const Words drawn = philox(*key, uint32_t(block), uint32_t(words[0]), uint32_t(words[1]),
                               uint32_t(words[2]));
    if (at_once && 4 * block + 4 <= count) {
        store_global(out + 4 * block, Pack<uint32_t, 4>{drawn.at[0], drawn.at[1], drawn.at[2], drawn.at[3]});
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (4 * block + i < count) out[4 * block + i] = drawn.at[i];
}

}  // namespace nn

NN_API int nn_random_bits(uint32_t* out, const uint64_t* key, const int64_t* words, int64_t count,
                          nn_stream stream) {
    NN_REQUIRE(count >= 0 && count <= (int64_t(1) << 34), "count: %lld is not in 0 ... 2^34",
               (long long)count);
    if (!count) return NN_OK;
    NN_TRY(nn::check_array(out, "out", NN_UINT32));
    NN_TRY(nn::check_array(key, "key", NN_INT64));
    NN_TRY(nn::check_array(words, "words", NN_INT64));
    const unsigned blocks = unsigned(nn::ceil_div(count, 1024));
    nn::random_bits<<<blocks, 256, 0, nn::native(stream)>>>(out, key, words, count,
                                                            nn::aligned(out, 16));
    return nn::launched("random_bits");
}
