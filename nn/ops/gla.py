"""Gated linear attention in chunks: a state that every channel of the keys forgets at a rate of its own."""

from nn.backends.array_api import namespace
from nn.dtypes import narrow
from nn.ops.decayed import DecayedChunks, backwards_sum
from nn.ops.triangular import assembled, diagonal_halves, halved, product, transposed
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
    the two sums in halves as A.  g_t scales each path from a token s < t to what comes at t or later.  By q_i
    and k_j times their gradients, paths are counted at their ends: those with i ≥ t less those with j ≥ t are
    the ones across, those that leave the chunk ending in S':
        dg_t = Σ_{s≥t} (q_s ⊙ dq_s − k_s ⊙ dk_s) + Σ_columns S' ⊙ dS'
    Saved: the inputs, G, A and the states between chunks."""

    def scored(self) -> Array:
        return _scores(self.q, self.k, self.sums)

    def scores_backward(self, da: Array) -> tuple[Array, Array]:
        return _scores_backward(da, self.q, self.k, self.sums)

    def sums_backward(self, across: Array, leaving: Array) -> Array:
        ends = namespace(leaving).sum(leaving, axis=-1, dtype=leaving.dtype)[..., None, :]
        return backwards_sum(across) + ends

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


def _scores(q: Array, k: Array, sums: Array) -> Array:
    """A [...,C,C]"""
    xp = namespace(q)
    if q.shape[-2] == 1:
        return xp.sum(q * k, axis=-1, keepdims=True, dtype=q.dtype)
    queries, keys, _, _ = _across(q, k, sums)
    return assembled(_scores(halved(q), halved(k), halved(sums)), product(queries, transposed(keys)))


def _scores_backward(da: Array, q: Array, k: Array, sums: Array) -> tuple[Array, Array]:
    """dQ and dK of A"""
    if q.shape[-2] == 1:
        return da * k, da * q
    xp, h = namespace(q), q.shape[-2] // 2
    queries, keys, later, earlier = _across(q, k, sums)
    dq, dk = _scores_backward(diagonal_halves(da), halved(q), halved(k), halved(sums))
    below = da[..., h:, :h]
    second = dq[..., 1, :, :] + later * product(below, keys)
    first = dk[..., 0, :, :] + earlier * product(transposed(below), queries)
    return (xp.concat([dq[..., 0, :, :], second], axis=-2), xp.concat([first, dk[..., 1, :, :]], axis=-2))


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
