"""Softmax attention for grouped query heads, block by block, and its backward from the saved log-sum-exp.

Query i stands at position S − T + i (bottom-right alignment), so a cached prefix needs no special case.  With
s = scale q kᵀ on visible keys, L = log Σ exp s, P = exp(s − L):  O = P V, and (Dao 2023, FlashAttention-2)
    Δ = Σ dO ⊙ O,  dV = Pᵀ dO,  dS = P ⊙ (dO Vᵀ − Δ),  dQ = scale dS K,  dK = scale dSᵀ Q.
A query that sees no key gives O = 0, L = −inf and no gradient.  Memory: O(BLOCK · S) scores at a time.
"""

from collections.abc import Iterator
from typing import Any

from nn.backends.array_api import namespace
from nn.backends.reference.softmax import row_max
from nn.dtypes import narrow, widen

Array = Any
BLOCK = 128      # queries handled together


def attention(q: Array, k: Array, v: Array, *, scale: float, causal: bool = True, window: int = 0,
              mask: Array | None = None) -> tuple[Array, Array]:
    """(o[B,H,T,Dv], lse[B,H,T]) from q[B,H,T,Dk], k[B,G,S,Dk], v[B,G,S,Dv].

    Query head h reads key head h // (H/G).
    causal: key j is visible to position p if j ≤ p.
    window > 0: and p − window < j (Mistral's sliding window).
    mask: boolean, broadcastable to [B,H,T,S]; True keeps."""
    xp = namespace(q)
    outputs, sums = [], []
    queries, keys, values = widen(q) * scale, widen(k), widen(v)
    for block in _blocks(q, k, causal, window):
        s = _scores(queries, keys, block, causal, window, mask)             # [B,G,R*Tb,n]
        m = row_max(s)
        s -= m
        p = xp.exp(s)
        total = xp.sum(p, axis=-1, keepdims=True, dtype=p.dtype)
        empty = total == 0.0
        safe = xp.where(empty, xp.ones_like(total), total)
        o = xp.matmul(p, values[:, :, block.lo : block.hi, :])
        o /= safe
        lse = xp.where(empty, xp.full_like(m, -xp.inf), m + xp.log(safe))
        outputs.append(_unfold(o, q, block))
        sums.append(_unfold(lse, q, block)[..., 0])
    shape = (*q.shape[:3], v.shape[-1])
    if not outputs:
        return xp.zeros(shape, dtype=q.dtype), xp.zeros(q.shape[:3], dtype=keys.dtype)
    return narrow(xp.concat(outputs, axis=2), q.dtype), xp.concat(sums, axis=2)


def attention_backward(do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, *, scale: float,
                       causal: bool = True, window: int = 0,
                       mask: Array | None = None) -> tuple[Array, Array, Array]:
    """(dq, dk, dv), each with the shape of its input; the probabilities are recomputed from lse."""
    xp = namespace(q)
    queries, keys, values, g = widen(q) * scale, widen(k), widen(v), widen(do)
    delta = xp.sum(g * widen(o), axis=-1, keepdims=True, dtype=g.dtype)         # [B,H,T,1]
    lse = xp.where(lse == -xp.inf, xp.zeros_like(lse), lse)[..., None]
    dk, dv = xp.zeros(k.shape, dtype=keys.dtype), xp.zeros(v.shape, dtype=keys.dtype)
    dqs = []
    for block in _blocks(q, k, causal, window):
        near = slice(block.lo, block.hi)
        s = _scores(queries, keys, block, causal, window, mask)
        s -= _fold(lse, k, block)
        p = xp.exp(s)
        g_block = _fold(g, k, block)                                            # [B,G,R*Tb,Dv]
        dv[:, :, near, :] += xp.matmul(_transposed(p), g_block)
        ds = xp.matmul(g_block, _transposed(values[:, :, near, :]))
        ds -= _fold(delta, k, block)
        ds *= p
        dqs.append(_unfold(xp.matmul(ds, keys[:, :, near, :]), q, block))
        dk[:, :, near, :] += xp.matmul(_transposed(ds), _fold(queries, k, block))
    dq = xp.concat(dqs, axis=2) if dqs else xp.zeros_like(queries)
    return narrow(dq * scale, q.dtype), narrow(dk, k.dtype), narrow(dv, v.dtype)


