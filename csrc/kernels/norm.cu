// RMSNorm and LayerNorm.
//
// forward    one thread per row -> one block per row, a warp's lanes side by side (used)
#include "device/launch.h"
#include "device/number.cuh"
#include "device/reduce.cuh"
#include "nn/norm.h"

namespace nn {

template <class T>
__global__ void __launch_bounds__(256) rms_norm_forward(T* y, float* rstd, const T* x, const T* weight, int64_t cols,
                                                        float eps) {
    __shared__ float scratch[32];
    const int64_t row = blockIdx.x;
    x += row * cols, y += row * cols;
    float squares = 0.0f;
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) squares += to_float(x[c]) * to_float(x[c]);
    const float r = rsqrtf(block_reduce<Sum>(squares, scratch) / cols + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        T normed = from_float<T>(to_float(x[c]) * r);
        y[c] = from_float<T>(to_float(normed) * to_float(weight[c]));
    }
}

}  // namespace nn

NN_API int nn_rms_norm_forward(void* y, float* rstd, const void* x, const void* weight, int64_t rows,
                               int64_t cols, float eps, int32_t dtype, nn_stream stream) {
    NN_REQUIRE(rows >= 0 && rows <= nn::MAX_GRID_X, "rows: %lld is not in 0 ... 2^31 - 1", (long long)rows);
    NN_REQUIRE(cols > 0, "cols: %lld is not positive", (long long)cols);
    NN_REQUIRE(eps >= 0.0f, "eps: %g is negative", eps);
    if (rows == 0) return NN_OK;
    NN_REQUIRE(y && rstd && x && weight, "y, rstd, x or weight: a null pointer");
    NN_FOR_FLOATING(dtype, T, {
        nn::rms_norm_forward<T><<<static_cast<unsigned>(rows), 256, 0, nn::native(stream)>>>(
            static_cast<T*>(y), rstd, static_cast<const T*>(x), static_cast<const T*>(weight), cols, eps);
    });
    return nn::launched("rms_norm_forward");
}
