// AdamW over a plan.
//
// a launch per tensor -> one launch over chunks of all tensors -> four elements per thread and step: 16 bytes
// of each float32 array, 8 of a half type, whole sectors in every request (used)
//
// Roundings are those of nn/backends/reference/optimizer.py: scalars in float64, rounded once; no
// multiplication is contracted with an addition.  So float32 results are NumPy's, bit for bit.
#include "plan.cuh"

namespace nn {

// Scalars of a step, rounded to float32 where the reference rounds them.
struct Step {
    float scale, keep1, take1, keep2, take2, correction, eps, decay, rate;
};

__device__ __forceinline__ double power(double base, int64_t exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

__device__ __forceinline__ Step step_of(const nn_tensor& tensor, double lr, int64_t t, float scale,
                                        double beta1, double beta2, double eps) {
    lr *= tensor.lr_scale;
    return {scale, float(beta1), float(1.0 - beta1), float(beta2), float(1.0 - beta2),
            float(1.0 / sqrt(1.0 - power(beta2, t))), float(eps), float(1.0 - lr * tensor.weight_decay),
            float(lr / (1.0 - power(beta1, t)))};
}

__device__ __forceinline__ void update(float& p, float& m, float& v, float g, const Step& s) {
    g = __fmul_rn(g, s.scale);
    m = __fadd_rn(__fmul_rn(m, s.keep1), __fmul_rn(g, s.take1));
    v = __fadd_rn(__fmul_rn(v, s.keep2), __fmul_rn(__fmul_rn(g, g), s.take2));
    const float denominator = __fadd_rn(__fmul_rn(sqrtf(v), s.correction), s.eps);
    p = __fsub_rn(__fmul_rn(p, s.decay), __fmul_rn(m / denominator, s.rate));
}

__global__ void __launch_bounds__(PLAN_THREADS)
adamw_forward(const nn_tensor* tensors, const nn_chunk* chunks, const double* lr, const int64_t* step,
              const float* scale, const int32_t* skip, double beta1, double beta2, double eps) {
    __shared__ Step shared;
    __shared__ Work work;
    __shared__ bool skipped;
    if (threadIdx.x == 0) {
        skipped = skip && *skip;
        find_work(work, tensors, chunks);
        shared = step_of(work.tensor, *lr, *step, scale ? *scale : 1.0f, beta1, beta2, eps);
    }
    __syncthreads();
    if (skipped) return;
    const Step s = shared;
    const nn_tensor tensor = work.tensor;
    const int64_t start = work.start, stop = work.stop;
    const void* from = tensor.master ? tensor.master : tensor.param;       // where the parameter is read
    const int32_t from_dtype = tensor.master ? NN_FLOAT32 : tensor.param_dtype;
    const bool fours = in_fours(tensor.param, tensor.param_dtype) && in_fours(from, from_dtype) &&
                       in_fours(tensor.grad, tensor.grad_dtype) && in_fours(tensor.m, NN_FLOAT32) &&
                       in_fours(tensor.v, NN_FLOAT32);
    const int64_t whole = fours ? start + (stop - start) / 4 * 4 : start;
#pragma unroll 2
    for (int64_t i = start + 4 * threadIdx.x; i < whole; i += 4 * PLAN_THREADS) {
        float p[4], g[4], m[4], v[4];
        load_four(m, tensor.m, i, NN_FLOAT32), load_four(v, tensor.v, i, NN_FLOAT32);
        load_four(p, from, i, from_dtype), load_four(g, tensor.grad, i, tensor.grad_dtype);
#pragma unroll
        for (int j = 0; j < 4; ++j) update(p[j], m[j], v[j], g[j], s);
        store_four(tensor.m, i, m, NN_FLOAT32), store_four(tensor.v, i, v, NN_FLOAT32);
        if (tensor.master) store_four(tensor.master, i, p, NN_FLOAT32);
        store_four(tensor.param, i, p, tensor.param_dtype);
    }
    for (int64_t i = whole + threadIdx.x; i < stop; i += PLAN_THREADS) {
        float p = load_one(from, i, from_dtype), m = tensor.m[i], v = tensor.v[i];
        update(p, m, v, load_one(tensor.grad, i, tensor.grad_dtype), s);
        tensor.m[i] = m, tensor.v[i] = v;
        if (tensor.master) tensor.master[i] = p;
        store_one(tensor.param, i, p, tensor.param_dtype);
    }
}

__global__ void __launch_bounds__(PLAN_THREADS)
zero_gradients(const nn_tensor* tensors, const nn_chunk* chunks) {
    __shared__ Work work;
    if (threadIdx.x == 0) find_work(work, tensors, chunks);
    __syncthreads();
    const nn_tensor& tensor = work.tensor;
    const int32_t dtype = tensor.grad_dtype;
    const int64_t start = work.start, stop = work.stop;
    const int64_t whole = in_fours(tensor.grad, dtype) ? start + (stop - start) / 4 * 4 : start;
    const float zeros[4] = {};
    for (int64_t i = start + 4 * threadIdx.x; i < whole; i += 4 * PLAN_THREADS)
        store_four(tensor.grad, i, zeros, dtype);
    for (int64_t i = whole + threadIdx.x; i < stop; i += PLAN_THREADS) store_one(tensor.grad, i, 0.0f, dtype);
}

__global__ void counter_increment(int64_t* counter, const int32_t* skip) {
    if (!skip || !*skip) *counter += 1;
}

}  // namespace nn

NN_API int64_t nn_chunk_elements(void) { return nn::CHUNK; }

NN_API int nn_adamw_forward(const void* tensors, const void* chunks, int64_t chunk_count, const double* lr,
                            const int64_t* step, const float* scale, const int32_t* skip, double beta1,
                            double beta2, double eps, nn_stream stream) {
    NN_TRY(nn::check_plan(tensors, chunks, chunk_count));
    NN_REQUIRE(beta1 >= 0 && beta1 < 1, "beta1: %g is not in [0, 1)", beta1);
    NN_REQUIRE(beta2 >= 0 && beta2 < 1, "beta2: %g is not in [0, 1)", beta2);
    NN_REQUIRE(eps >= 0, "eps: %g is negative", eps);
    if (!chunk_count) return NN_OK;
    NN_TRY(nn::check_array(lr, "lr", NN_FLOAT64));                           // all in device memory
    NN_TRY(nn::check_array(step, "step", NN_INT64));
    NN_TRY(nn::check_optional(scale, "scale", NN_FLOAT32));
    NN_TRY(nn::check_optional(skip, "skip", NN_INT32));
    nn::adamw_forward<<<unsigned(chunk_count), nn::PLAN_THREADS, 0, nn::native(stream)>>>(
        nn::tensors_of(tensors), nn::chunks_of(chunks), lr, step, scale, skip, beta1, beta2, eps);
    return nn::launched("adamw_forward");
}

NN_API int nn_zero_gradients(const void* tensors, const void* chunks, int64_t chunk_count, nn_stream stream) {
    NN_TRY(nn::check_plan(tensors, chunks, chunk_count));
    if (!chunk_count) return NN_OK;
    nn::zero_gradients<<<unsigned(chunk_count), nn::PLAN_THREADS, 0, nn::native(stream)>>>(
        nn::tensors_of(tensors), nn::chunks_of(chunks));
    return nn::launched("zero_gradients");
}

NN_API int nn_counter_increment(int64_t* counter, const int32_t* skip, nn_stream stream) {
    NN_TRY(nn::check_array(counter, "counter", NN_INT64));
    NN_TRY(nn::check_optional(skip, "skip", NN_INT32));
    nn::counter_increment<<<1, 1, 0, nn::native(stream)>>>(counter, skip);
    return nn::launched("counter_increment");
}
