// From logits to the next token: the largest, or a draw among what top-k, top-p and min-p leave.
//     weight = round(2^32 exp((logit - largest) / temperature)); the first index whose running total of
//     weights exceeds floor(word total / 2^32), word by Philox 4x32-10 (Salmon et al. 2011), as in
//     nn/random.py
// Weights are integers: their sums depend on no order, and rows are cut in pieces for several threads.
#include "kernels/largest.h"

namespace nn::NN_LEVEL {

constexpr int64_t piece = 4096;       // elements that one thread takes at a time
constexpr int64_t group = 4 * width;  // elements whose exponentials are formed together
// per element, as parallel_for counts: a comparison runs from the second cache, and 200 KB of logits are done
// before another thread would have begun; an exponential takes longer
constexpr double most_bytes = 1, weight_bytes = 8;

struct Choice {
    float temperature;
    int64_t k;  // 0: all
    double top_p;
    uint64_t least;  // weight, by min-p
};

static inline int64_t pieces_of(int64_t count) { return (count + piece - 1) / piece; }

// body(piece, begin, end)
template <class F>
static inline void for_pieces(int64_t count, double bytes, const F& body) {
    const double each = bytes * (double)(count < piece ? count : piece);
    parallel_for(pieces_of(count), each, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
            const int64_t stop = (p + 1) * piece;
            body(p, p * piece, stop < count ? stop : count);
        }
    });
}

static inline bool any(Bits lanes) {
    uint32_t found = 0;
    for (int lane = 0; lane < width; ++lane) found |= lanes[lane];
    return found != 0;
}

template <class T>
static inline bool any_nan(const T* z, int64_t count) {
    Bits strange = {};
    registers(count, [&](int64_t i, auto n) {
        const Vec v = get(z + i, n);
        strange |= (Bits)(v != v);
    });
    return any(strange);
}

// The largest; NaN if any is.  Whether all are finite is asked first, which is one addition a register: 0 v
// is NaN for the others, -inf of a mask among them, and for those alone.
template <class T>
static inline float most_of(const T* z, int64_t count) {
    const Vec lowest = set(-INFINITY);
    Vec most[4] = {lowest, lowest, lowest, lowest}, zero[4] = {};
    const auto look = [&](int chain, Vec v) {
        most[chain] = max(v, most[chain]);
        zero[chain] += v * 0.0f;
    };
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width)
        for (int c = 0; c < 4; ++c) look(c, get(z + i + c * width, All{}));
    for (; i + width <= count; i += width) look(0, get(z + i, All{}));
    if (i < count) {
        const Vec rest = get(z + i, count - i);  // 0 beyond
        most[1] = max(first_lanes(rest, count - i, lowest), most[1]);
        zero[1] += rest * 0.0f;
    }
    const bool finite = sum((zero[0] + zero[1]) + (zero[2] + zero[3])) == 0.0f;
    if (!finite && any_nan(z, count)) return NAN;
    return largest(max(max(most[0], most[1]), max(most[2], most[3])));
}

// The first index of a value that is there.
template <class T>
static inline int64_t first_of(const T* z, int64_t count, float value) {
    int64_t at = 0;
    for (; at + group <= count; at += group) {
        Bits found = {};
        for (int64_t i = at; i < at + group; i += width) found |= (Bits)(get(z + i, All{}) == value);
        if (any(found)) break;
    }
    while (at + 1 < count && get(z + at, (int64_t)1)[0] != value) ++at;
    return at;
}

// round(2^32 exp x) for x <= 0, ties to even: exp in double precision by 2^n e^r, |r| <= ln 2 / 2, and
// Taylor's polynomial of degree 13, whose error is 4e-18.  Numbers below -40 weigh 0.
// No branch: loops become vectors.
static inline uint64_t weight_of(float z) {
    constexpr double to_integer = 0x1.8p52, one = 0x1p52;
    const double x = z > -40.0f ? (double)z : -40.0;
    const double shifted = x * 0x1.71547652b82fep0 + to_integer, n = shifted - to_integer;
    const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double e = 1.0 / 6227020800;
    e = e * r + 1.0 / 479001600, e = e * r + 1.0 / 39916800, e = e * r + 1.0 / 3628800;
    e = e * r + 1.0 / 362880, e = e * r + 1.0 / 40320, e = e * r + 1.0 / 5040, e = e * r + 1.0 / 720;
    e = e * r + 1.0 / 120, e = e * r + 1.0 / 24, e = e * r + 1.0 / 6, e = e * r + 0.5;
    e = e * r + 1.0, e = e * r + 1.0;
    const uint64_t power = (__builtin_bit_cast(uint64_t, shifted) << 52) + ((uint64_t)(1023 + 32) << 52);
    const double scaled = e * __builtin_bit_cast(double, power) + one;  // its low bits are the integer
    return __builtin_bit_cast(uint64_t, scaled) - __builtin_bit_cast(uint64_t, one);
}

