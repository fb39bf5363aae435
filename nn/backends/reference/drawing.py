"""Drawing the next token, on the host: temperature, top-k, top-p, min-p, draw.  Ties go to the lowest id.

Probabilities are integers: weight = round(exp(z) * 2^32) with z = (logit - largest logit) / temperature,
rounded to float32, and exp in float64; the likeliest token weighs 2^32.  Sums of integers do not depend on
their order, so a parallel prefix sum on a GPU finds the same nucleus and the same token as this file, and
no rounding can lead the draw to a token of weight 0.  The draw: r is one uint32 per row, from Philox with
the key derive(seed, "sampling") and the stream words (row, step); the token is the first, by id, at which
the running total of the weights exceeds floor(r * total / 2^32).

Try: python -c "import numpy as np; from nn.backends.reference import next_token as n;
print(n(np.array([[0.0, 1.0, 2.0]]), np.array([[7, 0, 0]])))" """

import math
from typing import Any

import numpy as np

from nn import random
from nn.backends.array_api import namespace, on_device

Array = Any
_ONE = 2.0**32  # weight of the likeliest token
_TINY = float(np.finfo(np.float32).tiny)  # smallest number that no hardware flushes to 0
_ID_BITS = 30  # a weight needs 33 bits, so 2^30 ids fit beside it in 63


def next_token(z: Array, counters: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
               min_p: float = 0.0) -> Array:
    """ids[B] int64 for logits z[B,V] and counters[B,3] of (key, row, step), of any array module: computed on
    the host, in float32.  Temperature 0 takes the largest; -1 where a row's largest is not finite."""
    xp, logits = namespace(z), _on_host(z).astype(np.float32)
    ids = np.full(len(logits), -1, np.int64)
    for row, counter in enumerate(_on_host(counters)):
        one = logits[row : row + 1]
        if np.isfinite(one.max()):                      # the maximum of a row with a NaN is NaN
            ids[row] = (one.argmax() if temperature == 0 else
                        _drawn(one, counter, temperature, top_k, top_p, min_p))
    return xp.asarray(ids)


def _drawn(logits: np.ndarray, counter: np.ndarray, t: float, k: int, p: float, least: float) -> int:
    ids, z = largest(cooled(logits, t), k)  # [1,K], K = k or V
    word = random.bits(int(counter[0]) % 2**64, int(counter[1]), int(counter[2]))
    place = int(draw(min_p(top_p(weights(z), p), least), word[None])[0])
    return place if ids is None else int(ids[0, place])


def _on_host(array: Array) -> np.ndarray:
    return array.numpy() if on_device(array) else np.asarray(array)


def cooled(logits: np.ndarray, t: float) -> np.ndarray:
    """(z - max z) / t.  The maximum goes first: a tiny t drives the others to -inf, and nothing to +inf."""
    with np.errstate(over="ignore"):
        z = logits - logits.max(axis=1, keepdims=True)
        z /= np.float32(max(t, _TINY))
    return z


def largest(logits: np.ndarray, k: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Exactly the k largest of each row, ties to the lowest id: (ids [B,k] ascending, their logits [B,k]).
    k = 0 or k >= V is off: (None, logits)."""
    size = logits.shape[1]
    if not 0 < k < size:
        return None, logits
    cuts = np.partition(logits, size - k, axis=1)[:, size - k]
    ids = np.array([_largest(row, cut, k) for row, cut in zip(logits, cuts, strict=True)], dtype=np.int64)
    ids = ids.reshape(-1, k)  # for a batch of none
    return ids, np.take_along_axis(logits, ids, axis=1)


def weights(logits: np.ndarray) -> np.ndarray:
    """round(exp(z) * 2^32) as int64, for z <= 0 with a 0 in each row (what `cooled` returns)."""
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
