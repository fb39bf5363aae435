"""Linear attention with one decay per head and token, in chunks; what other recurrences with decays share."""

import math
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.triangular import lower, product, transposed
from nn.tensor import Array, Op, Tensor

FORGOTTEN = -1000.0      # g from which on e^g is 0 in every type


class DecayedChunks(Op):
    """S_t = e^{g_t} S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t   (Sun et al. 2023; Dao & Gu 2024)

    In a chunk of C tokens behind S, with G the sums of g within it, E = e^G, Ē = e^{G_C − G} and
    Γ_ij = e^{G_i − G_j} for j ≤ i, else 0:
        O = (Q ⊙ E) S + A V with A = Q Kᵀ ⊙ Γ,   S' = e^{G_C} S + (K ⊙ Ē)ᵀ V
    Backward, from dO and the gradient dS' of what follows, chunk by chunk from the last:
        dS = (Q ⊙ E)ᵀ dO + e^{G_C} dS'
        dV = Aᵀ dO + (K ⊙ Ē) dS',   N = dO Vᵀ ⊙ Γ
        dQ = E ⊙ (dO Sᵀ) + N K,   dK = Nᵀ Q + Ē ⊙ (V dS'ᵀ)
    g_t scales each path from a token j < t, or from S, to a token i ≥ t, or to S':
        dg_t = Σ_{j<t≤i} A_ij dA_ij + Σ_{i≥t} ⟨q_i, E_i S dO_i⟩ + Σ_{j<t} ⟨k_j, Ē_j dS' v_j⟩
               + e^{G_C} Σ S ⊙ dS'
    These sums have no path that g_t is not on: Σ_{s≥t} (⟨q_s, dq_s⟩ − ⟨k_s, dk_s⟩) + Σ S' ⊙ dS', which is the
    same, takes such paths off again, and where decays are strong leaves rounding of them alone.
    Saved: the inputs, G, A and the states between chunks."""

    def forward(self, q: Array, k: Array, v: Array, g: Array, s: Array) -> tuple[Array, Array]:
        xp, self.dtypes_in = namespace(q), [x.dtype for x in (q, k, v, g, s)]
        self.q, self.k, self.v, s = (widen(x) for x in (q, k, v, s))
        self.sums = sums_in_chunks(g)
        self.scores = self.scored()                                               # A [B,H,n,C,C]
        grown, shrunk, kept = self.decays(self.sums, self.q)
        added, states = product(transposed(self.k * shrunk), self.v), [s]         # [B,H,n,Dk,Dv]
        for i in range(q.shape[2]):
            states.append(kept[:, :, i, ...] * states[-1] + added[:, :, i, ...])
        self.states = xp.stack(states, axis=2)                                    # [B,H,n+1,Dk,Dv]
        o = product(self.q * grown, self.states[:, :, :-1, ...]) + product(self.scores, self.v)
        return narrow(o, self.dtypes_in[2]), narrow(states[-1], self.dtypes_in[4])

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        keys, size, width = inputs[1].shape[-1], inputs[1].shape[-2], inputs[2].shape[-1]
        return math.prod(inputs[1].shape[:4]) * self.flops_per_token(size, keys, width)

    def backward(self, do: Array | None, ds: Array | None) -> Any:
        xp, q, k, v = namespace(self.q), self.q, self.k, self.v
        do = xp.zeros_like(v) if do is None else widen(do)
        ds = xp.zeros_like(self.states[:, :, 0, ...]) if ds is None else widen(ds)
        grown, shrunk, kept = self.decays(self.sums, q)
        own, ends = product(transposed(q * grown), do), []
        for i in range(q.shape[2] - 1, -1, -1):
            ends.append(ds)
            ds = own[:, :, i, ...] + kept[:, :, i, ...] * ds
        after = xp.stack(ends[::-1], axis=2)                                      # dS' [B,H,n,Dk,Dv]
        dv = product(transposed(self.scores), do) + product(k * shrunk, after)
        before = self.states[:, :, :-1, ...]
        dq, dk = grown * product(do, transposed(before)), shrunk * product(v, transposed(after))
        *inside, dg = self.scores_backward(product(do, transposed(v)))
        if self.needs[3]:
            dg = dg + self.by_states(q * dq, k * dk, kept, before * after)
        found = zip((dq + inside[0], dk + inside[1], dv, dg, ds), self.dtypes_in, strict=True)
        return tuple(None if x is None else narrow(x, kind) for x, kind in found)

    def scored(self) -> Array:
        """A"""
        return product(self.q, transposed(self.k)) * between(self.sums, self.q)

    def scores_backward(self, da: Array) -> tuple[Array, Array, Array | None]:
        """What reaches Q, K and g through A"""
        n = da * between(self.sums, da)
        return (product(n, self.k), product(transposed(n), self.q),
                crossing(da * self.scores) if self.needs[3] else None)

    def by_states(self, reading: Array, writing: Array, kept: Array, staying: Array) -> Array:
        """What reaches g by paths from S or to S', from q ⊙ dq and k ⊙ dk [B,H,n,C,Dk] of such paths, e^{G_C}
        and S ⊙ dS' [B,H,n,Dk,Dv]"""
        xp, kind = namespace(reading), reading.dtype
        reading, writing = (xp.sum(x, axis=-1, dtype=kind) for x in (reading, writing))
        stays = kept[..., 0] * xp.sum(staying, axis=(-2, -1), dtype=kind)[..., None]
        return backwards_sum(reading) + sum_before(writing) + stays

    @staticmethod
    def decays(sums: Array, like: Array) -> tuple[Array, Array, Array]:
        return decays(sums, like)

    @staticmethod
    def flops_per_token(size: int, keys: int, values: int) -> int:
        return decayed_flops_per_token(size, keys, values)


