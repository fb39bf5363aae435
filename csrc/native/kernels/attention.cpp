// Softmax attention, block by block, with no [T,S] in memory (FlashAttention-2, Dao 2023): over blocks of
// keys,
//     m' = max(m, max s),  l = l 2^(m - m') + sum p,  o = o 2^(m - m') + p v,  p = 2^(s - m'),  s = q k,
// scores in units of ln 2 / scale.  Blocks that no query of theirs sees are skipped.  One block of queries of
// one head is one piece of work; few queries over many keys go to attention_rows.h.
#include "kernels/attention_block.h"
#include "kernels/attention_rows.h"

namespace nn::NN_LEVEL {

// Running maximum and sum of a block of queries.
template <int most>
struct Running {
    Vec m[most], l[most];
};

// Scores to probabilities, in float32 in their place; o[channels][queries] is brought to the new maxima.
template <int most, class Word>
static inline void next_probabilities(Running<most>& run, const float* s, Word* p_units, int64_t count,
                                      int64_t vecs, float scale, float* o, int64_t channels) {
    const int64_t ld = vecs * width;
    for (int64_t v = 0; v < vecs; ++v) {
        const float* const column = s + v * width;
        Word* const to = p_units + v * width;
        Vec top = run.m[v], other = top;
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) {
            top = max(load(column + j * ld), top);
            other = max(load(column + (j + 1) * ld), other);
        }
        if (j < count) top = max(load(column + j * ld), top);
        top = max(top, other);
        const Vec base = pick(top == minus_infinity, Vec{}, top * scale);
        Vec total = {}, rest = {};
        for (j = 0; j + 2 <= count; j += 2) {
            const Vec p = power_of_two(load(column + j * ld) * scale - base),
                      next = power_of_two(load(column + (j + 1) * ld) * scale - base);
            put_keys(to, ld, j, p, next);
            total += p;
            rest += next;
        }
        if (j < count) {
            const Vec p = power_of_two(load(column + j * ld) * scale - base);
            put_last_key(to, ld, j, p);
            total += p;
        }
        pad_keys(to, ld, count);
        const Vec factor = power_of_two(run.m[v] * scale - base);
        run.l[v] = run.l[v] * factor + (total + rest);
        run.m[v] = top;
        if (smallest(factor) < 1.0f)
            for (int64_t c = 0; c < channels; ++c) {
                float* const at = o + c * ld + v * width;
                store(at, load(at) * factor);
            }
    }
}

template <class T>
struct Forward {
    Problem<T> p;
    Heads<T> o;
    float* lse;  // [B,H,T]
};

// One thread's memory: the operands and results of a block.
template <class E>
struct ForwardMemory {
    using Word = typename Shape<E>::Word;
    static constexpr int64_t lanes = Shape<E>::vecs * width;
    const Scratch<Word> q, pairs;
    const Scratch<float> s, o;
    ForwardMemory(int64_t size, int64_t value_size)
        : q(units<E>(size) * lanes),
          pairs(sizeof(E) == 4 ? 0 : units<E>(Shape<E>::keys) * lanes),
          s(Shape<E>::keys * lanes),
          o(round_up(value_size, 16) * lanes) {}
    Word* probabilities() const {
        if constexpr (sizeof(E) == 4)
            return s.data;
        else
            return pairs.data;
    }
};

template <class E, class T>
static inline void attend(const Forward<T>& a, const QueryBlock& block, const Source<E, T>& keys,
                          const Source<E, T>& values, const ForwardMemory<E>& own) {
    const Problem<T>& p = a.p;
    constexpr int most = Shape<E>::vecs;
    const int64_t vecs = block.vecs, ld = vecs * width, channels = p.v.width;
    const float scale = p.scale * log2_e;
    Running<most> run;
    for (int v = 0; v < most; ++v) run.m[v] = set(minus_infinity), run.l[v] = Vec{};
    rows_to_lanes<E>(own.q.data, vecs, p.q.row(block.b, block.h, block.t), p.q.stride, block.count,
                     p.q.width);
    bool started = false;
    for (int64_t key = block.low; key < block.high; key += Shape<E>::keys) {
        const int64_t left = block.high - key, count = left < Shape<E>::keys ? left : Shape<E>::keys;
        product(own.s.data, ld, keys.rows(block.b, block.g, key), own.q.data, ld, count, vecs,
                units<E>(p.q.width), false);
        hide(own.s.data, p, block, key, count);
        next_probabilities(run, own.s.data, own.probabilities(), count, vecs, scale, own.o.data,
                           started ? channels : 0);
        product(own.o.data, ld, values.columns(block.b, block.g, key), own.probabilities(), ld, channels,
                vecs, units<E>(count), started);
        started = true;
    }
    if (!started) memset(own.o.data, 0, (size_t)(channels * ld) * sizeof(float));
    float* const lse = a.lse + (block.b * p.q.heads + block.h) * p.q.length + block.t;
    Vec inverse[most];
    for (int64_t v = 0; v < vecs; ++v) {
        const Vec empty = Vec{} + (run.l[v] == 0.0f ? set(1.0f) : Vec{});
        inverse[v] = empty > 0.0f ? Vec{} : 1.0f / run.l[v];
        const Vec sum = run.m[v] * p.scale + natural_log(run.l[v]);
        const int64_t n = block.count - v * width;
        if (n > 0)  // tiles come in pairs of registers: the last may hold no query
            store(lse + v * width, empty > 0.0f ? set(minus_infinity) : sum, n < width ? n : width);
    }
    lanes_to_rows(a.o.row(block.b, block.h, block.t), a.o.stride, own.o.data, vecs, block.count, channels,
                  inverse);
}

template <class E, class T>
static inline void attend_all(const Forward<T>& a) {
    const Problem<T>& p = a.p;
    const Source<E, T> keys(p.k, true, false), values(p.v, false, true);
    const int64_t per_head = query_blocks<E>(p), per_batch = p.q.heads * per_head;
    const double work =
        (double)(Shape<E>::vecs * width) * (double)p.k.length * (double)(p.q.width + p.v.width);
    parallel_for(p.q.batch * per_batch, work / 8, [&](int64_t begin, int64_t end) {
        const AttentionTiles tiles_of_this_thread;
        const ForwardMemory<E> own(p.q.width, p.v.width);
        for (int64_t i = begin; i < end; ++i)
            attend(a, query_block<E>(p, i / per_batch, i % per_batch / per_head, i % per_head), keys, values,
                   own);
    });
}

constexpr int64_t few = 8;  // queries of a head for which a block would be mostly empty

template <class T>
static bool attention(const Call& call) {
    Forward<T> a{{}, heads<T>(call, 0), static_cast<float*>(call.array[1].data)};
    if (!take_problem(a.p, call, 2, 5)) return false;
    if (a.p.q.length < few && a.p.k.length > 0) {
        FewQueries<T> rows_of_queries{};
        rows_of_queries.o = a.o, rows_of_queries.lse = a.lse;
        rows_of_queries.q = a.p.q, rows_of_queries.k = a.p.k, rows_of_queries.v = a.p.v;
        rows_of_queries.sight = a.p.sight, rows_of_queries.mask = a.p.mask;
        rows_of_queries.scale = a.p.scale * log2_e;
        attend_few(rows_of_queries);
        return true;
    }
    attend_all<Element<T>>(a);
    return true;
}
NN_KERNEL(
    "attention(q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv]; scale, causal=True, window=0, mask[W,X,Y,Z]:bool=None) "
    "-> "
    "o[B,H,T,Dv], lse[B,H,T]:float",
    attention, float, bf16)

}  // namespace nn::NN_LEVEL
