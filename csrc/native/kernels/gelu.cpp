// GELU (Hendrycks & Gimpel 2016), exact and by tanh, each beside its derivative.
//     gelu(x) = x Phi(x);                         gelu' = Phi + x phi
//     gelu_tanh(x) = x s, s = sigmoid(2u),  u = k (x + 0.044715 x^3), k = sqrt(2/pi):  (1 + tanh u)/2 = s,
//         which does not cancel where x is negative;   ' = s + 2 x s (1 - s) k (1 + 0.134145 x^2)
#include "kernels/kernel.h"

namespace nn::NN_LEVEL {

constexpr double normal_bytes = 12;  // of time, for an exponential, a division and a polynomial
constexpr float kappa = 0.79788456080286536f, root_2pi = 0.39894228040143268f;  // sqrt(2/pi), 1/sqrt(2 pi)

struct Exact {
    static Vec value(Vec x) { return x * normal(x).below; }
    static Vec slope(Vec x) {
        const Normal at = normal(x);
        return at.below + x * at.e * root_2pi;
    }
};

struct ByTanh {
    static Vec half(Vec x) { return sigmoid(2.0f * kappa * x * (1.0f + 0.044715f * x * x)); }
    static Vec value(Vec x) { return x * half(x); }
    static Vec slope(Vec x) {
        x = x > 30.0f ? set(30.0f) : x;  // 1 from there on, 0 below; x^2 does not overflow
        x = x < -30.0f ? set(-30.0f) : x;
        const Vec s = half(x);
        return s + x * s * (1.0f - s) * (2.0f * kappa) * (1.0f + 0.134145f * x * x);
    }
};

template <class Form, class T>
static inline bool forward(const Call& call) {
    const auto y = flat<T>(call, 0);
    const auto x = flat<const T>(call, 1);
    elements(x.size, normal_bytes + 2 * sizeof(T),
             [&](int64_t i, auto n) { put(y + i, n, Form::value(get(x + i, n))); });
    return true;
}

template <class Form, class T>
static inline bool backward(const Call& call) {
    const auto dx = flat<T>(call, 0);
    const auto dy = flat<const T>(call, 1), x = flat<const T>(call, 2);
    elements(x.size, normal_bytes + 3 * sizeof(T),
             [&](int64_t i, auto n) { put(dx + i, n, get(dy + i, n) * Form::slope(get(x + i, n))); });
    return true;
}

template <class T>
static bool gelu(const Call& call) {
    return forward<Exact, T>(call);
}
NN_KERNEL("gelu(x[...]) -> y[...]", gelu, float, bf16)

template <class T>
static bool gelu_backward(const Call& call) {
    return backward<Exact, T>(call);
}
NN_KERNEL("gelu_backward(dy[...], x[...]) -> dx[...]", gelu_backward, float, bf16)

template <class T>
static bool gelu_tanh(const Call& call) {
    return forward<ByTanh, T>(call);
}
NN_KERNEL("gelu_tanh(x[...]) -> y[...]", gelu_tanh, float, bf16)

template <class T>
static bool gelu_tanh_backward(const Call& call) {
    return backward<ByTanh, T>(call);
}
NN_KERNEL("gelu_tanh_backward(dy[...], x[...]) -> dx[...]", gelu_tanh_backward, float, bf16)

}  // namespace nn::NN_LEVEL