// w[i] for [begin, end) of value(i, n); their sum
template <class F>
static inline uint64_t weigh(uint64_t* w, int64_t begin, int64_t end, const F& value) {
    uint64_t total = 0;
    float z[group];
    for (int64_t i = begin; i < end; i += group) {
        const int64_t count = end - i < group ? end - i : group;
        registers(count, [&](int64_t at, auto n) { put(z + at, n, value(i + at, n)); });
        if (count == group)
            for (int64_t at = 0; at < group; ++at) total += w[i + at] = weight_of(z[at]);
        else
            for (int64_t at = 0; at < count; ++at) total += w[i + at] = weight_of(z[at]);
    }
    return total;
}

struct Kept {  // what weighs more than `above`, and what weighs as much up to index `last`
    uint64_t above = 0;
    int64_t last = -1;
};

// Of the listed, those with the digit at which the sums of falling digits reach `need`; its value.  `held`
// takes what the digits above it sum to.
template <class F>
static inline uint64_t narrowed(uint64_t* list, int64_t& listed, uint64_t& held, uint64_t need,
                                const F& digit_of) {
    constexpr int64_t digits = 2048;
    const Scratch<uint64_t> sums(2 * digits);  // two of each: a sum is not waited for by the next one's
    for (int64_t d = 0; d < 2 * digits; ++d) sums[d] = 0;
    for (int64_t i = 0; i < listed; ++i) sums[2 * (int64_t)digit_of(list[i]) + (i & 1)] += list[i];
    uint64_t digit = digits - 1;
    for (; digit > 0; --digit) {
        const uint64_t sum = sums[2 * (int64_t)digit] + sums[2 * (int64_t)digit + 1];
        if (held + sum >= need) break;
        held += sum;
    }
    int64_t left = 0;
    for (int64_t i = 0; i < listed; ++i) {
        const uint64_t one = list[i];
        list[left] = one, left += digit_of(one) == digit;
    }
    listed = left;
    return digit;
}

// Exponent and five bits more of a weight of at least 1: weights spread over these whatever their size.
static inline uint64_t coarse(uint64_t weight) {
    return ((__builtin_bit_cast(uint64_t, (double)(int64_t)weight) >> 47) - (1022 << 5)) & 2047;
}

// The shortest prefix, by falling weight, then rising index, that holds the share p of the total: its
// smallest weight is found digit by digit among those that could be in it.
static inline Kept nucleus(const uint64_t* w, int64_t count, uint64_t total, double p) {
    const double share = __builtin_ceil(p * (double)total);
    if (!(share <= (double)total) || (uint64_t)share > total) return {};
    const uint64_t need = (uint64_t)share, least = (total - need) / (uint64_t)count;
    const Scratch<uint64_t> list(count + group);
    int64_t listed = 0;
    for (int64_t i = 0; i < count; i += group) {
        const int64_t stop = i + group < count ? i + group : count;
        uint64_t any = 0;
        for (int64_t at = i; at < stop; ++at) any |= w[at] > least;
        if (!any) continue;
        for (int64_t at = i; at < stop; ++at) list[listed] = w[at], listed += w[at] > least;
    }
    uint64_t held = 0, smallest = 0;
    narrowed(list.data, listed, held, need, coarse);
    for (int shift = 22; shift >= 0; shift -= 11)
        smallest |= narrowed(list.data, listed, held, need,
                             [=](uint64_t weight) { return weight >> shift & 2047; })
                    << shift;
    if (smallest == 0) return {};
    int64_t ties = (int64_t)((need - held + smallest - 1) / smallest), last = -1;
    if (ties >= listed) return {smallest - 1, -1};
    while (ties > 0 && ++last < count) ties -= w[last] == smallest;
    return {smallest, last};
}

// Zeroes what is not kept or weighs less than `least`.
static inline void filter(uint64_t* w, uint64_t* sums, int64_t count, const Kept& kept, uint64_t least) {
    for_pieces(count, weight_bytes, [&](int64_t p, int64_t begin, int64_t end) {
        uint64_t total = 0;
        for (int64_t i = begin; i < end; ++i) {
            const uint64_t one = w[i];
            const bool in = ((one > kept.above) | ((one == kept.above) & (i <= kept.last))) & (one >= least);
            total += w[i] = in ? one : 0;
        }
        sums[p] = total;
    });
}

static inline uint64_t sum_of(const uint64_t* sums, int64_t count) {
    uint64_t total = 0;
    for (int64_t p = 0; p < count; ++p) total += sums[p];
    return total;
}

