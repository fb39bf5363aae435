"""Attention, head by head, and its cache."""

from functools import cache

import numpy as np

from tests.conformance.naive.arithmetic import Array, accumulator, product, total


@cache
def reach(length: int, keys: int, causal: bool, window: int) -> Array:
    """[T,S], key by key: query i stands at position S − T + i"""
    see = np.ones((length, keys), bool)
    for i in range(length):
        position = keys - length + i
        for j in range(keys):
            after = causal and j > position
            outside = window > 0 and (position - j >= window or (not causal and j - position >= window))
            see[i, j] = not (after or outside)
    return see


def visible(q: Array, k: Array, causal: bool, window: int, mask: Array | None) -> Array:
    see = np.broadcast_to(reach(q.shape[2], k.shape[2], causal, window), (*q.shape[:3], k.shape[2]))
    return see if mask is None else see & np.broadcast_to(mask, see.shape)


def _probabilities(q: Array, k: Array, see: Array, scale: float) -> tuple[Array, Array]:
    """(P[T,S], lse[T]) of one head"""
    s = np.where(see, product(q, k.T) * q.dtype.type(scale), q.dtype.type(-np.inf))
    largest = np.max(s, axis=-1, keepdims=True, initial=-np.inf).astype(s.dtype)
    largest = np.where(np.isneginf(largest), np.zeros_like(largest), largest)
    e = np.exp(s - largest)
    denominator = total(e)
    empty = denominator == 0
    safe = np.where(empty, np.ones_like(denominator), denominator)
    lse = np.where(empty, q.dtype.type(-np.inf), largest + np.log(safe))
    return e / safe, lse[:, 0]


def attention(q: Array, k: Array, v: Array, *, scale: float, causal: bool = True, window: int = 0,
              mask: Array | None = None) -> tuple[Array, Array]:
    see, repeat = visible(q, k, causal, window, mask), q.shape[1] // k.shape[1]
    o, lse = np.zeros((*q.shape[:3], v.shape[-1]), q.dtype), np.zeros(q.shape[:3], q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            p, lse[b, h] = _probabilities(q[b, h], k[b, h // repeat], see[b, h], scale)
            o[b, h] = product(p, v[b, h // repeat])
    return o, lse


def attention_backward(do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, *, scale: float,
                       causal: bool = True, window: int = 0,
                       mask: Array | None = None) -> tuple[Array, Array, Array]:
    see, repeat = visible(q, k, causal, window, mask), q.shape[1] // k.shape[1]
    wide = accumulator(q.dtype)
    dq, dk, dv = np.zeros_like(q), np.zeros(k.shape, wide), np.zeros(v.shape, wide)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // repeat
            p, _ = _probabilities(q[b, h], k[b, g], see[b, h], scale)
            dp = product(do[b, h], v[b, g].T)
            ds = p * (dp - total(p * dp)) * q.dtype.type(scale)
            dq[b, h] = product(ds, k[b, g])
            dk[b, g] += product(ds.T, q[b, h])
            dv[b, g] += product(p.T, do[b, h])
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)


def decode_attention(q: Array, k: Array, v: Array, lengths: Array, *, scale: float, window: int = 0) -> Array:
    rows = [attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], scale=scale, window=window)[0]
            for b, n in enumerate(lengths)]
    return np.concatenate(rows) if rows else np.zeros((*q.shape[:3], v.shape[3]), q.dtype)


def cache_append(k_cache: Array, v_cache: Array, k: Array, v: Array, lengths: Array) -> tuple[Array, Array]:
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    for b, n in enumerate(lengths):
        for t in range(k.shape[2]):
            if n + t < k_cache.shape[2]:
                k_cache[b, :, n + t], v_cache[b, :, n + t] = k[b, :, t], v[b, :, t]
    return k_cache, v_cache
