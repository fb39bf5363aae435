// The selective scan backwards, from u = dy and what reaches the last state; e_t = e^{delta_t a}:
//     dh_t = u_t c_t + e_{t+1} dh_{t+1},   dc_t = sum h_t u_t,   db_t = sum dh_t delta_t x_t
//     s_t = sum dh_t b_t,   m_t = dh_t e_t h_{t-1},   dx_t = d u_t + delta_t s_t
//     ddelta_t = sum m_t a + x_t s_t,   da = sum delta_t m_t
//
// As forward, a thread takes 64 channels of a text through all tokens; part by part from the last, whose
// states and decays it forms again from the state before it and keeps in the second cache.  dc and db are
// sums over channels: one number per group, added in the groups' order; da and dd of every text likewise.
#include "kernels/scan.h"

namespace nn::NN_LEVEL {

template <class T>
struct ScanBackward {
    Steps<T> dx;
    Steps<float> ddelta;
    Rows<float> da;
    Steps<T> db, dc;
    Flat<float> dd;
    Steps<float> dh;
    Steps<const T> dy;
    Steps<const float> dlast;
    Steps<const T> x;
    Steps<const float> delta;
    Rows<const float> a;
    Steps<const T> b, c;
    Flat<const float> d;
    Rows4<const float> starts;  // [B,P,N,C]
    float *da_of, *dd_of;       // [B][groups][N][64], [B][groups][64]
    float* of_states;           // [B][groups][T][2][N]: dc, then db
    int64_t states, tokens, groups;
};

// What one group keeps while it goes through a part
struct ScanMemory {
    int64_t states;
    Scratch<float> h, decays;   // [L+1][N][64], [L][N][64]
    Scratch<float> carry, da;   // [N][64]: what reaches the state before; the part's da
    Scratch<float> weights;     // b and c of a token
    Scratch<float> read, wrote; // [N][width]: dc and db, before their lanes are added
    ScanMemory(int64_t length, int64_t n)
        : states(n), h((length + 1) * n * together), decays(length * n * together), carry(n * together),
          da(n * together), weights(2 * n), read(n * width), wrote(n * width) {}
};

template <class T>
static inline void form_states(const ScanBackward<T>& s, const Channels& group, int64_t part, ScanPart at,
                               const float* rates, const ScanMemory& memory) {
    const int64_t states = s.states, size = states * together;
    for (int64_t k = 0; k < states; ++k)
        registers(group.count, [&](int64_t i, auto n) {
            store(memory.h + k * together + i, get(s.starts(group.batch, part, k) + group.first + i, n));
        });
    for (int64_t t = at.begin; t < at.end; ++t) {
        float *const before = memory.h + (t - at.begin) * size, *const after = before + size;
        float *const decays = memory.decays + (t - at.begin) * size, *const b = memory.weights.data;
        widened(b, s.b(group.batch, t), states);
        registers(group.count, [&](int64_t i, auto n) {
            const Vec delta = get(s.delta(group.batch, t) + group.first + i, n);
            const Vec written = delta * get(s.x(group.batch, t) + group.first + i, n);
            for (int64_t k = i; k < size; k += together) {
                const Vec decay = exp(delta * load(rates + k));
                store(decays + k, decay);
                store(after + k, decay * load(before + k) + written * b[k / together]);
            }
        });
    }
}

template <class T>
static inline void fetch_ahead(const ScanBackward<T>& s, const Channels& group, int64_t t) {
    if (t < 0) return;
    for (int64_t i = 0; i < group.count; i += 16) {
        __builtin_prefetch(s.dy(group.batch, t) + group.first + i);
        __builtin_prefetch(s.dx(group.batch, t) + group.first + i, 1);
        __builtin_prefetch(s.ddelta(group.batch, t) + group.first + i, 1);
    }
}

template <class T>
static inline void token_backward(const ScanBackward<T>& s, const Channels& group, int64_t t,
                                  const float* rates, const float* h, const float* decays,
                                  const ScanMemory& memory) {
    const int64_t states = s.states, size = states * together;
    float *const b = memory.weights.data, *const c = b + states;
    widened(b, s.b(group.batch, t), states);
    widened(c, s.c(group.batch, t), states);
    fetch_ahead(s, group, t - 2);
    memset(memory.read.data, 0, (size_t)(states * width) * sizeof(float));
    memset(memory.wrote.data, 0, (size_t)(states * width) * sizeof(float));
    float* const dd = s.dd_of + (group.batch * s.groups + group.index) * together;
    registers(group.count, [&](int64_t i, auto n) {
        const int64_t at = group.first + i;
        const Vec x = get(s.x(group.batch, t) + at, n), delta = get(s.delta(group.batch, t) + at, n);
        const Vec u = get(s.dy(group.batch, t) + at, n), written = delta * x;
        Vec sum = {}, ddelta = {};
        for (int64_t k = 0; k < states; ++k) {
            const int64_t own = k * together + i;
            const Vec dh = load(memory.carry + own) + u * c[k];
            const Vec kept = dh * load(decays + own), m = kept * load(h + own);
            store(memory.read + k * width, load(memory.read + k * width) + u * load(h + size + own));
            store(memory.wrote + k * width, load(memory.wrote + k * width) + written * dh);
            store(memory.da + own, load(memory.da + own) + delta * m);
            store(memory.carry + own, kept);
            sum += dh * b[k];
            ddelta += m * load(rates + own);
        }
        put(s.dx(group.batch, t) + at, n, get(s.d + at, n) * u + delta * sum);
        put(s.ddelta(group.batch, t) + at, n, ddelta + x * sum);
        store(dd + i, load(dd + i) + u * x);
    });
    float* const to = s.of_states + ((group.batch * s.groups + group.index) * s.tokens + t) * 2 * states;
    add_lanes(to, memory.read.data, states);
    add_lanes(to + states, memory.wrote.data, states);
}

template <class T>
static inline void group_backward(const ScanBackward<T>& s, const Channels& group, const float* rates) {
    const int64_t size = s.states * together, parts = s.starts.size[1];
    const ScanMemory memory((s.tokens + parts - 1) / parts, s.states);
    float* const da = s.da_of + (group.batch * s.groups + group.index) * size;
    memset(da, 0, (size_t)size * sizeof(float));
    memset(s.dd_of + (group.batch * s.groups + group.index) * together, 0, together * sizeof(float));
    channels_last(memory.carry.data, s.dlast(group.batch, group.first), s.dlast.stride[1], group.count,
                  s.states);
    for (int64_t part = parts; part-- > 0;) {
        const ScanPart at(part, parts, s.tokens);
        form_states(s, group, part, at, rates, memory);
        memset(memory.da.data, 0, (size_t)size * sizeof(float));
        for (int64_t t = at.end; t-- > at.begin;)
            token_backward(s, group, t, rates, memory.h + (t - at.begin) * size,
                           memory.decays + (t - at.begin) * size, memory);
        for (int64_t k = 0; k < size; k += width) store(da + k, load(da + k) + load(memory.da + k));
    }
    channels_first(s.dh(group.batch, group.first), s.dh.stride[1], memory.carry.data, group.count, s.states);
}

// da[C,N] and dd[C]: over the texts
template <class T>
static inline void add_texts(const ScanBackward<T>& s, int64_t texts) {
    const int64_t size = s.states * together;
    parallel_for(s.groups, (double)(texts * size) * 4.0, [&](int64_t begin, int64_t end) {
        const Scratch<float> total(size);
        for (int64_t g = begin; g < end; ++g) {
            const Channels group(g, s.a.rows);
            memset(total.data, 0, (size_t)size * sizeof(float));
            for (int64_t text = 0; text < texts; ++text)
                for (int64_t k = 0; k < size; k += width)
                    store(total + k, load(total + k) + load(s.da_of + (text * s.groups + g) * size + k));
            channels_first(s.da[group.first], s.da.stride, total.data, group.count, s.states);
            registers(group.count, [&](int64_t i, auto n) {
                Vec sum = {};
                for (int64_t text = 0; text < texts; ++text)
                    sum += load(s.dd_of + (text * s.groups + g) * together + i);
                put(s.dd + group.first + i, n, sum);
            });
        }
    });
}

// dc and db: over the groups of channels
template <class T>
static inline void add_groups(const ScanBackward<T>& s, int64_t texts) {
    parallel_for(texts * s.tokens, (double)(s.groups * s.states) * 8.0, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t text = row / s.tokens, t = row % s.tokens;
            const auto sum = [&](int64_t from, int64_t k, auto n) {
                Vec total = {};
                const float* const first = s.of_states + (text * s.groups * s.tokens + t) * 2 * s.states;
                for (int64_t g = 0; g < s.groups; ++g)
                    total += get(first + g * s.tokens * 2 * s.states + from + k, n);
                return total;
            };
            registers(s.states, [&](int64_t k, auto n) {
                put(s.dc(text, t) + k, n, sum(0, k, n));
                put(s.db(text, t) + k, n, sum(s.states, k, n));
            });
        }
    });
}

