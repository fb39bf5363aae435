// Depthwise causal convolution, every channel filtered over time, and its backward; d = dilation:
//     y_t = sum over j of w_j x_{t+jd};   dx_s = sum over j of w_j dy_{s-jd};   dw_j = sum over t of dy_t x_{t+jd}
//
// The weight is laid out by taps first, so that channels are read side by side.  dw: partial sums per fixed
// block of positions, added in order.
#include "kernels/steps.h"

namespace nn::NN_LEVEL {

struct Taps {  // [K][C] of weight[C,K]
    int64_t count, channels;
    Scratch<float> at;
    template <class T>
    explicit Taps(const Rows<T>& weight)
        : count(weight.cols), channels(weight.rows), at(weight.cols * weight.rows) {
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t j = 0; j < count; ++j) at[j * channels + c] = get(weight[c] + j, (int64_t)1)[0];
    }
    const float* operator[](int64_t j) const { return at + j * channels; }
};

template <class T>
static bool causal_conv(const Call& call) {
    const auto y = steps<T>(call, 0);
    const auto x = steps<const T>(call, 1);
    const auto weight = rows<const T>(call, 2);
    const int64_t far = (int64_t)number(call, 1), batch = call.array[0].shape[0];
    if (weight.cols < 1 || far < 1 || x.steps != y.steps + (weight.cols - 1) * far) return false;
    const Taps taps(weight);
    const double bytes = (double)taps.channels * (2 * sizeof(T) + taps.count);
    parallel_for(batch * y.steps, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / y.steps, t = row % y.steps;
            registers(taps.channels, [&](int64_t i, auto n) {
                Vec sum = get(x(b, t) + i, n) * get(taps[0] + i, n);
                for (int64_t j = 1; j < taps.count; ++j)
                    sum += get(x(b, t + j * far) + i, n) * get(taps[j] + i, n);
                put(y(b, t) + i, n, sum);
            });
        }
    });
    return true;
}
NN_KERNEL("causal_conv(x[B,S,C], weight[C,K], steps:T; dilation=1) -> y[B,T,C]", causal_conv, float, bf16)

template <class T>
static bool causal_conv_backward(const Call& call) {
    const auto dx = steps<T>(call, 0);
    const auto dweight = rows<float>(call, 1);
    const auto dy = steps<const T>(call, 2), x = steps<const T>(call, 3);
    const auto weight = rows<const T>(call, 4);
    const int64_t far = (int64_t)number(call, 0), batch = call.array[0].shape[0];
    if (weight.cols < 1 || far < 1 || x.steps != dy.steps + (weight.cols - 1) * far) return false;
    const Taps taps(weight);
    const int64_t channels = taps.channels, size = taps.count * channels;
    const double bytes = (double)channels * (2 * sizeof(T) + taps.count);
    parallel_for(batch * dx.steps, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / dx.steps, s = row % dx.steps;
            registers(channels, [&](int64_t i, auto n) {
                Vec sum = {};
                for (int64_t j = 0; j < taps.count; ++j)
                    if (const int64_t t = s - j * far; t >= 0 && t < dy.steps)
                        sum += get(dy(b, t) + i, n) * get(taps[j] + i, n);
                put(dx(b, s) + i, n, sum);
            });
        }
    });
    const int64_t positions = batch * dy.steps, blocks = block_count(positions);
    const Scratch<float> partial(blocks * size);
    for_blocks(positions, bytes, [&](int64_t block, int64_t begin, int64_t end) {
        float* const own = partial + block * size;
        memset(own, 0, (size_t)size * sizeof(float));
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / dy.steps, t = row % dy.steps;
            for (int64_t j = 0; j < taps.count; ++j)
                registers(channels, [&](int64_t i, auto n) {
                    float* const sum = own + j * channels + i;
                    put(sum, n, get(sum, n) + get(dy(b, t) + i, n) * get(x(b, t + j * far) + i, n));
                });
        }
    });
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t j = 0; j < taps.count; ++j) {
            float total = 0.0f;
            for (int64_t block = 0; block < blocks; ++block) total += partial[block * size + j * channels + c];
            dweight[c][j] = total;
        }
    return true;
}
NN_KERNEL("causal_conv_backward(dy[B,T,C], x[B,S,C], weight[C,K]; dilation=1) -> dx[B,S,C], dweight[C,K]:float",
          causal_conv_backward, float, bf16)

}  // namespace nn::NN_LEVEL
