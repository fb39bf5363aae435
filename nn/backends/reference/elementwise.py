"""Sums and products of arrays alike, with a row or a number; casts between storage types; sums over rows."""

from typing import Any

import ml_dtypes
import numpy as np

from nn.backends.array_api import namespace
from nn.dtypes import is_half

Array = Any


def add(a: Array, b: Array) -> Array:
    """y = a + b"""
    return a + b


def mul(a: Array, b: Array) -> Array:
    """y = a ⊙ b"""
    return a * b


def add_row(x: Array, row: Array) -> Array:
    """y = x + row, for every row of x[...,D]"""
    return x + row


def mul_row(x: Array, row: Array) -> Array:
    """y = x ⊙ row, for every row of x[...,D]"""
    return x * row


def scale(x: Array, factor: float) -> Array:
    """y = factor x, rounded once"""
    return _cast(_wide(x) * float(factor), x.dtype)


def accumulate(total: Array, x: Array) -> None:
    """total += x in place; total may be float32 where x is in half precision"""
    total += _cast(x, total.dtype)


def widen(x: Array) -> Array:
    """x in float32 if it is in half precision, a copy of it otherwise"""
    y = _wide(x)
    return namespace(x).asarray(x, copy=True) if y is x else y


def to_bfloat16(x: Array) -> Array:
    """x rounded to nearest, ties to even"""
    return namespace(x).astype(x, np.dtype(ml_dtypes.bfloat16))


def contiguous(x: Array) -> Array:
    """A copy, laid out densely"""
    xp = namespace(x)
    return xp.reshape(xp.asarray(xp.reshape(x, (-1,)), copy=True), x.shape)


def column_sum(x: Array) -> Array:
    """s = Σ_r x[r] of x[R,D]"""
    z = _wide(x)
    return namespace(x).sum(z, axis=0, dtype=z.dtype)


# As nn.dtypes' functions, which let kernels do this.

def _wide(x: Array) -> Array:
    return _cast(x, np.dtype(np.float32)) if is_half(x.dtype) else x


def _cast(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else namespace(x).astype(x, dtype)