template <class T>
static bool selective_scan_backward(const Call& call) {
    const auto a = rows<const float>(call, 11);
    const auto dy = steps<const T>(call, 7);
    const int64_t texts = call.array[0].shape[0], groups = groups_of(a.rows), states = a.cols;
    const Rows4<const float> starts = rows4<const float>(call, 15);
    if (starts.size[1] < 1) return false;
    const Rates rates(a);
    const Scratch<float> da_of(texts * groups * together * states), dd_of(texts * groups * together),
        of_states(texts * groups * dy.steps * 2 * states);
    const ScanBackward<T> s{steps<T>(call, 0),
                            steps<float>(call, 1),
                            rows<float>(call, 2),
                            steps<T>(call, 3),
                            steps<T>(call, 4),
                            flat<float>(call, 5),
                            steps<float>(call, 6),
                            dy,
                            steps<const float>(call, 8),
                            steps<const T>(call, 9),
                            steps<const float>(call, 10),
                            a,
                            steps<const T>(call, 12),
                            steps<const T>(call, 13),
                            flat<const float>(call, 14),
                            starts,
                            da_of.data,
                            dd_of.data,
                            of_states.data,
                            states,
                            dy.steps,
                            groups};
    parallel_for(texts * groups, group_bytes(dy.steps + 1, 2 * states), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const Channels group(at, a.rows);
            group_backward(s, group, rates[group.index]);
        }
    });
    add_texts(s, texts);
    add_groups(s, texts);
    return true;
}
NN_KERNEL("selective_scan_backward(dy[B,T,C], dlast[B,C,N]:float, x[B,T,C], delta[B,T,C]:float, "
          "a[C,N]:float, b[B,T,N], c[B,T,N], d[C]:float, starts[B,P,N,C]:float) "
          "-> dx[B,T,C], ddelta[B,T,C]:float, da[C,N]:float, db[B,T,N], dc[B,T,N], "
          "dd[C]:float, dh[B,C,N]:float",
          selective_scan_backward, float, bf16)

}  // namespace nn::NN_LEVEL
