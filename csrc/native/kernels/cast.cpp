// From one storage type to the other: exactly, or to nearest with ties to even.
#include "kernels/stream.h"

namespace nn::NN_LEVEL {

template <class To, class T>
static inline bool convert(const Call& call) {
    const auto y = flat<To>(call, 0);
    const auto x = flat<const T>(call, 1);
    fill(y, sizeof(To) + sizeof(T), [&](int64_t i, auto n) { return get(x + i, n); });
    return true;
}

template <class T>
static bool widen(const Call& call) {
    return convert<float, T>(call);
}
NN_KERNEL("widen(x[...]) -> y[...]:float", widen, float, bf16)

template <class T>
static bool to_bfloat16(const Call& call) {
    return convert<bf16, T>(call);
}
NN_KERNEL("to_bfloat16(x[...]) -> y[...]:bfloat16", to_bfloat16, float, bf16)

}  // namespace nn::NN_LEVEL
