// Sums of squares in float64: of the gradients of a plan, with the clip factor, and of one array.
//
// float32 partial sums overflow at 1.8e19 and lose digits -> float64, four elements per load; one partial sum
// per chunk, summed in order by one block (used)
#include "device/reduce.cuh"
#include "plan.cuh"

namespace nn {

// The sum over x[start ... stop - 1], for all threads of the block.
__device__ __forceinline__ double squares(const void* x, int64_t start, int64_t stop, int32_t dtype,
                                          double* scratch) {
    const int64_t whole = in_fours(x, dtype) ? start + (stop - start) / 4 * 4 : start;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = start + 4 * threadIdx.x; i < whole; i += 4 * PLAN_THREADS) {
        float four[4];
        load_four(four, x, i, dtype);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += double(four[j]) * four[j];
    }
    for (int64_t i = whole + threadIdx.x; i < stop; i += PLAN_THREADS) {
        const float one = load_one(x, i, dtype);
        sum += double(one) * one;
    }
    return block_reduce<Sum>(sum, scratch);
}

__global__ void __launch_bounds__(PLAN_THREADS)
gradient_squares(double* partial, const nn_tensor* tensors, const nn_chunk* chunks) {
    __shared__ double scratch[32];
    __shared__ Work work;
    if (threadIdx.x == 0) find_work(work, tensors, chunks);
    __syncthreads();
    const double sum = squares(work.tensor.grad, work.start, work.stop, work.tensor.grad_dtype, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__device__ __forceinline__ double sum_of(const double* partial, int64_t count, double* scratch) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    return block_reduce<Sum>(sum, scratch);
}

__global__ void __launch_bounds__(1024)
gradient_norm_forward(float* norm, float* scale, int32_t* skip, int64_t* skipped, const double* partial,
                      int64_t count, const float* input_scale, double max_norm) {
    __shared__ double scratch[32];
    const double sum = sum_of(partial, count, scratch);
    if (threadIdx.x) return;
    const double input = input_scale ? double(*input_scale) : 1.0, found = sqrt(sum) * fabs(input);
    const bool finite = found <= 3.4028234663852886e38;           // NaN is not; nor what float32 cannot hold
    const double clip = max_norm / (found + 1e-6);
    *norm = float(found);
    *scale = float(finite && max_norm > 0.0 && clip < 1.0 ? input * clip : input);
    if (skip) *skip = !finite;
    if (skipped && !finite) *skipped += 1;
}

__global__ void __launch_bounds__(PLAN_THREADS)
array_squares(double* partial, const void* x, int64_t count, int32_t dtype) {
    __shared__ double scratch[32];
    const int64_t start = CHUNK * blockIdx.x;
    const double sum = squares(x, start, min(start + CHUNK, count), dtype, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) sum_in_order(double* total, const double* partial, int64_t count) {
    __shared__ double scratch[32];
    const double sum = sum_of(partial, count, scratch);
    if (threadIdx.x == 0) *total = sum;
}

static unsigned threads_for(int64_t count) {
    return count >= 1024 ? 1024 : 32 * unsigned(ceil_div(count ? count : 1, 32));
}

}  // namespace nn

NN_API int64_t nn_gradient_norm_workspace_size(int64_t chunk_count) {
    return chunk_count > 0 ? 8 * chunk_count : 0;
}

NN_API int nn_gradient_norm_forward(float* norm, float* scale, int32_t* skip, int64_t* skipped,
                                    const void* tensors, const void* chunks, int64_t chunk_count,
                                    const float* input_scale, double max_norm, void* workspace,
                                    int64_t workspace_bytes, nn_stream stream) {
    NN_TRY(nn::check_plan(tensors, chunks, chunk_count));
    NN_TRY(nn::check_array(norm, "norm", NN_FLOAT32));
    NN_TRY(nn::check_array(scale, "scale", NN_FLOAT32));
    NN_TRY(nn::check_optional(skip, "skip", NN_INT32));
    NN_TRY(nn::check_optional(skipped, "skipped", NN_INT64));
    NN_TRY(nn::check_optional(input_scale, "input_scale", NN_FLOAT32));
    NN_REQUIRE(max_norm == max_norm, "max_norm: NaN");
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_gradient_norm_workspace_size(chunk_count)));
    double* partial = static_cast<double*>(workspace);
    cudaStream_t native = nn::native(stream);
    if (chunk_count) {
        nn::gradient_squares<<<unsigned(chunk_count), nn::PLAN_THREADS, 0, native>>>(
            partial, nn::tensors_of(tensors), nn::chunks_of(chunks));
        NN_TRY(nn::launched("gradient_squares"));
    }
    nn::gradient_norm_forward<<<1, nn::threads_for(chunk_count), 0, native>>>(
        norm, scale, skip, skipped, partial, chunk_count, input_scale, max_norm);
    return nn::launched("gradient_norm_forward");
}

NN_API int64_t nn_sum_of_squares_workspace_size(int64_t count) {
    return count > 0 ? 8 * nn::ceil_div(count, nn::CHUNK) : 0;
}

NN_API int nn_sum_of_squares(double* total, const void* x, int64_t count, int32_t dtype, void* workspace,
                             int64_t workspace_bytes, nn_stream stream) {
    NN_REQUIRE(count >= 0 && nn::ceil_div(count, nn::CHUNK) <= nn::MAX_GRID_X,
               "count: %lld is negative or too large",
               (long long)count);
    NN_TRY(nn::check_floating("dtype", dtype));
    NN_TRY(nn::check_array(total, "total", NN_FLOAT64));
    NN_TRY(count ? nn::check_array(x, "x", dtype) : NN_OK);
    NN_TRY(nn::check_workspace(workspace, workspace_bytes, nn_sum_of_squares_workspace_size(count)));
    double* partial = static_cast<double*>(workspace);
    const int64_t chunks = nn::ceil_div(count, nn::CHUNK);
    cudaStream_t native = nn::native(stream);
    if (chunks) {
        nn::array_squares<<<unsigned(chunks), nn::PLAN_THREADS, 0, native>>>(partial, x, count, dtype);
        NN_TRY(nn::launched("array_squares"));
    }
    nn::sum_in_order<<<1, nn::threads_for(chunks), 0, native>>>(total, partial, chunks);
    return nn::launched("sum_in_order");
}
