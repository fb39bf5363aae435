"""Softmax attention with all its scores in memory, for what flash kernels have not: softcap and dropout."""

from typing import Any

from nn.backends.array_api import beside, namespace
from nn.dtypes import narrow, widen
from nn.ops.attention import _check
from nn.ops.count import visible_pairs
from nn.ops.dropout import keep_mask
from nn.ops.merged import KeySet
from nn.tensor import Array, Op, Tensor


class DenseAttention(Op):
    """O = P̃ V,  P̃ = P ⊙ M / (1 − p),  P = softmax(s) over visible keys and a sink logit b of value 0,
    s = c tanh(u / c),  u = scale Q Kᵀ;  M keeps each entry with probability 1 − p (Gemma 2; Srivastava 2014)

    dV = P̃ᵀ dO,  dP = dO Vᵀ ⊙ M / (1 − p),  Δ = Σ_keys dP ⊙ P (= Σ dO ⊙ O),  dS = P ⊙ (dP − Δ),
    dU = dS ⊙ (1 − (s / c)²),  dQ = scale dU K,  dK = scale dUᵀ Q,  db = −Σ (1 − Σ_keys P) Δ;
    dK and dV sum over the query heads of their group."""

    def forward(self, q: Array, *arrays: Array, scale: float, sets: list[dict[str, Any]], softcap: float,
                kept: Array | None) -> Array:
        xp, self.scale, self.softcap, self.kept = namespace(q), scale, softcap, kept
        self.dtypes_in = [x.dtype for x in (q, *arrays)]
        count = len(sets)
        self.q = widen(q)
        self.k = xp.concat([widen(k) for k in arrays[: 2 * count : 2]], axis=2)           # [B,G,S,Dk]
        self.v = xp.concat([widen(v) for v in arrays[1 : 2 * count : 2]], axis=2)
        self.ends = [k.shape[2] for k in arrays[: 2 * count : 2]]
        sink = widen(arrays[-1])[None, :, None, None] if len(arrays) % 2 else None        # [1,H,1,1]
        s = xp.matmul(self._rows(self.q), _turned(self.k)) * scale
        s = xp.reshape(s, (*q.shape[:3], self.k.shape[2]))                                # [B,H,T,S]
        if softcap:
            self.bent = xp.tanh(s / softcap)
            s = softcap * self.bent
        s = xp.where(_visible(xp, s, sets, self.ends), s, xp.full_like(s, -xp.inf))
        self.p, self.sink_share = _softmax(xp, s, sink)
        dropped = self.p if kept is None else self.p * kept
        o = xp.reshape(xp.matmul(self._rows(dropped), self.v), (*q.shape[:3], self.v.shape[3]))
        return narrow(o, q.dtype)

    def _rows(self, x: Array) -> Array:
        """[B,H,T,n] -> [B,G,R·T,n]: the heads of a group below each other"""
        groups = self.k.shape[1]
        shape = (x.shape[0], groups, x.shape[1] // groups * x.shape[2], x.shape[3])
        return namespace(x).reshape(x, shape)

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        """Of the pairs that order and windows leave visible, whatever masks hide besides."""
        batch, heads, queries, width = self.q.shape
        pairs = sum(visible_pairs(queries, keys, one["window"], one["causal"])
                    for keys, one in zip(self.ends, options["sets"], strict=True))
        return 2 * batch * heads * pairs * (width + self.v.shape[3])

    def backward(self, do: Array) -> Any:
        xp, g = namespace(do), widen(do)
        rows, heads = self._rows(g), self.p.shape
        dropped = self.p if self.kept is None else self.p * self.kept
        dv = xp.matmul(_turned(self._rows(dropped)), rows)
        dp = xp.reshape(xp.matmul(rows, _turned(self.v)), heads)
        dp = dp if self.kept is None else dp * self.kept
        delta = xp.sum(dp * self.p, axis=-1, keepdims=True, dtype=dp.dtype)
        du = self.p * (dp - delta)
        if self.softcap:
            du = du * (1.0 - self.bent * self.bent)
        du = self._rows(du) * self.scale
        dq, dk = xp.matmul(du, self.k), xp.matmul(_turned(du), self._rows(self.q))
        gradients, start = [xp.reshape(dq, self.q.shape)], 0
        for length in self.ends:
            gradients += [part[:, :, start : start + length, :] for part in (dk, dv)]
            start += length
        if self.sink_share is not None:
            gradients.append(-xp.sum(self.sink_share * delta, axis=(0, 2, 3), dtype=delta.dtype))
        return tuple(narrow(x, kind) for x, kind in zip(gradients, self.dtypes_in, strict=True))


def _turned(x: Array) -> Array:
    return namespace(x).permute_dims(x, (0, 1, 3, 2))


def _visible(xp: Any, s: Array, sets: list[dict[str, Any]], lengths: list[int]) -> Array:
    """booleans [B or 1,H or 1,T,S]"""
    queries, parts = s.shape[2], []
    for keys, one in zip(lengths, sets, strict=True):
        position, key = xp.arange(keys - queries, keys)[:, None], xp.arange(keys)[None, :]
        seen = key <= position if one["causal"] else key == key
        if one["window"]:
            seen = seen & (key > position - one["window"])
            seen = seen if one["causal"] else seen & (key < position + one["window"])
        seen = xp.broadcast_to(seen[None, None, :, :], (1, 1, queries, keys))
        parts.append(seen if one["mask"] is None else seen & one["mask"])
    shape = tuple(max(part.shape[axis] for part in parts) for axis in range(2))
    return xp.concat([xp.broadcast_to(part, (*shape, *part.shape[2:])) for part in parts], axis=3)


def _softmax(xp: Any, s: Array, sink: Array | None) -> tuple[Array, Array | None]:
    """(P[B,H,T,S], the share of the sink [B,H,T,1]); rows that see nothing: zeros"""
    if not s.shape[3]:
        return s, None if sink is None else xp.ones((*s.shape[:3], 1), dtype=s.dtype)
    most = xp.max(s, axis=-1, keepdims=True)
    most = most if sink is None else xp.maximum(most, sink)
    most = xp.where(most == -xp.inf, xp.zeros_like(most), most)
    p = xp.exp(s - most)
    taken = None if sink is None else xp.exp(sink - most)
    total = xp.sum(p, axis=-1, keepdims=True, dtype=p.dtype)
    total = total if taken is None else total + taken
    total = xp.where(total == 0.0, xp.ones_like(total), total)
    return p / total, None if taken is None else taken / total


def dense_attention(q: Tensor, sets: list[KeySet], *, sinks: Tensor | None = None, scale: float | None = None,
                    softcap: float = 0.0, dropout: float = 0.0, noise: Array | None = None) -> Tensor:
    """As nn.ops.merged_attention, with the scores u replaced by softcap · tanh(u / softcap) if it is not 0,
    and with each probability set to 0 with the probability `dropout`, else divided by 1 − dropout; noise:
    where that is drawn, a nn.random.counter.  Memory: all B·H·T·S scores, kept for backward."""
    for one in sets:
        _check(q, one.k, one.v)
    if softcap < 0.0 or not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dense_attention: softcap {softcap} is 0 (none) or more, "
                         f"dropout {dropout} in [0, 1]")
    if dropout and noise is None:
        raise ValueError("dense_attention: dropout needs noise=, a nn.random.counter")
    options = [{"causal": one.causal, "window": one.window,
                "mask": None if one.mask is None else beside(one.mask, q.data)} for one in sets]
    tensors = [tensor for one in sets for tensor in (one.k, one.v)] + ([] if sinks is None else [sinks])
    keys = sum(one.k.shape[2] for one in sets)
    kept = keep_mask((*q.shape[:3], keys), dropout, noise, q.data) if dropout else None
    return DenseAttention.apply(q, *tensors, scale=q.shape[-1] ** -0.5 if scale is None else scale,
                                sets=options, softcap=softcap, kept=kept)

