// A layer of experts whose weights are packed: y[n] = sum_k w[n,k]
// down_e(swiglu(gate_up_e x[n])), e the expert of (n, k).  Few tokens: every
// pair by itself, at the speed of memory.  Many: their rows sorted by expert,
// so that an expert's weights are read once.
#include "kernels/packed_product.h"

namespace nn::NN_LEVEL {

template <class T>
struct Mixture {
    Rows<T> y;
    Rows<const T> x;
    Packed gate_up, down;  // of the first expert
    Rows<const float> weights;
    Ints experts;
    int64_t experts_stride, count, features;

    int64_t choices() const { return weights.cols; }
    int64_t expert(int64_t m) const { return experts[token(m) * experts_stride + m % choices()]; }
    int64_t token(int64_t m) const { return m / choices(); }
    static Packed of(Packed weight, int64_t e) {
        weight.data += e * weight.bytes();
        return weight;
    }
};

// to[0..n) = silu(gate) up of a pair of panels' sums
template <class T>
static inline void write_swiglu(T* to, int64_t n, const float* sums) {
    registers(n < panel_rows ? n : panel_rows, [&](int64_t i, auto lanes_here) {
        const Vec gate = load(sums + i), up = load(sums + panel_rows + i);
        put(to + i, lanes_here, gate * sigmoid(gate) * up);
    });
}

template <class T>
static inline void few_tokens(const Mixture<T>& mix) {
    const int64_t features = mix.features, k = mix.choices(), all = mix.x.rows * k;
    const Activations<T> of_x(mix.x, mix.gate_up.format);
    const Scratch<T> hidden(all * features);
    const Groups up(mix.gate_up.panels() / 2, mix.gate_up.format);
    spread(all * up.count, (double)mix.gate_up.bytes() / (double)up.count, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t m = unit / up.count, e = mix.expert(m);
            T* const to = hidden + m * features;
            if (e < mix.count)
                one_row(of_x.inputs.from(mix.token(m)), mix.of(mix.gate_up, e), up, unit % up.count,
                        [&](int64_t at, const float* sums) {
                            write_swiglu(to + at * panel_rows, features - at * panel_rows, sums);
                        });
        }
    });
    for (int64_t m = 0; m < all; ++m)
        if (mix.expert(m) >= mix.count) memset(hidden + m * features, 0, (size_t)features * sizeof(T));
    const Activations<T> of_hidden(Rows<const T>{hidden.data, all, features, features}, mix.down.format);
    const Groups down((mix.down.panels() + 1) / 2, mix.down.format);
    const int64_t cols = down.pairs * pair_rows;
    const Scratch<float> parts(all * cols);
    spread(all * down.count, (double)mix.down.bytes() / (double)down.count, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t m = unit / down.count, e = mix.expert(m);
            float* const to = parts + m * cols;
            if (e < mix.count)
                one_row(of_hidden.inputs.from(m), mix.of(mix.down, e), down, unit % down.count,
                        [&](int64_t at, const float* sums) {
                            memcpy(to + at * pair_rows, sums, pair_rows * sizeof(float));
                        });
        }
    });
    for (int64_t n = 0; n < mix.x.rows; ++n)
        registers(mix.x.cols, [&](int64_t i, auto here) {
            Vec total = {};
            for (int64_t c = 0; c < k; ++c) {
                const int64_t m = n * k + c;
                if (mix.expert(m) < mix.count) total += mix.weights[n][c] * load(parts + m * cols + i);
            }
            put(mix.y[n] + i, here, total);
        });
}

