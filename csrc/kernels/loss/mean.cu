// Means of losses over the tokens that count: one block, each thread its rows in order, then a fixed tree.
#include "device/arguments.h"
#include "device/launch.h"
#include "device/reduce.cuh"
#include "nn/loss.h"

namespace nn {

__device__ __forceinline__ bool counts(const void* targets, int64_t row, int64_t ignore_index,
                                       int32_t dtype) {
    return (dtype == NN_INT32 ? static_cast<const int32_t*>(targets)[row]
                              : static_cast<const int64_t*>(targets)[row]) != ignore_index;
}

__global__ void __launch_bounds__(1024)
mean_loss_forward(float* mean, float* sum, int64_t* count, const float* loss, const void* targets,
                  const int64_t* tokens, int64_t rows, int64_t ignore_index, int32_t target_dtype) {
    __shared__ double scratch[32];
    double total = 0.0, number = 0.0;
    for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
        total += loss[r];
        if (!tokens) number += counts(targets, r, ignore_index, target_dtype);
    }
    total = block_reduce<Sum>(total, scratch);
    number = tokens ? double(*tokens) : block_reduce<Sum>(number, scratch);
    if (threadIdx.x) return;
    *mean = number > 0.0 ? float(total / number) : 0.0f;
    if (sum) *sum = float(total);
    if (count) *count = int64_t(number);
}

__global__ void __launch_bounds__(256)
mean_loss_backward(float* dloss, const float* dmean, const void* targets, const int64_t* count, int64_t rows,
                   int64_t ignore_index, int32_t target_dtype) {
    const int64_t n = *count, step = int64_t(gridDim.x) * blockDim.x;
    const float share = n > 0 ? float(double(*dmean) / double(n)) : 0.0f;
    for (int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; r < rows; r += step)
        dloss[r] = counts(targets, r, ignore_index, target_dtype) ? share : 0.0f;
}

static int check_mean(int64_t rows, int32_t target_dtype) {
    NN_TRY(check_count("rows", rows));
    return check_index("target_dtype", target_dtype);
}

}  // namespace nn

NN_API int nn_mean_loss_forward(float* mean, float* sum, int64_t* count, const float* loss,
                                const void* targets, const int64_t* tokens, int64_t rows,
                                int64_t ignore_index, int32_t target_dtype, nn_stream stream) {
    NN_TRY(nn::check_mean(rows, target_dtype));
    NN_TRY(nn::check_array(mean, "mean", NN_FLOAT32));
    NN_TRY(nn::check_optional(sum, "sum", NN_FLOAT32));
    NN_TRY(nn::check_optional(count, "count", NN_INT64));
    NN_TRY(nn::check_optional(loss, "loss", NN_FLOAT32));
    NN_TRY(nn::check_optional(targets, "targets", target_dtype));
    NN_TRY(nn::check_optional(tokens, "tokens", NN_INT64));
    NN_REQUIRE(!rows || (loss && (targets || tokens)), "loss, or both targets and tokens: a null pointer");
    const unsigned threads = rows >= 1024 ? 1024 : 32 * unsigned(nn::ceil_div(rows ? rows : 1, 32));
    nn::mean_loss_forward<<<1, threads, 0, nn::native(stream)>>>(mean, sum, count, loss, targets, tokens,
                                                                 rows,
                                                                 ignore_index, target_dtype);
    return nn::launched("mean_loss_forward");
}

NN_API int nn_mean_loss_backward(float* dloss, const float* dmean, const void* targets, const int64_t* count,
                                 int64_t rows, int64_t ignore_index, int32_t target_dtype, nn_stream stream) {
    NN_TRY(nn::check_mean(rows, target_dtype));
    if (!rows) return NN_OK;
    NN_TRY(nn::check_array(dloss, "dloss", NN_FLOAT32));
    NN_TRY(nn::check_array(dmean, "dmean", NN_FLOAT32));
    NN_TRY(nn::check_array(targets, "targets", target_dtype));
    NN_TRY(nn::check_array(count, "count", NN_INT64));
    const int64_t blocks = nn::ceil_div(rows, 256);
    nn::mean_loss_backward<<<unsigned(blocks < 65536 ? blocks : 65536), 256, 0, nn::native(stream)>>>(
        dloss, dmean, targets, count, rows, ignore_index, target_dtype);
    return nn::launched("mean_loss_backward");
}
