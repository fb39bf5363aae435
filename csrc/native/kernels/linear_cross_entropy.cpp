// Cross-entropy of x weightT and its gradients, chunk by chunk of rows, never all logits.
// Per chunk: logits = x weightT in float32; a pass over each row for its loss that leaves dlogits in their
// place (bfloat16: beside them, rounded); dx = dlogits weight; dweight += dlogitsT x in float32, chunks in
// order.
#include "kernels/loss_math.h"
#include "kernels/stream.h"
#include "kernels/gemm/matrix.h"

namespace nn::NN_LEVEL {

constexpr int64_t logits_at_once = 1 << 25;  // 128 MiB: the weight is packed anew for every chunk

struct Labels {
    Ints targets;
    LossOptions options;
    float upstream;  // of every row's loss
};

template <class T>
static inline void zero(T* row, int64_t cols) {
    memset(row, 0, (size_t)cols * sizeof(T));
}

// The loss of one row of logits z, which are changed; `next` is fetched meanwhile.
static inline float row_forward(float* z, const float* next, int64_t cols, int64_t target,
                                const LossOptions& o) {
    if (target == o.ignore_index) return 0.0f;
    if (o.softcap != 0.0f)
        registers(cols, [&](int64_t i, auto n) { put(z + i, n, capped(get(z + i, n), o.softcap)); });
    const auto value = [&](int64_t i, auto n) { return get(z + i, n); };
    const float most = finite_max(row_max(cols, value));
    const float lse = logf(row_exp_sum(cols, most, [&](int64_t i, auto n) {
                          fetch(next + i);
                          return value(i, n);
                      })) + most;
    return row_loss(lse, z[target], o.smoothing != 0.0f ? row_sum(cols, value) : 0.0f, cols, o);
}

// The same, and the gradient; d may be z.  Without a cap the exponentials are formed once and kept in z.
template <class T>
static inline float row_both(T* d, float* z, const float* next, int64_t cols, int64_t target,
                             const LossOptions& o, float upstream) {
    if (target == o.ignore_index) return zero(d, cols), 0.0f;
    const auto value = [&](int64_t i, auto n) { return get(z + i, n); };
    if (o.softcap != 0.0f)
        registers(cols, [&](int64_t i, auto n) { put(z + i, n, capped(get(z + i, n), o.softcap)); });
    const float most = finite_max(row_max(cols, value)), own = z[target];
    const float all = o.smoothing != 0.0f ? row_sum(cols, value) : 0.0f;
    const float own_slope = (o.smoothing - 1.0f) * upstream, share = o.smoothing / (float)cols;
    float lse;
    if (o.softcap != 0.0f) {
        lse = logf(row_exp_sum(cols, most, value)) + most;
        const auto at = [&](int64_t i, auto n, float label) {
            const Vec c = get(z + i, n);
            return through_cap(slope(c, lse, upstream, o, share) + label, c, o.softcap);
        };
        const Vec at_target = at(target, (int64_t)1, own_slope);
        registers(cols, [&](int64_t i, auto n) { put(d + i, n, at(i, n, 0.0f)); });
        put(d + target, (int64_t)1, at_target);
    } else {
        const float sum = row_sum(cols, [&](int64_t i, auto n) {
            fetch(next + i);
            const Vec e = exp(get(z + i, n) - most);
            put(z + i, n, e);
            return (int64_t)n == width ? e : first_lanes(e, n, Vec{});
        });
        lse = logf(sum) + most;
        const float factor = (1.0f + 2.0f * o.z_loss * lse) / sum * upstream, less = share * upstream;
        const Vec at_target = get(z + target, (int64_t)1) * factor + (own_slope - less);
        registers(cols, [&](int64_t i, auto n) { put(d + i, n, get(z + i, n) * factor - less); });
        put(d + target, (int64_t)1, at_target);
    }
    return row_loss(lse, own, all, cols, o);
}

// Where a chunk's dlogits lie: float32 in the logits' place, bfloat16 in memory of their own.
static inline float* gradient_place(float* logits, const Scratch<float>&) { return logits; }
static inline bf16* gradient_place(float*, const Scratch<bf16>& own) { return own.data; }

template <class T>
struct Gradients {
    Rows<T> dx;
    Rows<float> dweight;
};

// Rows [first, first + count)
template <class T>
static inline void chunk_of_rows(const Flat<float>& loss, const Rows<const T>& x, const Rows<const T>& weight,
                                 const Labels& labels, const Gradients<T>* wanted, float* logits, T* dlogits,
                                 int64_t first, int64_t count) {
    const int64_t vocabulary = weight.rows, width_of_x = x.cols;
    const Rows<const T> part{x[first], count, x.cols, x.stride};
    product(logits, vocabulary, plain(part), transposed(weight), count, vocabulary, width_of_x);
    parallel_for(count, (double)vocabulary * 2 * (exp_bytes + sizeof(T)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            float *const z = logits + r * vocabulary, *const next = r + 1 < count ? z + vocabulary : z;
            const int64_t target = labels.targets[first + r];
            const LossOptions& o = labels.options;
            loss[first + r] = wanted ? row_both(dlogits + r * vocabulary, z, next, vocabulary, target, o,
                                                labels.upstream)
                                     : row_forward(z, next, vocabulary, target, o);
        }
    });
    if (!wanted) return;
    const Matrix<T> d{dlogits, vocabulary, 1}, transposed_d{dlogits, 1, vocabulary};
    product(wanted->dx[first], wanted->dx.stride, d, plain(weight), count, width_of_x, vocabulary);
    product(wanted->dweight.data, wanted->dweight.stride, transposed_d, plain(part), vocabulary, width_of_x,
            count, nullptr, first > 0);
}