// Pairs sorted by expert, stable: row[m] of every pair, begin[e] of every
// expert; dropped ones come last.
struct Sorted {
    Scratch<int64_t> row, begin;
    template <class T>
    explicit Sorted(const Mixture<T>& mix) : row(mix.experts.size), begin(mix.count + 2) {
        for (int64_t e = 0; e < mix.count + 2; ++e) begin[e] = 0;
        for (int64_t m = 0; m < mix.experts.size; ++m) ++begin[mix.expert(m) + 1];
        for (int64_t e = 0; e < mix.count + 1; ++e) begin[e + 1] += begin[e];
        for (int64_t m = 0; m < mix.experts.size; ++m) row[m] = begin[mix.expert(m)]++;
        for (int64_t e = mix.count + 1; e > 0; --e) begin[e] = begin[e - 1];
        begin[0] = 0;
    }
};

template <class T>
static inline void many_tokens(const Mixture<T>& mix) {
    const int64_t cols = mix.x.cols, features = mix.features, k = mix.choices(), all = mix.experts.size;
    const Sorted sorted(mix);
    const Scratch<T> xs(all * cols), hidden(all * features);
    const Scratch<float> ys(all * cols);
    parallel_for(all, (double)cols * 8, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m)
            memcpy(xs + sorted.row[m] * cols, mix.x[mix.token(m)], (size_t)cols * sizeof(T));
    });
    for (int64_t e = 0; e < mix.count; ++e) {
        const int64_t first = sorted.begin[e], here = sorted.begin[e + 1] - first;
        if (here == 0) continue;
        T* const h = hidden + first * features;
        packed_product(mix.of(mix.gate_up, e), Rows<const T>{xs + first * cols, here, cols, cols},
                       [&](int64_t row, int64_t at, const float* sums) {
                           write_swiglu(h + row * features + at * panel_rows, features - at * panel_rows,
                                        sums);
                       });
        float* const to = ys + first * cols;
        packed_product(mix.of(mix.down, e), Rows<const T>{h, here, features, features},
                       [&](int64_t row, int64_t at, const float* sums) {
                           const int64_t left = cols - at * pair_rows;
                           memcpy(to + row * cols + at * pair_rows, sums,
                                  (size_t)(left < pair_rows ? left : pair_rows) * sizeof(float));
                       });
    }
    parallel_for(mix.x.rows, (double)(cols * k) * 8, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            registers(cols, [&](int64_t i, auto here) {
                Vec total = {};
                for (int64_t c = 0; c < k; ++c)
                    if (mix.expert(n * k + c) < mix.count)
                        total += mix.weights[n][c] * get(ys + sorted.row[n * k + c] * cols + i, here);
                put(mix.y[n] + i, here, total);
            });
    });
}

template <class T>
static bool packed_experts(const Call& call) {
    const auto y = rows<T>(call, 0);
    const auto x = rows<const T>(call, 1);
    const auto gate_up = bytes(call, 2), down = bytes(call, 3);
    const auto weights = rows<const float>(call, 4);
    const auto experts = ints(call, 5);
    const int64_t count = (int64_t)number(call, 0), features = (int64_t)number(call, 1);
    const Format format = format_of(number(call, 2));
    const int64_t panels = (features + panel_rows - 1) / panel_rows;
    const Packed up = {gate_up.data, format, pair_rows * panels, x.cols};
    const Packed back = {down.data, format, x.cols, features};
    if (count < 1 || gate_up.size % count || down.size % count) return false;
    if (!up.is(gate_up.size / count) || !back.is(down.size / count)) return false;
    if (x.rows == 0 || x.cols == 0) return true;
    const Mixture<T> mix = {y, x, up, back, weights, experts, call.array[5].stride[0], count, features};
    for (int64_t m = 0; m < experts.size; ++m)
        if (mix.expert(m) < 0 || mix.expert(m) > count) return false;
    if (x.rows <= 4)
        few_tokens(mix);
    else
        many_tokens(mix);
    return true;
}
NN_KERNEL(
    "packed_experts(x[N,D], gate_up[U]:bytes, down[W]:bytes, "
    "weights[N,K]:float, experts[N,K]:int, "
    "num_experts, features, format) -> y[N,D]",
    packed_experts, float, bf16)

}  // namespace nn::NN_LEVEL
