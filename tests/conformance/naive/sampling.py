"""The next token: its candidates and the draw."""

import math
from typing import Any

import numpy as np

from tests.conformance.naive.arithmetic import Array, philox_word


def top_k(z: Array, k: int) -> Array:
    rows = (sorted(sorted(range(z.shape[1]), key=lambda i: (-float(row[i]), i))[:k]) for row in z)
    return np.array(list(rows), np.int64).reshape(len(z), k)


def next_token(z: Array, counters: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
               min_p: float = 0.0) -> Array:
    return np.array([_token([np.float32(v) for v in row], counter, temperature, top_k, top_p, min_p)
                     for row, counter in zip(z, counters, strict=True)], np.int64)


def _token(z: list[Any], counter: Array, t: float, k: int, p: float, least: float) -> int:
    most = max(z)
    if any(v != v for v in z) or most in (np.inf, -np.inf):
        return -1
    if t == 0.0:
        return z.index(most)
    with np.errstate(over="ignore"):
        cold = [(v - most) / np.float32(max(t, 2.0**-126)) for v in z]
    ids = sorted(sorted(range(len(z)), key=lambda i: (-cold[i], i))[: k or len(z)])
    weights = {i: round(math.exp(float(cold[i])) * 2**32) for i in ids}
    need, held, kept = math.ceil(p * sum(weights.values())), 0, []
    for i in sorted(ids, key=lambda i: (-weights[i], i)):
        kept += [i] if p == 1.0 or held < need else []
        held += weights[i]
    left = [i for i in sorted(kept) if weights[i] >= round(least * 2**32)]
    word = philox_word(np.array([*counter, 0]), 0)
    target, running = word * sum(weights[i] for i in left) // 2**32, 0
    for i in left:
        running += weights[i]
        if running > target:
            return i
    raise AssertionError("nothing was drawn")
