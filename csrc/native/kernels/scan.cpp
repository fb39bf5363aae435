// The selective scan:
//     h_t = e^{delta_t a} h_{t-1} + delta_t x_t b_t,   y_t = sum of h_t c_t over states + d x_t
//
// A thread takes 64 channels of a text through all of its tokens: channels on lanes, their states [N][64] in
// the first cache, nothing but x, delta and y moved.  For one token (a step of decoding) states are on lanes,
// as they lie in memory: the step is bound by reading a and h.
#include "kernels/scan.h"

namespace nn::NN_LEVEL {

template <class T>
struct Scan {
    Steps<T> y;
    Steps<float> last;
    Rows4<float> starts;  // [B,P,N,C]
    Steps<const T> x;
    Steps<const float> delta;
    Rows<const float> a;
    Steps<const T> b, c;
    Flat<const float> d;
    Steps<const float> h;
    int64_t parts, texts;
};

// A token's channels are a page away from the last one's, where the processor does not look ahead by itself.
template <class T>
static inline void fetch_ahead(const Scan<T>& s, const Channels& group, int64_t t) {
    if (t >= s.x.steps) return;
    for (int64_t i = 0; i < group.count; i += 16) {
        __builtin_prefetch(s.delta(group.batch, t) + group.first + i);
        __builtin_prefetch(s.x(group.batch, t) + group.first + i);
        __builtin_prefetch(s.y(group.batch, t) + group.first + i, 1);
    }
}

template <class T>
static inline void scan_token(const Scan<T>& s, const Channels& group, int64_t t, const float* rates,
                              float* h, float* weights) {
    const int64_t states = s.a.cols;
    float *const b = weights, *const c = weights + states;
    widened(b, s.b(group.batch, t), states);
    widened(c, s.c(group.batch, t), states);
    fetch_ahead(s, group, t + 2);
    registers(group.count, [&](int64_t i, auto n) {
        const int64_t at = group.first + i;
        const Vec x = get(s.x(group.batch, t) + at, n), delta = get(s.delta(group.batch, t) + at, n);
        const Vec written = delta * x;
        Vec y = get(s.d + at, n) * x;
        for (int64_t k = 0; k < states; ++k) {
            float* const own = h + k * together + i;
            const Vec now = exp(delta * load(rates + k * together + i)) * load(own) + written * b[k];
            store(own, now);
            y += now * c[k];
        }
        put(s.y(group.batch, t) + at, n, y);
    });
}

static inline void keep_start(const Rows4<float>& starts, const Channels& group, int64_t part,
                              const float* h) {
    for (int64_t k = 0; k < starts.size[2]; ++k)
        registers(group.count, [&](int64_t i, auto n) {
            put(starts(group.batch, part, k) + group.first + i, n, load(h + k * together + i));
        });
}

template <class T>
static inline void scan_group(const Scan<T>& s, const Channels& group, const float* rates) {
    const int64_t states = s.a.cols, tokens = s.x.steps;
    const Scratch<float> h(together * states), weights(2 * states);
    channels_last(h.data, s.h(group.batch, group.first), s.h.stride[1], group.count, states);
    for (int64_t i = 0; i < s.parts; ++i) {
        if (s.starts.data) keep_start(s.starts, group, i, h.data);
        const ScanPart part(i, s.parts, tokens);
        for (int64_t t = part.begin; t < part.end; ++t) scan_token(s, group, t, rates, h.data, weights.data);
    }
    channels_first(s.last(group.batch, group.first), s.last.stride[1], h.data, group.count, states);
}

// Channels [first, first + count), at most a register of them, of a text
template <class T>
static inline void scan_channels(const Scan<T>& s, int64_t text, int64_t first, int64_t count, const float* b,
                                 const float* c) {
    const Vec x = get(s.x(text, 0) + first, count), delta = get(s.delta(text, 0) + first, count);
    float steps[width], written[width], lanes[width * width], sums[width];
    store(steps, delta);
    store(written, delta * x);
    for (int64_t i = 0; i < count; ++i) {
        const float *const before = s.h(text, first + i), *const rate = s.a[first + i];
        float* const after = s.last(text, first + i);
        Vec read = {};
        registers(s.a.cols, [&](int64_t k, auto n) {
            const Vec decay = exp(steps[i] * get(rate + k, n));
            const Vec now = decay * get(before + k, n) + written[i] * get(b + k, n);
            put(after + k, n, now);
            read += now * get(c + k, n);
        });
        store(lanes + i * width, read);
    }
    add_lanes(sums, lanes, count);
    put(s.y(text, 0) + first, count, get(s.d + first, count) * x + get(sums, count));
}

template <class T>
static inline void scan_one_token(const Scan<T>& s) {
    const int64_t channels = s.a.rows, states = s.a.cols, blocks = (channels + width - 1) / width;
    parallel_for(s.texts * blocks, (double)(states * width) * 16.0, [&](int64_t begin, int64_t end) {
        const Scratch<float> weights(2 * states);
        for (int64_t at = begin, known = -1; at < end; ++at) {
            const int64_t text = at / blocks, first = at % blocks * width, left = channels - first;
            if (text != known) {
                widened(weights.data, s.b(text, 0), states);
                widened(weights + states, s.c(text, 0), states);
                known = text;
            }
            scan_channels(s, text, first, left < width ? left : width, weights.data, weights + states);
        }
    });
}

template <class T>
static bool selective_scan(const Call& call) {
    const Scan<T> s{steps<T>(call, 0),
                    steps<float>(call, 1),
                    rows4<float>(call, 2),
                    steps<const T>(call, 3),
                    steps<const float>(call, 4),
                    rows<const float>(call, 5),
                    steps<const T>(call, 6),
                    steps<const T>(call, 7),
                    flat<const float>(call, 8),
                    steps<const float>(call, 9),
                    (int64_t)number(call, 0),
                    call.array[0].shape[0]};
    if (s.parts < 1) return false;
    if (s.x.steps == 1 && !s.starts.data) {
        scan_one_token(s);
        return true;
    }
    const int64_t channels = s.a.rows;
    const Rates rates(s.a);
    parallel_for(s.texts * groups_of(channels), group_bytes(s.x.steps + 1, s.a.cols),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t at = begin; at < end; ++at) {
                         const Channels group(at, channels);
                         scan_group(s, group, rates[group.index]);
                     }
                 });
    return true;
}
NN_KERNEL("selective_scan(x[B,T,C], delta[B,T,C]:float, a[C,N]:float, b[B,T,N], c[B,T,N], d[C]:float, "
          "h[B,C,N]:float, parts:P; keep=True) -> y[B,T,C], last[B,C,N]:float, starts[B,P,N,C]:float?keep",
          selective_scan, float, bf16)

}  // namespace nn::NN_LEVEL