// Index of the draw among `count` candidates of which value(i, n) gives (logit - largest) / temperature.
template <class F>
static inline int64_t drawn_from(int64_t count, uint64_t word, const Choice& choice, const F& value) {
    const int64_t pieces = pieces_of(count);
    const Scratch<uint64_t> w(count), sums(pieces);
    for_pieces(count, weight_bytes,
               [&](int64_t p, int64_t begin, int64_t end) { sums[p] = weigh(w.data, begin, end, value); });
    if (choice.top_p < 1.0 || choice.least > 0) {
        const uint64_t all = sum_of(sums.data, pieces);
        const Kept kept = choice.top_p < 1.0 ? nucleus(w.data, count, all, choice.top_p) : Kept{};
        filter(w.data, sums.data, count, kept, choice.least);
    }
    const uint64_t total = sum_of(sums.data, pieces);
    const uint64_t target = word * (total >> 32) + (word * (total & 0xffffffffu) >> 32);  // of up to 96 bits
    uint64_t before = 0;
    int64_t p = 0;
    for (; p + 1 < pieces && before + sums[p] <= target; ++p) before += sums[p];
    int64_t i = p * piece;
    for (; i + 1 < count && before + w[i] <= target; ++i) before += w[i];
    return i;
}

static inline uint32_t random_word(uint64_t key, uint32_t row, uint32_t step) {
    uint32_t c0 = 0, c1 = row, c2 = step, c3 = 0, k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        const uint64_t p0 = (uint64_t)c0 * 0xd2511f53u, p1 = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
    }
    return c0;
}

template <class T>
static inline int64_t token_of(const T* z, int64_t count, const Choice& choice, const Ints& counter) {
    const Scratch<float> most_in(pieces_of(count));
    for_pieces(count, most_bytes,
               [&](int64_t p, int64_t begin, int64_t end) { most_in[p] = most_of(z + begin, end - begin); });
    float most = most_in[0];
    int64_t where = 0;
    for (int64_t p = 0; p < pieces_of(count); ++p) {
        if (most_in[p] != most_in[p]) return -1;
        if (most_in[p] > most) most = most_in[p], where = p;
    }
    if (!(most > -INFINITY && most < INFINITY)) return -1;
    if (choice.temperature == 0.0f) {
        const int64_t begin = where * piece, rest = count - begin;
        return begin + first_of(z + begin, rest < piece ? rest : piece, most);
    }
    const auto value = [&](int64_t i, auto n) { return (get(z + i, n) - most) / choice.temperature; };
    const uint64_t word = random_word((uint64_t)counter[0], (uint32_t)counter[1], (uint32_t)counter[2]);
    if (choice.k == 0 || choice.k >= count) return drawn_from(count, word, choice, value);
    const Scratch<int64_t> ids(choice.k);
    const Scratch<float> kept(choice.k);
    {
        const Scratch<Found> heap(choice.k);
        row_top_k(ids.data, count, heap.data, choice.k, value);
    }
    for (int64_t i = 0; i < choice.k; ++i) kept[i] = value(ids[i], (int64_t)1)[0];
    return ids[drawn_from(choice.k, word, choice, [&](int64_t i, auto n) { return get(kept + i, n); })];
}

template <class T>
static bool next_token(const Call& call) {
    const auto ids = flat<int64_t>(call, 0);
    const auto z = rows<const T>(call, 1);
    const Array& counters = call.array[2];
    const double hot = number(call, 0), k = number(call, 1), share = number(call, 2), least = number(call, 3);
    if (counters.dtype == DType::i32 || z.cols < 1 || z.cols >= (int64_t)1 << 30) return false;
    if (!(hot >= 0.0 && hot <= 0x1p127 && k >= 0.0 && share > 0.0 && least <= 1.0)) return false;
    for (int64_t r = 0; r < z.rows; ++r)
        for (int word = 1; word < 3; ++word)
            if ((uint64_t)int_row(counters, r)[word] >> 32) return false;
    constexpr double tiny = 0x1p-126;  // the smallest that no hardware flushes to 0
    Choice choice;
    choice.temperature = hot == 0.0 ? 0.0f : (float)(hot < tiny ? tiny : hot);
    choice.k = k >= (double)z.cols ? 0 : (int64_t)k;
    choice.top_p = share;
    choice.least = least > 0.0 ? (uint64_t)__builtin_rint(least * 0x1p32) : 0;
    // one row's pieces are spread over threads, several rows whole
    parallel_for(z.rows, (double)z.cols * weight_bytes, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) ids[r] = token_of(z[r], z.cols, choice, int_row(counters, r));
    });
    return true;
}
NN_KERNEL("next_token(z[B,V], counters[B,3]:int; temperature=1, top_k=0, top_p=1, min_p=0) -> ids[B]:int",
          next_token, float, bf16)

}  // namespace nn::NN_LEVEL
