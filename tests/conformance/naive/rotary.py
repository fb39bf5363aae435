"""Rotary position embedding."""

import numpy as np

from tests.conformance.naive.arithmetic import Array


def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool = False, inverse: bool = False) -> Array:
    y, half = x.copy(), cos.shape[-1]
    cos = np.broadcast_to(cos, (*x.shape[:3], half)).astype(x.dtype)
    sin = np.broadcast_to(-sin if inverse else sin, (*x.shape[:3], half)).astype(x.dtype)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        y[..., a] = x[..., a] * cos[..., i] - x[..., b] * sin[..., i]
        y[..., b] = x[..., a] * sin[..., i] + x[..., b] * cos[..., i]
    return y


def rope_at(x: Array, cos: Array, sin: Array, positions: Array, *, interleaved: bool = False) -> Array:
    y = np.zeros_like(x)
    for b, start in enumerate(positions):
        near = slice(start, start + x.shape[2])
        y[b : b + 1] = rope(x[b : b + 1], cos[near], sin[near], interleaved=interleaved)
    return y