def sums_in_chunks(g: Array) -> Array:
    """G [B,H,n,C,...] of g, in float64: what counts between two tokens are differences of these sums, and
    behind a token that forgets nearly all float32 has lost what the next ones forget.  g = −∞ forgets all."""
    xp = namespace(g)
    return xp.cumulative_sum(xp.astype(xp.clip(widen(g), FORGOTTEN, None), xp.float64), axis=3)


def between(sums: Array, like: Array) -> Array:
    """Γ [...,C,C] from G [...,C], in the type of `like`; what is above the diagonal is 0 before the
    exponential, or it overflowed"""
    kept = lower(sums.shape[-1], like)
    return namespace(like).exp(narrow(sums[..., :, None] - sums[..., None, :], like.dtype) * kept) * kept


def decays(sums: Array, like: Array) -> tuple[Array, Array, Array]:
    """E and Ē [B,H,n,C,1], e^{G_C} [B,H,n,1,1] from G [B,H,n,C], in the type of `like`"""
    xp, last = namespace(sums), sums[..., -1:]
    grown, shrunk, kept = (xp.exp(narrow(x, like.dtype))[..., None] for x in (sums, last - sums, last))
    return grown, shrunk, kept


def backwards_sum(x: Array) -> Array:
    """Of [B,H,n,C,...], Σ over the tokens of the chunk from each one on"""
    xp = namespace(x)
    return xp.flip(xp.cumulative_sum(xp.flip(x, axis=3), axis=3), axis=3)


def sum_before(x: Array) -> Array:
    """Of [B,H,n,C,...], Σ over the tokens of the chunk before each one"""
    return namespace(x).cumulative_sum(x, axis=3, include_initial=True)[:, :, :, :-1, ...]


def crossing(m: Array) -> Array:
    """Σ_{j<t≤i} m_ij, [...,C] of m[...,C,C]"""
    xp, size = namespace(m), m.shape[-1]
    before = product(m, transposed(lower(size, m, strict=True)))                  # [i,t]: Σ_{j<t} m_ij
    return xp.sum(before * lower(size, m), axis=-2, dtype=m.dtype)


def decayed_flops_per_token(size: int, keys: int, values: int) -> int:
    """Q Kᵀ and A V, two products with states"""
    return 2 * size * (keys + values) + 4 * keys * values


def decayed_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(o[B,H,n,C,Dv], the state after them [B,H,Dk,Dv]) of n chunks of C tokens behind the state
    s[B,H,Dk,Dv]; q, k [B,H,n,C,Dk], v[B,H,n,C,Dv], g ≤ 0 [B,H,n,C].  Half precision is computed in float32;
    o has v's type, the state that of s."""
    if not (q.ndim == 5 and q.shape == k.shape and v.shape[:4] == q.shape[:4] == g.shape):
        raise ValueError(f"decayed_chunks: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} are "
                         f"[B,H,n,C,D], g {list(g.shape)} is [B,H,n,C]")
    return DecayedChunks.apply(q, k, v, g, s)
