"""Softmax and log-softmax over the last axis, each beside its backward.  A row of −inf gives 0, not NaN."""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def row_max(z: Array) -> Array:
    """[..., 1] maximum of each row, 0 where the row is empty or all −inf, so that z − max is never NaN."""
    xp = namespace(z)
    if z.shape[-1] == 0:
        return xp.zeros((*z.shape[:-1], 1), dtype=z.dtype)
    m = xp.max(z, axis=-1, keepdims=True)
    return xp.where(m == -xp.inf, xp.zeros_like(m), m)


def softmax(x: Array) -> Array:
    """y_j = exp(x_j − max) / Σ exp(x_i − max)"""
    xp = namespace(x)
    z = widen(x)
    y = xp.exp(z - row_max(z))
    total = xp.sum(y, axis=-1, keepdims=True, dtype=y.dtype)
    y /= xp.where(total == 0.0, xp.ones_like(total), total)
    return narrow(y, x.dtype)


def softmax_backward(dy: Array, y: Array) -> Array:
    """dx = y ⊙ (dy − Σ_j dy_j y_j)"""
    xp = namespace(y)
    p, g = widen(y), widen(dy)
    return narrow(p * (g - xp.sum(g * p, axis=-1, keepdims=True, dtype=p.dtype)), y.dtype)


def log_softmax(x: Array) -> Array:
    """y_j = x_j − max − log Σ exp(x_i − max); a row of −inf stays −inf"""
    xp = namespace(x)
    z = widen(x)
    z = z - row_max(z)
    total = xp.sum(xp.exp(z), axis=-1, keepdims=True, dtype=z.dtype)
    return narrow(z - xp.log(xp.where(total == 0.0, xp.ones_like(total), total)), x.dtype)


def log_softmax_backward(dy: Array, y: Array) -> Array:
    """dx = dy − exp(y) Σ_j dy_j"""
    xp = namespace(y)
    g = widen(dy)
    return narrow(g - xp.exp(widen(y)) * xp.sum(g, axis=-1, keepdims=True, dtype=g.dtype), y.dtype)
