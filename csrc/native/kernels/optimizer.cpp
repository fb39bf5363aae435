// AdamW (Loshchilov & Hutter 2019) in one pass over its four arrays, and over the copy in bfloat16 that a
// model computes with; the sum of squares for clipping.  Both for many tensors at once, as one loop.
//     m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//     p = p (1 - lr wd) - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

// What a loop does with a block is compiled once, for one thread and for several: which product is contracted
// with which sum is the compiler's choice, which was another in the copy for short loops, so that a small
// tensor had other bits alone than among others.
#ifdef __clang__
#define NN_ONE_COPY __attribute__((noinline))
#else
#define NN_ONE_COPY __attribute__((noipa))
#endif

// Blocks of many arrays, numbered through, as one loop: body(array, block, first, last), elements of it.
// Small arrays are a block each; which blocks there are does not depend on the threads.
struct Blocks {
    const int64_t size;
    const int64_t count;          // of arrays
    const Scratch<int64_t> ends;  // blocks of the arrays up to and with this one
    const Scratch<int64_t> sizes;
    int64_t elements = 0;

    template <class F>
    Blocks(int64_t block, int64_t arrays, const F& size_of)
        : size(block), count(arrays), ends(arrays), sizes(arrays) {
        int64_t end = 0;
        for (int64_t a = 0; a < count; ++a) {
            sizes[a] = size_of(a);
            elements += sizes[a];
            ends[a] = end += (sizes[a] + size - 1) / size;
        }
    }
    int64_t first(int64_t array) const { return array ? ends[array - 1] : 0; }
    int64_t all() const { return first(count); }

    int64_t array_of(int64_t block) const {
        int64_t low = 0, high = count - 1;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (ends[middle] > block)
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    }

    template <class F>
    void each(double bytes_of_element, const F& body) const {
        if (all() == 0) return;
        const double bytes = bytes_of_element * (double)elements / (double)all();
        parallel_for(all(), bytes, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin, a = array_of(begin); b < end; ++b) {
                while (ends[a] <= b) ++a;
                const int64_t from = (b - first(a)) * size, to = from + size;
                body(a, b, from, to < sizes[a] ? to : sizes[a]);
            }
        });
    }
};

// Elements that are fetched before they are wanted, those that will be written to be written: eight streams
// are more than the processor follows by itself (44 without, 48 GB/s with, of 50 million float32).
constexpr int64_t ahead = 256;

// What the elements of one tensor have in common; numbers are formed in double.
template <class T>
struct Moving {
    float *param, *m, *v;
    const T* grad;
    bf16* stored;
    float scale, b1, b2, rest1, rest2, small, keep, root, rate;

    explicit Moving(const Call& call)
        : param(flat<float>(call, 0).data),
          m(flat<float>(call, 2).data),
          v(flat<float>(call, 3).data),
          grad(flat<const T>(call, 1).data),
          stored(flat<bf16>(call, 4).data) {
        const double lr = number(call, 0), beta1 = number(call, 1), beta2 = number(call, 2);
        const double decay = number(call, 4), step = number(call, 5);
        scale = (float)number(call, 6), b1 = (float)beta1, b2 = (float)beta2;
        rest1 = (float)(1.0 - beta1), rest2 = (float)(1.0 - beta2), small = (float)number(call, 3);
        keep = (float)(1.0 - lr * decay), root = (float)(1.0 / ::sqrt(1.0 - pow(beta2, step)));
        rate = (float)(lr / (1.0 - pow(beta1, step)));
    }

    // All is read before anything is written: the arrays often lie at equal offsets in their pages, and a
    // read would wait for a write whose address has the same lower 12 bits.
    template <class N>
    void update(int64_t i, N n) const {
        __builtin_prefetch(param + i + ahead, 1);
        __builtin_prefetch(m + i + ahead, 1);
        __builtin_prefetch(v + i + ahead, 1);
        __builtin_prefetch(grad + i + ahead);
        const Vec g = get(grad + i, n) * scale, p = get(param + i, n) * keep;
        const Vec first = get(m + i, n) * b1 + g * rest1;
        const Vec second = get(v + i, n) * b2 + g * g * rest2;
        const Vec next = p - first / (sqrt(second) * root + small) * rate;
        put(m + i, n, first);
        put(v + i, n, second);
        put(param + i, n, next);
        if (stored) put(stored + i, n, next);
    }
};

template <class T>
NN_ONE_COPY static void update_block(const Moving<T>& one, int64_t first, int64_t last) {
    const Moving<T> tensor = one;  // in registers: memory might be what is written
    registers(last - first, [&](int64_t i, auto n) { tensor.update(first + i, n); });
}

template <class T>
static void adamw(const Call* calls, int64_t count) {
    constexpr int64_t block = 4096;  // elements: whole registers, so that loads stay aligned
    const Blocks blocks(block, count, [&](int64_t a) { return flat<float>(calls[a], 0).size; });
    const Scratch<Moving<T>> tensors(count);
    for (int64_t a = 0; a < count; ++a) tensors[a] = Moving<T>(calls[a]);
    blocks.each(7 * sizeof(float) + sizeof(bf16), [&](int64_t a, int64_t, int64_t first, int64_t last) {
        update_block(tensors[a], first, last);
    });
}
NN_KERNEL_OF_MANY(
    "adamw(&param[...]:float, grad[...], &m[...]:float, &v[...]:float; lr, beta1, beta2, eps, weight_decay, "
    "step, grad_scale=1, &stored[...]:bfloat16=None)",
    adamw, float, bf16)

typedef double Wide __attribute__((vector_size(width * 8)));

template <class T>
NN_ONE_COPY static double squares(const T* x, int64_t count) {
    Wide chain[4] = {};
    const auto add = [&](int64_t i, auto n, int c) {
        const Wide part = __builtin_convertvector(get(x + i, n), Wide);
        chain[c] += part * part;
    };
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width)
        for (int c = 0; c < 4; ++c) add(i + c * width, All{}, c);
    for (; i < count; i += width) add(i, count - i < width ? count - i : (int64_t)width, 0);
    const Wide four = (chain[0] + chain[1]) + (chain[2] + chain[3]);
    double own = 0.0;
    for (int lane = 0; lane < width; ++lane) own += four[lane];
    return own;
}

// In float64, per fixed block, the blocks in order.
template <class T>
static void sum_of_squares(const Call* calls, int64_t count) {
    const Blocks blocks(1 << 15, count, [&](int64_t a) { return flat<const T>(calls[a], 1).size; });
    const Scratch<double> partial(blocks.all());
    blocks.each(sizeof(T), [&](int64_t a, int64_t block, int64_t first, int64_t last) {
        partial[block] = squares(flat<const T>(calls[a], 1) + first, last - first);
    });
    for (int64_t a = 0; a < count; ++a) {
        double* const total = static_cast<double*>(calls[a].array[0].data);
        *total = 0.0;
        for (int64_t b = blocks.first(a); b < blocks.ends[a]; ++b) *total += partial[b];
    }
}
NN_KERNEL_OF_MANY("sum_of_squares(x[...]) -> total:number", sum_of_squares, float, bf16)

}  // namespace nn::NN_LEVEL
