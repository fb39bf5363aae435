"""Sums, products, casts and copies."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, total


def add(a: Array, b: Array) -> Array:
    return a + b


def mul(a: Array, b: Array) -> Array:
    return a * b


def add_row(x: Array, row: Array) -> Array:
    return x + row


def mul_row(x: Array, row: Array) -> Array:
    return x * row


def scale(x: Array, factor: float) -> Array:
    return (x * x.dtype.type(factor)).astype(x.dtype)


def accumulate(sum_: Array, x: Array) -> Array:
    return sum_ + x


def widen(x: Array) -> Array:
    return x.copy()


def to_bfloat16(x: Array) -> Array:
    """By bits: half of what is cut off is added, or one less than half where the rest is even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000
    return np.where(np.isfinite(x), bits.astype(np.uint32).view(np.float32), x).astype(x.dtype)


def contiguous(x: Array) -> Array:
    return np.array([[[list(row) for row in head] for head in text] for text in x], x.dtype).reshape(x.shape)


def column_sum(x: Array) -> Array:
    return total(x, axis=0, keepdims=False)
