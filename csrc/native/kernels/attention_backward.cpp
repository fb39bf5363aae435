// Gradients of softmax attention from the saved log-sum-exp L (FlashAttention-2, Dao 2023), block by block:
//     p = e^(scale q k - L),  D = sum do o,  ds = p (do v - D),
//     dv = pT do,  dk = scale dsT q,  dq = scale ds k.
//
// The blocks of queries of a key head, over all query heads of its group, are cut into parts that the shapes
// alone decide; each part sums its own dk and dv, which are then added in the parts' order.
#include "kernels/attention_block.h"

namespace nn::NN_LEVEL {

template <class T>
struct Backward {
    Problem<T> p;
    Heads<T> dq, dk, dv;
    Heads<const T> o, grad;
    const float* lse;
    int64_t lse_stride[3];
    int64_t size, value_size;  // channels of q and k, and of v, padded to registers
    int64_t length;            // keys, padded to tiles
    int64_t parts;             // per key head
    int64_t part_floats() const { return length * (size + value_size); }
};

// One thread's memory.
template <class E>
struct BackwardMemory {
    using Word = typename Shape<E>::Word;
    static constexpr int64_t lanes = Shape<E>::vecs * width, block = Shape<E>::keys * lanes;
    static constexpr int64_t copies = sizeof(E) == 4 ? 0 : block;
    const Scratch<Word> q_lanes, grad_lanes, q_units, grad_units, pairs;
    const Scratch<E> p, ds;
    const Scratch<float> s, dp, dq;
    BackwardMemory(int64_t size, int64_t value_size)
        : q_lanes(units<E>(size) * lanes),
          grad_lanes(units<E>(value_size) * lanes),
          q_units(units<E>(lanes) * size),
          grad_units(units<E>(lanes) * value_size),
          pairs(sizeof(E) == 4 ? 0 : units<E>(Shape<E>::keys) * lanes),
          p(copies),
          ds(copies),
          s(block),
          dp(block),
          dq(round_up(size, 16) * lanes) {}
};

// What the probabilities and their gradients need of every query: L / ln 2 and D.
template <int most>
struct PerQuery {
    Vec lse[most], delta[most];
};

// A query that is not there, or saw nothing, has no probabilities: L = inf.
template <int most, class T>
static inline PerQuery<most> per_query(const Backward<T>& a, const QueryBlock& block) {
    float lse[most * width], delta[most * width];
    for (int64_t i = 0; i < most * width; ++i) {
        lse[i] = -minus_infinity, delta[i] = 0.0f;
        if (i >= block.count) continue;
        const int64_t t = block.t + i;
        const float given =
            a.lse[block.b * a.lse_stride[0] + block.h * a.lse_stride[1] + t * a.lse_stride[2]];
        if (given == minus_infinity) continue;
        const T *const o = a.o.row(block.b, block.h, t), *const grad = a.grad.row(block.b, block.h, t);
        lse[i] = given * log2_e;
        delta[i] = row_sum(a.o.width, [&](int64_t c, auto n) { return get(o + c, n) * get(grad + c, n); });
    }
    PerQuery<most> found;
    for (int v = 0; v < most; ++v)
        found.lse[v] = load(lse + v * width), found.delta[v] = load(delta + v * width);
    return found;
}

// p and ds [key][query] as the products take them: as left operands, a key per row, and ds over keys, too.
template <class E>
struct Gradients;
template <>
struct Gradients<float> {  // in place of the scores and of dp
    float *p, *ds, *units_of_ds;
    int64_t ld;
    explicit Gradients(const BackwardMemory<float>& own, int64_t lanes)
        : p(own.s.data), ds(own.dp.data), units_of_ds(ds), ld(lanes) {}
    void put(int64_t at, Vec p_here, Vec ds_here) const {
        store(p + at, p_here);
        store(ds + at, ds_here);
    }
    void put_pair(int64_t, int64_t, Vec, Vec) const {}
    void pad(int64_t) const {}
};
template <>
struct Gradients<bf16> {
    bf16 *p, *ds;
    uint32_t* units_of_ds;
    int64_t ld;
    explicit Gradients(const BackwardMemory<bf16>& own, int64_t lanes)
        : p(own.p.data), ds(own.ds.data), units_of_ds(own.pairs.data), ld(lanes) {}
    void put(int64_t at, Vec p_here, Vec ds_here) const {
        store(p + at, p_here);
        store(ds + at, ds_here);
    }
    void put_pair(int64_t j, int64_t lane, Vec ds_here, Vec next) const {
        put_keys(units_of_ds + lane, ld, j, ds_here, next);
    }
    void pad(int64_t count) const {
        const int64_t more = round_up(count, Shape<bf16>::whole) - count;
        memset(p + count * ld, 0, (size_t)(more * ld) * sizeof(bf16));
        memset(ds + count * ld, 0, (size_t)(more * ld) * sizeof(bf16));
        for (int64_t lane = 0; lane < ld; lane += width) pad_keys(units_of_ds + lane, ld, count);
    }
};

// s -> p, dp -> ds
template <int most, class E>
static inline void gradients_of_scores(const Gradients<E>& to, const float* s, const float* dp,
                                       const PerQuery<most>& of, int64_t count, float scale) {
    for (int64_t lane = 0, v = 0; lane < to.ld; lane += width, ++v) {
        const auto probability = [&](int64_t at) { return power_of_two(load(s + at) * scale - of.lse[v]); };
        const auto slope = [&](int64_t at, Vec p) { return p * (load(dp + at) - of.delta[v]); };
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) {
            const int64_t at = j * to.ld + lane, after = at + to.ld;
            const Vec p = probability(at), next_p = probability(after);
            const Vec ds = slope(at, p), next_ds = slope(after, next_p);
            to.put(at, p, ds);
            to.put(after, next_p, next_ds);
            to.put_pair(j, lane, ds, next_ds);
        }
        if (j < count) {
            const int64_t at = j * to.ld + lane;
            const Vec p = probability(at), ds = slope(at, p);
            to.put(at, p, ds);
            to.put_pair(j, lane, ds, Vec{});
        }
    }
    to.pad(count);
}

