"""Activations."""

import math

import numpy as np

from tests.conformance.naive.arithmetic import Array, erf, logistic


def silu(x: Array) -> Array:
    return x * logistic(x)


def silu_backward(dy: Array, x: Array) -> Array:
    s = logistic(x)
    return dy * (s + x * s * (x.dtype.type(1) - s))


def gelu(x: Array) -> Array:
    c = x.dtype.type
    return c(0.5) * x * (c(1) + erf(x * c(math.sqrt(0.5))))


def gelu_backward(dy: Array, x: Array) -> Array:
    c = x.dtype.type
    density = np.exp(-c(0.5) * x * x) * c(1 / math.sqrt(2 * math.pi))
    return dy * (c(0.5) * (c(1) + erf(x * c(math.sqrt(0.5)))) + x * density)


def gelu_tanh(x: Array) -> Array:
    c = x.dtype.type
    return c(0.5) * x * (c(1) + np.tanh(c(math.sqrt(2 / math.pi)) * (x + c(0.044715) * x * x * x)))


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    c, kappa = x.dtype.type, x.dtype.type(math.sqrt(2 / math.pi))
    t = np.tanh(kappa * (x + c(0.044715) * x * x * x))
    inner = kappa * (c(1) + c(3 * 0.044715) * x * x)
    return dy * (c(0.5) * (c(1) + t) + c(0.5) * x * (c(1) - t * t) * inner)


def swiglu(gate: Array, up: Array) -> Array:
    return silu(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    return silu_backward(dy * up, gate), dy * silu(gate)


def swiglu_packed(x: Array) -> Array:
    half = x.shape[1] // 2
    return swiglu(x[:, :half], x[:, half:])


def swiglu_packed_backward(dy: Array, x: Array) -> Array:
    half = x.shape[1] // 2
    return np.concatenate(swiglu_backward(dy, x[:, :half], x[:, half:]), axis=1)
