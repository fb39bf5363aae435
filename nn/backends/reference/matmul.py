"""Matrix products.  Half-precision inputs are multiplied in float32 and the result rounded once."""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def matmul(a: Array, b: Array) -> Array:
    """y[...,I,O] = a[...,I,J] b[...,J,O]"""
    return narrow(namespace(a).matmul(widen(a), widen(b)), a.dtype)


def linear(x: Array, weight: Array, *, bias: Array | None = None) -> Array:
    """y[R,O] = x[R,I] weight[O,I]ᵀ + bias[O]"""
    y = namespace(x).matmul(widen(x), widen(weight).T)
    if bias is not None:
        y += widen(bias)
    return narrow(y, x.dtype)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """(dx[R,I], dweight[O,I]), the latter not rounded"""
    xp, g = namespace(dy), widen(dy)
    return narrow(xp.matmul(g, widen(weight)), x.dtype), xp.matmul(g.T, widen(x))