class _Block:
    """Queries i0..i1, the range lo..hi of every key they can see, and `first`, the position of query i0."""

    def __init__(self, i0: int, i1: int, lo: int, hi: int, first: int) -> None:
        self.i0, self.i1, self.lo, self.hi, self.first = i0, i1, lo, hi, first


def _blocks(q: Array, k: Array, causal: bool, window: int) -> Iterator[_Block]:
    length, keys = q.shape[2], k.shape[2]
    for i0 in range(0, length, BLOCK):
        i1, first = min(length, i0 + BLOCK), keys - length + i0
        hi = max(0, min(keys, first + i1 - i0)) if causal else keys
        lo = min(hi, max(0, first - window + 1)) if window else 0
        yield _Block(i0, i1, lo, hi, first)


def _fold(x: Array, k: Array, block: _Block) -> Array:
    """[B,H,T,d] -> [B,G,R*Tb,d]: the R query heads of a group become rows, so one product serves them all."""
    batch, heads, _, width = x.shape
    xp, groups = namespace(x), k.shape[1]
    rows = x[:, :, block.i0 : block.i1, :]
    return xp.reshape(rows, (batch, groups, heads // groups * (block.i1 - block.i0), width))


def _unfold(x: Array, q: Array, block: _Block) -> Array:
    """[B,G,R*Tb,d] -> [B,H,Tb,d]"""
    return namespace(x).reshape(x, (*q.shape[:2], block.i1 - block.i0, x.shape[-1]))


def _transposed(x: Array) -> Array:
    return namespace(x).permute_dims(x, (0, 1, 3, 2))


def _scores(q: Array, k: Array, block: _Block, causal: bool, window: int, mask: Array | None) -> Array:
    """[B,G,R*Tb,n] scores of the scaled queries, −inf where a key is not visible."""
    xp = namespace(q)
    s = xp.matmul(_fold(q, k, block), _transposed(k[:, :, block.lo : block.hi, :]))
    repeat = q.shape[1] // k.shape[1]
    start = max(0, block.first - block.lo) if causal and not window else 0     # nothing is hidden left of it
    if causal or window:
        bias = _bias(xp, s, block, start, causal, window)
        s[..., start:] += xp.tile(bias, (repeat, 1))
    if mask is not None:
        keep = xp.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
        keep = keep[:, :, block.i0 : block.i1, block.lo : block.hi]
        s = xp.where(xp.reshape(keep, s.shape), s, xp.full_like(s, -xp.inf))
    return s


def _bias(xp: Any, s: Array, block: _Block, start: int, causal: bool, window: int) -> Array:
    """[Tb, n − start]: 0 where the key may be seen, −inf elsewhere."""
    position = xp.arange(block.first, block.first + block.i1 - block.i0)[:, None]
    key = xp.arange(block.lo + start, block.hi)[None, :]
    visible = (key <= position) if causal else (key == key)
    if window:
        visible = visible & (key > position - window)
        if not causal:
            visible = visible & (key < position + window)
    zero = xp.zeros((), dtype=s.dtype)
    return xp.where(visible, zero, zero - xp.inf)


def decode_attention(q: Array, k: Array, v: Array, lengths: Array, *, scale: float, window: int = 0) -> Array:
    """o[B,H,T,Dv]: query t of row b stands at position lengths[b] − T + t of a cache with room for S."""
    xp = namespace(q)
    position = lengths[:, None] - q.shape[2] + xp.arange(q.shape[2])[None, :]           # [B,T]
    key = xp.arange(k.shape[2])[None, None, :]
    visible = key <= position[:, :, None]                                               # [B,T,S]
    if window:
        visible = visible & (key > position[:, :, None] - window)
    filled = (xp.arange(k.shape[2])[None, :] < lengths[:, None])[:, None, :, None]
    k, v = (xp.where(filled, x, xp.zeros_like(x)) for x in (k, v))                      # 0 times NaN is NaN
    return attention(q, k, v, scale=scale, causal=False, mask=visible[:, None, :, :])[0]


def cache_append(k_cache: Array, v_cache: Array, k: Array, v: Array, lengths: Array) -> None:
    """Write new keys and values behind the lengths[b] that each row of the cache holds."""
    for b in range(k.shape[0]):
        start = int(lengths[b])
        count = max(0, min(k.shape[2], k_cache.shape[2] - start))
        k_cache[b, :, start : start + count, :] = k[b, :, :count, :]
        v_cache[b, :, start : start + count, :] = v[b, :, :count, :]
