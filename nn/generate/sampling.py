"""From the logits of the last position to the next token.

Order: repetition penalty, temperature, top-k, top-p, min-p, draw.  Temperature 0 takes the argmax after the
penalty.  Ties go to the lowest token id.

What is drawn, by which random number, to the bit: nn/backends/reference/drawing.py, the kernel `next_token`.

Try: python -c "from nn.generate import *; print(sample([[0, 1, 2]], [[]], SamplingConfig(), 0))" """

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nn import random
from nn.backends import forced, kernels, native
from nn.backends.reference import drawing
from nn.errors import InputError, NonFiniteError
from nn.generate.config import SamplingConfig

HOST = (None, "native", "reference")       # backends asked for that take NumPy arrays


def sample(
    logits: Any, history: Sequence[Any] | np.ndarray, config: SamplingConfig, step: int, *, rows: Any = None
) -> np.ndarray:
    """The next token of each row: logits [B,V], B sequences of earlier ids (prompt and generated) -> ids [B].

    `rows` names the rows for the random numbers, 0..B-1 by default: a row draws the same in any batch."""
    z = _matrix(logits)  # [B,V]
    if config.repetition_penalty != 1:
        z = repetition_penalty(_checked(z), history, config.repetition_penalty)
    counters = np.zeros((len(z), 3), np.int64)
    if config.temperature:
        counters[:, 0], counters[:, 2] = _key(int(config.seed)), step
        counters[:, 1] = np.arange(len(z)) if rows is None else rows
    next_token = kernels.next_token if forced() in HOST else drawing.next_token
    ids: np.ndarray = next_token(z, counters, temperature=float(config.temperature), top_k=int(config.top_k),
                                 top_p=float(config.top_p), min_p=float(config.min_p))
    if min(ids.tolist(), default=0) < 0:
        _checked(z)
    return ids


def repetition_penalty(logits: np.ndarray, history: Sequence[Any] | np.ndarray, penalty: float) -> np.ndarray:
    """Divides the positive and multiplies the negative logits of the ids in a row's history, each id once
    (Keskar et al. 2019, section 4.1, made sign-aware: a penalty above 1 never makes a token likelier)."""
    out = logits.copy()
    for row, ids in zip(out, history, strict=True):
        ids = _ids(ids, len(row))
        z = row[ids]
        row[ids] = np.where(z < 0, z * penalty, z / penalty)  # a repeated id writes the same value again
    return out


def _ids(ids: Any, size: int) -> np.ndarray:
    ids = np.asarray(ids, dtype=np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise InputError(f"history: ids from {ids.min()} to {ids.max()}; the vocabulary ends at {size - 1}")
    return ids


@lru_cache
def _key(seed: int) -> int:
    """The key's bits as an int64."""
    return int(random.counter(seed, "sampling")[0])


def _matrix(logits: Any) -> np.ndarray:
    """[B,V] of the types that native kernels are for, float32 where it was another."""
    as_it_is = type(logits) is np.ndarray and logits.dtype in native.DTYPES
    z: np.ndarray = logits if as_it_is else np.asarray(logits, dtype=np.float32)
    if z.ndim != 2 or z.shape[1] == 0:
        raise InputError(f"logits: shape {list(z.shape)} is not [batch, vocabulary]")
    return z


def _checked(logits: np.ndarray) -> np.ndarray:
    """float32 [B,V] whose rows each have a finite maximum: no NaN, no +inf, not all -inf."""
    z = np.asarray(logits, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(z.max(axis=1)))  # the maximum of a row with a NaN is NaN
    if bad.size:
        row = z[bad[0]]
        what = "NaN" if np.isnan(row).any() else "+inf" if (row > 0).any() else "nothing above -inf"
        raise NonFiniteError(f"sample: the logits of row {bad[0]} hold {what}; no token can be chosen")
    return z