template <class E, class T>
struct Operands {
    Source<E, T> keys, values;
    explicit Operands(const Problem<T>& p) : keys(p.k, true, true), values(p.v, true, false) {}
};

// One block of queries with all keys that it sees; adds to dk and dv, [length][channels].
template <class E, class T>
static inline void block_backward(const Backward<T>& a, const QueryBlock& block, const Operands<E, T>& of,
                                  const BackwardMemory<E>& own, float* dk, float* dv) {
    const Problem<T>& p = a.p;
    constexpr int most = Shape<E>::vecs;
    const int64_t vecs = block.vecs, ld = vecs * width, b = block.b, g = block.g, size = p.q.width;
    const T *const q = p.q.row(b, block.h, block.t), *const grad = a.grad.row(b, block.h, block.t);
    rows_to_lanes<E>(own.q_lanes.data, vecs, q, p.q.stride, block.count, size);
    rows_to_lanes<E>(own.grad_lanes.data, vecs, grad, a.grad.stride, block.count, p.v.width);
    rows_as_units<E>(own.q_units.data, a.size, q, p.q.stride, block.count, size);
    rows_as_units<E>(own.grad_units.data, a.value_size, grad, a.grad.stride, block.count, p.v.width);
    const PerQuery<most> per = per_query<most>(a, block);
    const Gradients<E> found(own, ld);
    const int64_t q_units = units<E>(size), v_units = units<E>(p.v.width), along = units<E>(block.count);
    bool started = false;
    for (int64_t key = block.low; key < block.high; key += Shape<E>::keys) {
        const int64_t left = block.high - key, count = left < Shape<E>::keys ? left : Shape<E>::keys;
        product(own.s.data, ld, of.keys.rows(b, g, key), own.q_lanes.data, ld, count, vecs, q_units, false);
        product(own.dp.data, ld, of.values.rows(b, g, key), own.grad_lanes.data, ld, count, vecs, v_units,
                false);
        hide(own.s.data, p, block, key, count);
        gradients_of_scores(found, own.s.data, own.dp.data, per, count, p.scale * log2_e);
        product(dv + key * a.value_size, a.value_size, Left<E>{found.p, ld, 1}, own.grad_units.data,
                a.value_size, count, a.value_size / width, along, true);
        product(dk + key * a.size, a.size, Left<E>{found.ds, ld, 1}, own.q_units.data, a.size, count,
                a.size / width, along, true);
        product(own.dq.data, ld, of.keys.columns(b, g, key), found.units_of_ds, ld, size, vecs,
                units<E>(count), started);
        started = true;
    }
    if (!started) memset(own.dq.data, 0, (size_t)(size * ld) * sizeof(float));
    Vec scale[most];
    for (Vec& one : scale) one = set(p.scale);
    lanes_to_rows(a.dq.row(b, block.h, block.t), a.dq.stride, own.dq.data, vecs, block.count, size, scale);
}

