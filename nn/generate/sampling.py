"""From the logits of the last position to the next token.

Order: repetition penalty, temperature, top-k, top-p, min-p, draw.  Temperature 0 takes the argmax after the
penalty.  Ties go to the lowest token id.

Probabilities are integers: weight = round(exp(z) * 2^32) with z = (logit - largest logit) / temperature,
rounded to float32, and exp in float64; the likeliest token weighs 2^32.  Sums of integers do not depend on
their order, so a parallel prefix sum on a GPU finds the same nucleus and the same token as this file, and
no rounding can lead the draw to a token of weight 0.  The draw: r is one uint32 per row, from Philox with
the key derive(seed, "sampling") and the stream words (row, step); the token is the first, by id, at which
the running total of the weights exceeds floor(r * total / 2^32).

Try: python -c "from nn.generate import *; print(sample([[0, 1, 2]], [[]], SamplingConfig(), 0))" """

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nn import random
from nn.backends import kernels
from nn.backends.native.dense import takes
from nn.errors import InputError, NonFiniteError
from nn.generate.config import SamplingConfig

_ONE = 2.0**32  # weight of the likeliest token
_TINY = float(np.finfo(np.float32).tiny)  # smallest number that no hardware flushes to 0
_ID_BITS = 30  # a weight needs 33 bits, so 2^30 ids fit beside it in 63


def sample(
    logits: Any, history: Sequence[Any] | np.ndarray, config: SamplingConfig, step: int, *, rows: Any = None
) -> np.ndarray:
    """The next token of each row: logits [B,V], B sequences of earlier ids (prompt and generated) -> ids [B].

    `rows` names the rows for the random numbers, 0..B-1 by default: a row draws the same in any batch."""
    z = _checked(logits)  # [B,V]
    if config.repetition_penalty != 1:
        z = repetition_penalty(z, history, config.repetition_penalty)
    if config.temperature == 0:
        return z.argmax(axis=1)
    ids, z = top_k(temperature(z, config.temperature), config.top_k)  # [B,K], K = k or V
    w = min_p(top_p(weights(z), config.top_p), config.min_p)
    rows = np.arange(len(z)) if rows is None else np.asarray(rows)
    words = random.bits(random.derive(config.seed, "sampling"), rows, step)  # [B]
    drawn = draw(w, words)  # [B], index into K
    return drawn if ids is None else np.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]


def repetition_penalty(logits: np.ndarray, history: Sequence[Any] | np.ndarray, penalty: float) -> np.ndarray:
    """Divides the positive and multiplies the negative logits of the ids in a row's history, each id once
    (Keskar et al. 2019, section 4.1, made sign-aware: a penalty above 1 never makes a token likelier)."""
    out = logits.copy()
    for row, ids in zip(out, history, strict=True):
        ids = _ids(ids, len(row))
        z = row[ids]
        row[ids] = np.where(z < 0, z * penalty, z / penalty)  # a repeated id writes the same value again
    return out


def temperature(logits: np.ndarray, t: float) -> np.ndarray:
    """(z - max z) / t.  The maximum goes first: a tiny t drives the others to -inf, and nothing to +inf."""
    with np.errstate(over="ignore"):
        z = logits - logits.max(axis=1, keepdims=True)
        z /= np.float32(max(t, _TINY))
    return z


def top_k(logits: np.ndarray, k: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Exactly the k largest of each row, ties to the lowest id: (ids [B,k] ascending, their logits [B,k]).
    k = 0 or k >= V is off: (None, logits)."""
    size = logits.shape[1]
    if not 0 < k < size:
        return None, logits
    if takes(logits):
        ids = kernels.top_k(logits, k)
        return ids, np.take_along_axis(logits, ids, axis=1)
    cuts = np.partition(logits, size - k, axis=1)[:, size - k]
    ids = np.array([_largest(row, cut, k) for row, cut in zip(logits, cuts, strict=True)], dtype=np.int64)
    ids = ids.reshape(-1, k)  # for a batch of none
    return ids, np.take_along_axis(logits, ids, axis=1)


def weights(logits: np.ndarray) -> np.ndarray:
    """round(exp(z) * 2^32) as int64, for z <= 0 with a 0 in each row (what `temperature` returns)."""
    w = np.exp(logits, dtype=np.float64)
    w *= _ONE
    return np.rint(w, out=w).astype(np.int64)


def top_p(weights: np.ndarray, p: float) -> np.ndarray:
    """Zeroes all but the nucleus (Holtzman et al. 2020): the shortest prefix, by weight descending then id
    ascending, that holds at least the share p of the row's total."""
    if p >= 1:
        return weights
    kept = np.zeros_like(weights)
    for row, out in zip(weights, kept, strict=True):
        ids = _nucleus(row, p)
        out[ids] = row[ids]
    return kept


def min_p(weights: np.ndarray, p: float) -> np.ndarray:
    """Zeroes weights under p times the likeliest token's (Nguyen et al. 2024)."""
    return np.where(weights >= np.rint(p * _ONE), weights, 0) if p > 0 else weights


def draw(weights: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The first index whose running total exceeds floor(word * total / 2^32), exact in 64 bits.

    That floor is at most total - 1, so there is always such an index, and its weight is positive."""
    running = weights.cumsum(axis=1).view(np.uint64)  # [B,K]
    total, words = running[:, -1], words.astype(np.uint64)
    target = words * (total >> 32) + (words * (total & 0xFFFFFFFF) >> 32)  # word * total: up to 96 bits
    return (running > target[:, None]).argmax(axis=1)


def _nucleus(weights: np.ndarray, p: float) -> np.ndarray:
    """Ids of one row's nucleus."""
    total = int(weights.sum())
    need = math.ceil(p * total)
    # tokens of at most (total - need) / V weigh at most total - need together: none of them is needed
    ids = np.flatnonzero(weights > (total - need) // len(weights))
    low = (1 << _ID_BITS) - 1
    # one integer to sort by: weight descending, then id ascending; five times faster than a stable argsort
    order = np.sort(weights[ids] << _ID_BITS | low - ids)[::-1]
    size = np.searchsorted((order >> _ID_BITS).cumsum(), need) + 1
    return low - (order[:size] & low)


def _largest(row: np.ndarray, cut: Any, k: int) -> np.ndarray:
    """Ascending ids of the k largest entries, given the k-th largest value."""
    above = np.flatnonzero(row > cut)
    equal = np.flatnonzero(row == cut)[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _ids(ids: Any, size: int) -> np.ndarray:
    ids = np.asarray(ids, dtype=np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise InputError(f"history: ids from {ids.min()} to {ids.max()}; the vocabulary ends at {size - 1}")
    return ids


def _checked(logits: Any) -> np.ndarray:
    """float32 [B,V] whose rows each have a finite maximum: no NaN, no +inf, not all -inf."""
    z = np.asarray(logits, dtype=np.float32)
    if z.ndim != 2 or z.shape[1] == 0:
        raise InputError(f"logits: shape {list(z.shape)} is not [batch, vocabulary]")
    bad = np.flatnonzero(~np.isfinite(z.max(axis=1)))  # the maximum of a row with a NaN is NaN
    if bad.size:
        row = z[bad[0]]
        what = "NaN" if np.isnan(row).any() else "+inf" if (row > 0).any() else "nothing above -inf"
        raise NonFiniteError(f"sample: the logits of row {bad[0]} hold {what}; no token can be chosen")
    return z
