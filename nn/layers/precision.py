"""Casts between the type that values are stored in and the one that sums and small maps are formed in."""

from typing import Any

from nn.dtypes import widen
from nn.tensor import Tensor


def cast_to(x: Tensor, dtype: Any) -> Tensor:
    """x itself if it is of that type already"""
    return x if x.dtype == dtype else x.cast(dtype)


def widened(x: Tensor) -> Tensor:
    """In the type that sums are formed in: float32 for what is stored in half precision"""
    return cast_to(x, widen(x.data[:0, ...]).dtype)
