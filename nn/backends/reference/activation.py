"""Activations, each beside its derivative: SiLU, GELU (exact and tanh form), SwiGLU."""

import math
from typing import Any

from nn.backends.array_api import erf, namespace, sigmoid
from nn.dtypes import narrow, widen

Array = Any


def silu(x: Array) -> Array:
    """y = x σ(x)"""
    z = widen(x)
    return narrow(z * sigmoid(z), x.dtype)


def silu_backward(dy: Array, x: Array) -> Array:
    """dx = dy σ(x) (1 + x (1 − σ(x)))"""
    z = widen(x)
    s = sigmoid(z)
    return narrow(widen(dy) * (s * (1.0 + z * (1.0 - s))), x.dtype)


def gelu(x: Array) -> Array:
    """y = x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016)"""
    z = widen(x)
    return narrow(0.5 * z * (1.0 + erf(z * math.sqrt(0.5))), x.dtype)


def gelu_backward(dy: Array, x: Array) -> Array:
    """dx = dy (Φ(x) + x φ(x))"""
    z = widen(x)
    density = namespace(z).exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
    return narrow(widen(dy) * (0.5 * (1.0 + erf(z * math.sqrt(0.5))) + z * density), x.dtype)


_KAPPA = math.sqrt(2.0 / math.pi)


def _gelu_tanh_inner(z: Array) -> Array:
    return namespace(z).tanh(_KAPPA * z * (1.0 + 0.044715 * z * z))


def gelu_tanh(x: Array) -> Array:
    """y = ½ x (1 + t),  t = tanh(√(2/π) (x + 0.044715 x³))"""
    z = widen(x)
    return narrow(0.5 * z * (1.0 + _gelu_tanh_inner(z)), x.dtype)


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    """dx = dy (½(1 + t) + ½ x (1 − t²) √(2/π) (1 + 0.134145 x²))"""
    z = widen(x)
    t = _gelu_tanh_inner(z)
    slope = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * _KAPPA * (1.0 + 0.134145 * z * z)
    return narrow(widen(dy) * slope, x.dtype)


def swiglu(gate: Array, up: Array) -> Array:
    """y = SiLU(gate) ⊙ up (Shazeer 2020)"""
    a = widen(gate)
    y = sigmoid(a)
    y *= a
    y *= widen(up)
    return narrow(y, gate.dtype)


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """dgate = dy ⊙ up ⊙ SiLU'(gate),  dup = dy ⊙ SiLU(gate);  SiLU' = σ + SiLU (1 − σ)"""
    a, g = widen(gate), widen(dy)
    s = sigmoid(a)
    silu_a = a * s
    dup = silu_a * g
    silu_a *= 1.0 - s
    silu_a += s                      # now SiLU'(gate)
    silu_a *= g
    silu_a *= widen(up)
    return narrow(silu_a, gate.dtype), narrow(dup, up.dtype)


def swiglu_packed(x: Array) -> Array:
    """swiglu of the first and the second half of each row of x[R,2F]"""
    half = x.shape[-1] // 2
    return swiglu(x[:, :half], x[:, half:])


def swiglu_packed_backward(dy: Array, x: Array) -> Array:
    """[dgate, dup] side by side"""
    half = x.shape[-1] // 2
    return namespace(x).concat(list(swiglu_backward(dy, x[:, :half], x[:, half:])), axis=-1)
