"""Softmax attention over several sets of keys at once, with logits that take probability away."""

from dataclasses import dataclass
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import beside, namespace
from nn.dtypes import narrow, widen
from nn.ops.attention import _check
from nn.ops.count import visible_pairs
from nn.tensor import Array, Op, Tensor


@dataclass
class KeySet:
    """Keys, their values, and which of them a query sees: as ops.attention's arguments of these names."""

    k: Tensor                    # [B,G,S,Dk]
    v: Tensor                    # [B,G,S,Dv]
    causal: bool = True
    window: int = 0
    mask: Array | None = None    # boolean, broadcastable to [B,H,T,S]


class MergedAttention(Op):
    """O = Σ_p P_p V_p over sets p of keys, softmax taken over all of them and a sink logit b_h of value 0.

    Every set by itself gives O_p and L_p = log Σ exp s (Dao 2023), and these are merged:
        L = log(Σ_p e^{L_p} + e^b),   O = Σ_p e^{L_p − L} O_p
    Backward.  With P_ij = e^{s_ij − L_i}, which sum to 1 − e^{b − L_i} over all keys, a change of s_ij moves
    O_i by P_ij (v_j − O_i), whatever set j is in.  So dV = Pᵀ dO and dS = P ⊙ (dO Vᵀ − Δ), Δ = Σ dO ⊙ O, as
    for one set, with the merged O and L: each set's own backward is run on those.  A change of b moves O_i by
    −e^{b − L_i} O_i:   db_h = −Σ_i e^{b_h − L_i} Δ_i;   dQ is the sum over the sets."""

    def forward(self, q: Array, *arrays: Array, scale: float, sets: list[dict[str, Any]]) -> Array:
        self.q, self.scale, self.sets = q, scale, sets
        self.pairs = [(arrays[2 * i], arrays[2 * i + 1]) for i in range(len(sets))]
        self.sink = widen(arrays[-1])[None, :, None] if len(arrays) % 2 else None              # [1,H,1]
        self.sink_dtype = arrays[-1].dtype
        parts = [kernels.attention(q, k, v, scale=scale, **options)
                 for (k, v), options in zip(self.pairs, sets, strict=True)]
        self.o, self.lse = _merged(parts, self.sink, q.dtype)
        return self.o

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        """Of the pairs that order and windows leave visible, whatever masks hide besides."""
        batch, heads, queries, width = self.q.shape
        return sum(2 * batch * heads * visible_pairs(queries, k.shape[2], one["window"], one["causal"])
                   * (width + v.shape[3]) for (k, v), one in zip(self.pairs, self.sets, strict=True))

    def backward(self, do: Array) -> Any:
        found = [kernels.attention_backward(do, self.q, k, v, self.o, self.lse, scale=self.scale, **options)
                 for (k, v), options in zip(self.pairs, self.sets, strict=True)]
        dq = widen(found[0][0])
        for other, _, _ in found[1:]:
            dq = dq + widen(other)
        gradients = [narrow(dq, self.q.dtype), *(each for _, *both in found for each in both)]
        return (*gradients, self._sink_gradient(do)) if self.sink is not None else tuple(gradients)

    def _sink_gradient(self, do: Array) -> Array:
        xp = namespace(do)
        delta = xp.sum(widen(do) * widen(self.o), axis=-1, dtype=self.lse.dtype)                # [B,H,T]
        lse = xp.where(self.lse == -xp.inf, xp.zeros_like(self.lse), self.lse)
        taken = xp.exp(self.sink - lse) * delta
        return narrow(-xp.sum(taken, axis=(0, 2), dtype=taken.dtype), self.sink_dtype)


def _merged(parts: list[tuple[Array, Array]], sink: Array | None, dtype: Any) -> tuple[Array, Array]:
    """(O, L) of all sets from those of each; a row that sees nothing gives 0 and −inf"""
    if len(parts) == 1 and sink is None:
        return parts[0]
    xp = namespace(parts[0][0])
    sums = [lse for _, lse in parts]
    most = sums[0] if sink is None else xp.maximum(sums[0], sink)
    for lse in sums[1:]:
        most = xp.maximum(most, lse)
    most = xp.where(most == -xp.inf, xp.zeros_like(most), most)
    shares = [xp.exp(lse - most) for lse in sums]                                               # [B,H,T]
    total = shares[0] if sink is None else shares[0] + xp.exp(sink - most)
    for share in shares[1:]:
        total = total + share
    empty = total == 0.0
    safe = xp.where(empty, xp.ones_like(total), total)
    o = widen(parts[0][0]) * (shares[0] / safe)[..., None]
    for (part, _), share in zip(parts[1:], shares[1:], strict=True):
        o = o + widen(part) * (share / safe)[..., None]
    return narrow(o, dtype), xp.where(empty, xp.full_like(most, -xp.inf), most + xp.log(safe))


def merged_attention(q: Tensor, sets: list[KeySet], *, sinks: Tensor | None = None,
                     scale: float | None = None) -> Tensor:
    """q[B,H,T,Dk] over the union of the sets' visible keys -> [B,H,T,Dv].  No key may be visible in two sets.

    sinks [H]: logits that take part in every row's softmax without a value (−inf: none).
    scale: Dk^−½ unless given.  The rest as ops.attention."""
    for one in sets:
        _check(q, one.k, one.v)
    options = [{"causal": one.causal, "window": one.window,
                "mask": None if one.mask is None else beside(one.mask, q.data)} for one in sets]
    tensors = [tensor for one in sets for tensor in (one.k, one.v)] + ([] if sinks is None else [sinks])
    return MergedAttention.apply(q, *tensors, scale=q.shape[-1] ** -0.5 if scale is None else scale,
                                 sets=options)
