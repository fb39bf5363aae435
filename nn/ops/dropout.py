"""Dropout (Srivastava et al. 2014, inverted): parts are left out at random, what stays keeps the mean.

What is left out is a function of a counter and of the place in the array (nn/random.py), so that a step run
again, by gradient checkpointing or after an interruption, leaves out the same."""

from typing import Any

import numpy as np

from nn.backends.array_api import beside
from nn.dtypes import is_half
from nn.ops.elementwise import cast, mul
from nn.random import drawn_from
from nn.tensor import Array, Tensor


def keep_mask(shape: tuple[int, ...], p: float, noise: Any, like: Array) -> Array:
    """M / (1 − p), where `like` is and in its type, float32 for half precision: M is 0 with probability p,
    else 1; zeros for p = 1"""
    kind = np.float32 if is_half(like.dtype) else like.dtype
    place = noise.numpy() if hasattr(noise, "numpy") else noise
    kept = drawn_from(place, shape) >= p
    return beside((kept / (1.0 - p) if p < 1.0 else kept * 0.0).astype(kind), like)


def dropout(x: Tensor, p: float, noise: Array) -> Tensor:
    """y = x ⊙ M / (1 − p),  M keeps an element with probability 1 − p:  dx = dy ⊙ M / (1 − p)

    noise: where M is drawn, a nn.random.counter.  p = 0: x itself, nothing is drawn."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p = {p} is not in [0, 1]")
    if not p:
        return x
    mask = Tensor(keep_mask(tuple(x.shape), p, noise, x.data))
    y = mul(cast(x, mask.dtype), mask)
    return y if y.dtype == x.dtype else cast(y, x.dtype)
