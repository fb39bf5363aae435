// AdamW (Loshchilov & Hutter 2019) in one pass over its four arrays, and over the copy in bfloat16 that a
// model computes with; the sum of squares for clipping.
//     m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//     p = p (1 - lr wd) - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// Elements that are fetched before they are wanted, those that will be written to be written: eight streams
// are more than the processor follows by itself (44 without, 48 GB/s with, of 50 million float32).
constexpr int64_t ahead = 256;

template <class T>
static bool adamw(const Call& call) {
    const auto param = flat<float>(call, 0);
    const auto grad = flat<const T>(call, 1);
    const auto m = flat<float>(call, 2), v = flat<float>(call, 3);
    const double lr = number(call, 0), beta1 = number(call, 1), beta2 = number(call, 2),
                 eps = number(call, 3);
    const double decay = number(call, 4), step = number(call, 5);
    const float scale = (float)number(call, 6), b1 = (float)beta1, b2 = (float)beta2;
    const float rest1 = (float)(1.0 - beta1), rest2 = (float)(1.0 - beta2), small = (float)eps;
    const float keep = (float)(1.0 - lr * decay), root = (float)(1.0 / ::sqrt(1.0 - pow(beta2, step)));
    const float rate = (float)(lr / (1.0 - pow(beta1, step)));
    const auto stored = flat<bf16>(call, 4);
    // All is read before anything is written: the arrays often lie at equal offsets in their pages, and a
    // read would wait for a write whose address has the same lower 12 bits.
    const auto update = [&](int64_t i, auto n) {
        __builtin_prefetch(param.data + i + ahead, 1);
        __builtin_prefetch(m.data + i + ahead, 1);
        __builtin_prefetch(v.data + i + ahead, 1);
        __builtin_prefetch(grad.data + i + ahead);
        const Vec g = get(grad + i, n) * scale, p = get(param + i, n) * keep;
        const Vec first = get(m + i, n) * b1 + g * rest1;
        const Vec second = get(v + i, n) * b2 + g * g * rest2;
        const Vec next = p - first / (sqrt(second) * root + small) * rate;
        put(m + i, n, first);
        put(v + i, n, second);
        put(param + i, n, next);
        if (stored.data) put(stored + i, n, next);
    };
    constexpr int64_t block = 4096;  // elements: whole registers, so that loads stay aligned
    const double bytes = (double)block * (7 * sizeof(float) + sizeof(bf16));
    parallel_for((param.size + block - 1) / block, bytes, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * block, last = end * block < param.size ? end * block : param.size;
        registers(last - first, [&](int64_t i, auto n) { update(first + i, n); });
    });
    return true;
}
NN_KERNEL(
    "adamw(&param[...]:float, grad[...], &m[...]:float, &v[...]:float; lr, beta1, beta2, eps, weight_decay, "
    "step, grad_scale=1, &stored[...]:bfloat16=None)",
    adamw, float, bf16)

typedef double Wide __attribute__((vector_size(width * 8)));

// In float64, per fixed block, the blocks in order.
template <class T>
static bool sum_of_squares(const Call& call) {
    double* const total = static_cast<double*>(call.array[0].data);
    const auto x = flat<const T>(call, 1);
    const int64_t size = 1 << 15, blocks = (x.size + size - 1) / size;
    const Scratch<double> partial(blocks);
    parallel_for(blocks, (double)size * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t stop = (b + 1) * size < x.size ? (b + 1) * size : x.size;
            Wide chain[4] = {};
            const auto add = [&](int64_t i, auto n, int c) {
                const Wide part = __builtin_convertvector(get(x + b * size + i, n), Wide);
                chain[c] += part * part;
            };
            const int64_t count = stop - b * size;
            int64_t i = 0;
            for (; i + 4 * width <= count; i += 4 * width)
                for (int c = 0; c < 4; ++c) add(i + c * width, All{}, c);
            for (; i < count; i += width) add(i, count - i < width ? count - i : (int64_t)width, 0);
            const Wide four = (chain[0] + chain[1]) + (chain[2] + chain[3]);
            double own = 0.0;
            for (int lane = 0; lane < width; ++lane) own += four[lane];
            partial[b] = own;
        }
    });
    *total = 0.0;
    for (int64_t b = 0; b < blocks; ++b) *total += partial[b];
    return true;
}
NN_KERNEL("sum_of_squares(x[...]) -> total:number", sum_of_squares, float, bf16)

}  // namespace nn::NN_LEVEL