// to's rows = the parts' rows, added in order, times factor
template <class T>
static inline void add_parts(const Heads<T>& to, const float* from, int64_t ld, int64_t parts,
                             int64_t part_floats, float factor) {
    const int64_t per_batch = to.heads * to.length;
    parallel_for(to.batch * per_batch, (double)(parts * ld) * 4, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t head = r / to.length, t = r % to.length;
            const float* const first = from + head * parts * part_floats + t * ld;
            T* const row = to.row(r / per_batch, head % to.heads, t);
            registers(to.width, [&](int64_t i, auto n) {
                Vec sum = {};
                for (int64_t part = 0; part < parts; ++part) sum += load(first + part * part_floats + i);
                put(row + i, n, sum * factor);
            });
        }
    });
}

template <class E, class T>
static inline void backward_all(const Backward<T>& a) {
    const Problem<T>& p = a.p;
    const Operands<E, T> of(p);
    const int64_t per_head = query_blocks<E>(p), groups = p.k.heads, blocks = p.repeat() * per_head;
    const Scratch<float> sums(p.q.batch * groups * a.parts * a.part_floats());
    const double work =
        (double)(blocks * Shape<E>::vecs * width / a.parts) * (double)p.k.length * (double)a.size;
    parallel_for(p.q.batch * groups * a.parts, work, [&](int64_t begin, int64_t end) {
        const AttentionTiles tiles_of_this_thread;
        const BackwardMemory<E> own(a.size, a.value_size);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / a.parts / groups, g = i / a.parts % groups, part = i % a.parts;
            float *const dk = sums + i * a.part_floats(), *const dv = dk + a.length * a.size;
            memset(dk, 0, (size_t)a.part_floats() * sizeof(float));
            for (int64_t at = blocks * part / a.parts; at < blocks * (part + 1) / a.parts; ++at)
                block_backward(a, query_block<E>(p, b, g * p.repeat() + at / per_head, at % per_head), of,
                               own, dk, dv);
        }
    });
    add_parts(a.dk, sums.data, a.size, a.parts, a.part_floats(), p.scale);
    add_parts(a.dv, sums + a.length * a.size, a.value_size, a.parts, a.part_floats(), 1.0f);
}

template <class T>
static bool attention_backward(const Call& call) {
    using E = Element<T>;
    constexpr int64_t wanted = 16;  // pieces of work, where there are so many blocks of queries
    Backward<T> a{};
    if (!take_problem(a.p, call, 4, 9)) return false;
    a.dq = heads<T>(call, 0), a.dk = heads<T>(call, 1), a.dv = heads<T>(call, 2);
    a.grad = heads<const T>(call, 3), a.o = heads<const T>(call, 7);
    a.lse = static_cast<const float*>(call.array[8].data);
    for (int i = 0; i < 3; ++i) a.lse_stride[i] = call.array[8].stride[i];
    a.size = padded(a.p.q.width), a.value_size = padded(a.p.v.width);
    a.length = round_up(a.p.k.length, 32);
    const int64_t heads_of_keys = a.p.q.batch * a.p.k.heads, blocks = a.p.repeat() * query_blocks<E>(a.p);
    const int64_t each = heads_of_keys ? (wanted + heads_of_keys - 1) / heads_of_keys : 1;
    a.parts = each < blocks ? each : blocks > 0 ? blocks : 1;
    backward_all<E>(a);
    return true;
}
NN_KERNEL(
    "attention_backward(do[B,H,T,Dv], q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv], o[B,H,T,Dv], lse[B,H,T]:float; "
    "scale, "
    "causal=True, window=0, mask[W,X,Y,Z]:bool=None) -> dq[B,H,T,D], dk[B,G,S,D], dv[B,G,S,Dv]",
    attention_backward, float, bf16)

}  // namespace nn::NN_LEVEL