// Rows per chunk: as even as multiples of 32 allow.
static inline int64_t rows_at_once(int64_t rows_of_x, int64_t vocabulary) {
    const int64_t most = logits_at_once / vocabulary, fit = most < 32 ? 32 : most;
    const int64_t chunks = (rows_of_x + fit - 1) / fit;
    return chunks ? ((rows_of_x + chunks - 1) / chunks + 31) / 32 * 32 : 32;
}

template <class T>
static bool linear_cross_entropy(const Call& call) {
    const auto loss = flat<float>(call, 0);
    const Gradients<T> gradients{rows<T>(call, 1), rows<float>(call, 2)};
    const auto x = rows<const T>(call, 3), weight = rows<const T>(call, 4);
    const Labels labels{ints(call, 5), loss_options(call, 1), (float)number(call, 5)};
    const bool wanted = number(call, 0) != 0.0;
    const int64_t vocabulary = weight.rows;
    if (vocabulary == 0 || x.cols == 0 ||
        !targets_fit(labels.targets, vocabulary, labels.options.ignore_index) ||
        !can_multiply(plain(x), transposed(weight), x.rows, vocabulary, x.cols))
        return false;
    const int64_t at_once = rows_at_once(x.rows, vocabulary), most = at_once < x.rows ? at_once : x.rows;
    const Scratch<float> logits(most * vocabulary);
    const Scratch<T> own(wanted && sizeof(T) != sizeof(float) ? most * vocabulary : 1);
    for (int64_t first = 0; first < x.rows; first += at_once)
        chunk_of_rows(loss, x, weight, labels, wanted ? &gradients : nullptr, logits.data,
                      gradient_place(logits.data, own), first, x.rows - first < most ? x.rows - first : most);
    if (wanted && x.rows == 0) zero(gradients.dweight.data, vocabulary * x.cols);
    return true;
}
NN_KERNEL(
    "linear_cross_entropy(x[R,D], weight[V,D], targets[R]:int; gradient=True, ignore_index=-100, "
    "label_smoothing=0, z_loss=0, softcap=0, scale=1) -> "
    "loss[R]:float, dx[R,D]?gradient, dweight[V,D]:float?gradient",
    linear_cross_entropy, float, bf16)

}  // namespace nn::NN_LEVEL
