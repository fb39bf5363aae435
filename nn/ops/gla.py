"""Gated linear attention in chunks: a state that every channel of the keys forgets at a rate of its own."""

import math
from collections.abc import Iterator

from nn.backends.array_api import namespace
from nn.dtypes import narrow
from nn.ops.decayed import DecayedChunks, backwards_sum, sum_before
from nn.ops.triangular import assembled, diagonal_halves, halved, lower, product, transposed
from nn.tensor import Array, Tensor


class GLAChunks(DecayedChunks):
    """S_t = diag(e^{g_t}) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t   (Yang et al. 2023, GLA)

    In a chunk of C tokens behind S, with G the sums of g within it, E = e^G and Ē = e^{G_C − G}:
        A_ij = Σ_d q_id k_jd e^{G_id − G_jd} for j ≤ i, else 0
        O = (Q ⊙ E) S + A V,   S' = diag(e^{G_C}) S + (K ⊙ Ē)ᵀ V
    A is no product of two matrices, as e^{−G} overflows; but for queries behind some token r and keys up to
    it, A = (Q ⊙ e^{G − G_r}) (K ⊙ e^{G_r − G})ᵀ, whose exponents are 0 or less.  So A is built of halves: r
    ends the first half, and what is left over are the two halves themselves, down to single tokens.

    Backward, from dO and the gradient dS' of what follows, chunk by chunk from the last:
        dS = (Q ⊙ E)ᵀ dO + diag(e^{G_C}) dS'
        dA = dO Vᵀ,   dV = Aᵀ dO + (K ⊙ Ē) dS'
        dQ = E ⊙ (dO Sᵀ) + Σ_j dA_ij k_j e^{G_i − G_j},   dK = Ē ⊙ (V dS'ᵀ) + Σ_i dA_ij q_i e^{G_i − G_j}
    the two sums in halves as A.  g_t scales each path from a token j < t, or from S, to a token i ≥ t, or to
    S'.  Of paths across the middle of a half, g_t behind it gets q_i ⊙ dq_i of i ≥ t, before it k_j ⊙ dk_j of
    j < t; by states, channel by channel as in DecayedChunks,
        Σ_{i≥t} q_i ⊙ E_i ⊙ (S dO_i) + Σ_{j<t} k_j ⊙ Ē_j ⊙ (dS' v_j) + e^{G_C} ⊙ Σ_columns S ⊙ dS'
    Saved: the inputs, G, A and the states between chunks."""

    def scored(self) -> Array:
        return _scores(self.q, self.k, self.sums)

    def scores_backward(self, da: Array) -> tuple[Array, Array, Array | None]:
        return _scores_backward(da, self.q, self.k, self.sums)

    def by_states(self, reading: Array, writing: Array, kept: Array, staying: Array) -> Array:
        stays = kept * namespace(staying).sum(staying, axis=-1, keepdims=True, dtype=staying.dtype)
        return backwards_sum(reading) + sum_before(writing) + transposed(stays)

    @staticmethod
    def decays(sums: Array, like: Array) -> tuple[Array, Array, Array]:
        """E and Ē [B,H,n,C,Dk], e^{G_C} as a column [B,H,n,Dk,1]"""
        xp, last = namespace(sums), sums[:, :, :, -1:, :]
        grown, shrunk, kept = (xp.exp(narrow(x, like.dtype)) for x in (sums, last - sums, transposed(last)))
        return grown, shrunk, kept

    @staticmethod
    def flops_per_token(size: int, keys: int, values: int) -> int:
        return gla_flops_per_token(size, keys, values)


def _across(q: Array, k: Array, sums: Array) -> tuple[Array, Array, Array, Array]:
    """Q ⊙ e^{G − G_r} of the second half, K ⊙ e^{G_r − G} of the first, and the two exponentials"""
    xp, h = namespace(q), q.shape[-2] // 2
    r = sums[..., h - 1 : h, :]
    later, earlier = (xp.exp(narrow(x, q.dtype)) for x in (sums[..., h:, :] - r, r - sums[..., :h, :]))
    return q[..., h:, :] * later, k[..., :h, :] * earlier, later, earlier


def _in_a_row(*arrays: Array) -> Iterator[Array]:
    """[...,I,J] -> [N,I,J]"""
    return (namespace(x).reshape(x, (math.prod(x.shape[:-2]), *x.shape[-2:])) for x in arrays)


def _scores(q: Array, k: Array, sums: Array) -> Array:
    """A [...,C,C]"""
    xp = namespace(q)
    if q.ndim > 3:                                          # halves add an axis; devices have 8
        return xp.reshape(_scores(*_in_a_row(q, k, sums)), (*q.shape[:-1], q.shape[-2]))
    if q.shape[-2] == 1:
        return xp.sum(q * k, axis=-1, keepdims=True, dtype=q.dtype)
    queries, keys, _, _ = _across(q, k, sums)
    return assembled(_scores(halved(q), halved(k), halved(sums)), product(queries, transposed(keys)))


def _scores_backward(da: Array, q: Array, k: Array, sums: Array) -> tuple[Array, Array, Array]:
    """dQ, dK and dg of A"""
    if q.ndim > 3:
        found = _scores_backward(*_in_a_row(da, q, k, sums))
        dq, dk, dg = (namespace(q).reshape(x, q.shape) for x in found)
        return dq, dk, dg
    if q.shape[-2] == 1:
        return da * k, da * q, namespace(q).zeros_like(q)
    xp, h = namespace(q), q.shape[-2] // 2
    queries, keys, later, earlier = _across(q, k, sums)
    dq, dk, dg = _scores_backward(diagonal_halves(da), halved(q), halved(k), halved(sums))
    below = da[..., h:, :h]
    second, first = later * product(below, keys), earlier * product(transposed(below), queries)
    behind = product(transposed(lower(h, q)), q[..., h:, :] * second)             # Σ_{i≥t}
    ahead = product(lower(h, q, strict=True), k[..., :h, :] * first)              # Σ_{j<t}
    return (xp.concat([dq[..., 0, :, :], dq[..., 1, :, :] + second], axis=-2),
            xp.concat([dk[..., 0, :, :] + first, dk[..., 1, :, :]], axis=-2),
            xp.concat([dg[..., 0, :, :] + ahead, dg[..., 1, :, :] + behind], axis=-2))


def gla_flops_per_token(size: int, keys: int, values: int) -> int:
    """A below its diagonal and on it, A V, two products with states"""
    return keys * (size + 1) + 2 * size * values + 4 * keys * values


def gla_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(o[B,H,n,C,Dv], the state after them [B,H,Dk,Dv]) of n chunks of C tokens, a power of two, behind the
    state s[B,H,Dk,Dv]; q, k, g ≤ 0 [B,H,n,C,Dk], v[B,H,n,C,Dv].  Half precision is computed in float32; o
    has v's type, the state that of s."""
    size = q.shape[3] if q.ndim == 5 else 0
    if not (q.shape == k.shape == g.shape and v.shape[:4] == q.shape[:4] and size & (size - 1) == 0 < size):
        raise ValueError(f"gla_chunks: q {list(q.shape)}, k {list(k.shape)}, g {list(g.shape)} and "
                         f"v {list(v.shape)} are [B,H,n,C,D], C a power of two, all alike but v's D")
    return GLAChunks.apply(q, k, v, g, s)
