"""The gated delta rule in chunks: a memory in which the value stored under a key is replaced."""

import math
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.decayed import backwards_sum, between, crossing, decays, sum_before, sums_in_chunks
from nn.ops.triangular import inverse_flops, lower, product, transposed, unit_lower_inverse
from nn.tensor import Array, Op, Tensor


class DeltaChunks(Op):
    """S̄ = e^{g_t} S_{t−1},  S_t = S̄ + β_t k_t (v_t − S̄ᵀ k_t)ᵀ,  o_t = S_tᵀ q_t
    (Schlag et al. 2021; in chunks Yang et al. 2024; with decay Yang, Kautz & Hatamizadeh 2024)

    In a chunk of C tokens behind S, with G the sums of g within it, E = e^G, Ē = e^{G_C − G} and
    Γ_ij = e^{G_i − G_j} for j ≤ i, else 0, what is written is U, one row u_t = β_t (v_t − S̄ᵀ k_t) per token:
        u_i = β_i (v_i − E_i Sᵀ k_i − Σ_{j<i} Γ_ij ⟨k_i, k_j⟩ u_j)
    or (I + A) U = R with A = tril(β ⊙ K Kᵀ ⊙ Γ, −1) and R = β ⊙ (V − E ⊙ (K S)).  T = (I + A)⁻¹ of all chunks
    is found at once (the UT transform; T β V − (T β E K) S is the WY form of U), then, chunk by chunk,
        U = T R,   O = (Q ⊙ E) S + P U with P = Q Kᵀ ⊙ Γ,   S' = e^{G_C} S + (K ⊙ Ē)ᵀ U
    Exponents are 0 or less.

    Backward, from dO and the gradient dS' of what follows, chunk by chunk from the last:
        dU = Pᵀ dO + (K ⊙ Ē) dS',   Y = Tᵀ dU = dR,   dS = (Q ⊙ E)ᵀ dO + e^{G_C} dS' − (β E K)ᵀ Y
    and for all chunks at once, as (I + A) dU = dR − dA U for differentials:
        dA = −tril(Y Uᵀ, −1),   dP = dO Uᵀ,   N = dA ⊙ β ⊙ Γ
        dV = β ⊙ Y,   dβ = Σ_columns Y ⊙ (V − E ⊙ (K S)) + Σ_columns dA ⊙ K Kᵀ ⊙ Γ
        dQ = E ⊙ (dO Sᵀ) + (dP ⊙ Γ) K
        dK = (dP ⊙ Γ)ᵀ Q + (N + Nᵀ) K + Ē ⊙ (U dS'ᵀ) − β E ⊙ (Y Sᵀ)
    g_t is in Γ_ij of j < t ≤ i, in E_i of i ≥ t (of Q and of K S), in Ē_j of j < t and in e^{G_C}.  With a·b
    the products of entries summed over a row and M = dA ⊙ A + dP ⊙ P,
        dg_t = Σ_{j<t≤i} M_ij + Σ_{i≥t} (q_i·[E_i (dO Sᵀ)_i] − k_i·[β_i E_i (Y Sᵀ)_i])
               + Σ_{j<t} k_j·[Ē_j (U dS'ᵀ)_j] + e^{G_C} Σ S ⊙ dS'
    Saved: q, k, β, G, T, P, K Kᵀ ⊙ Γ, U, V − E ⊙ (K S) and the states between chunks."""

    def forward(self, q: Array, k: Array, v: Array, g: Array, beta: Array, s: Array) -> tuple[Array, Array]:
        xp, self.dtypes_in = namespace(q), [x.dtype for x in (q, k, v, g, beta, s)]
        self.q, self.k, v, beta, s = (widen(x) for x in (q, k, v, beta, s))
        self.beta, self.sums = beta[..., None], sums_in_chunks(g)
        gamma = between(self.sums, self.q)                                        # Γ [B,H,n,C,C]
        self.products = product(self.k, transposed(self.k)) * gamma               # K Kᵀ ⊙ Γ
        self.scores = product(self.q, transposed(self.k)) * gamma                 # P
        self.inverse = unit_lower_inverse(self.beta * self.products * lower(k.shape[3], s, strict=True))
        grown, shrunk, kept = decays(self.sums, self.q)
        reading, writing = self.k * grown, transposed(self.k * shrunk)
        states, missing, written = [s], [], []
        for i in range(q.shape[2]):
            missing.append(v[:, :, i, ...] - product(reading[:, :, i, ...], states[-1]))
            written.append(product(self.inverse[:, :, i, ...], self.beta[:, :, i, ...] * missing[-1]))
            states.append(kept[:, :, i, ...] * states[-1] + product(writing[:, :, i, ...], written[-1]))
        self.missing, self.written, self.states = (xp.stack(x, axis=2) for x in (missing, written, states))
        o = product(self.q * grown, self.states[:, :, :-1, ...]) + product(self.scores, self.written)
        return narrow(o, self.dtypes_in[2]), narrow(states[-1], self.dtypes_in[5])

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        keys, size, width = inputs[1].shape[-1], inputs[1].shape[-2], inputs[2].shape[-1]
        return math.prod(inputs[1].shape[:3]) * delta_flops_per_chunk(size, keys, width)

    def backward(self, do: Array | None, ds: Array | None) -> Any:
        xp = namespace(self.q)
        do = xp.zeros_like(self.written) if do is None else widen(do)
        ds = xp.zeros_like(self.states[:, :, 0, ...]) if ds is None else widen(ds)
        y, after, ds = self._through_states(do, ds)
        dq_state, dk_read, dk_write = self._gradients_by_states(do, y, after)
        gamma, written = between(self.sums, self.q), transposed(self.written)
        da = -product(y, written) * lower(self.k.shape[3], y, strict=True)
        dp = product(do, written)
        n, dp_decayed = da * self.beta * gamma, dp * gamma
        dq = dq_state + product(dp_decayed, self.k)
        dk = product(transposed(dp_decayed), self.q) + product(n + transposed(n), self.k) + dk_write - dk_read
        dbeta = _sum(y * self.missing) + _sum(da * self.products)
        dg = None
        if self.needs[3]:
            inside = da * self.beta * self.products + dp * self.scores            # M
            reading = backwards_sum(_sum(self.q * dq_state - self.k * dk_read))
            dg = crossing(inside) + reading + sum_before(_sum(self.k * dk_write)) + self._kept(after)
        found = zip((dq, dk, self.beta * y, dg, dbeta, ds), self.dtypes_in, strict=True)
        return tuple(None if x is None else narrow(x, kind) for x, kind in found)

    def _through_states(self, do: Array, ds: Array) -> tuple[Array, Array, Array]:
        """Y [B,H,n,C,Dv], the dS' of all chunks [B,H,n,Dk,Dv], and dS of the first"""
        xp = namespace(do)
        grown, shrunk, kept = decays(self.sums, self.q)
        du, writing = product(transposed(self.scores), do), self.k * shrunk
        own = product(transposed(self.q * grown), do)
        reading = transposed(self.beta * grown * self.k)
        inverse, ends, rows = transposed(self.inverse), [], []
        for i in range(do.shape[2] - 1, -1, -1):
            ends.append(ds)
            rows.append(product(inverse[:, :, i, ...], du[:, :, i, ...] + product(writing[:, :, i, ...], ds)))
            ds = own[:, :, i, ...] + kept[:, :, i, ...] * ds - product(reading[:, :, i, ...], rows[-1])
        return xp.stack(rows[::-1], axis=2), xp.stack(ends[::-1], axis=2), ds

    def _gradients_by_states(self, do: Array, y: Array, after: Array) -> tuple[Array, Array, Array]:
        """E ⊙ (dO Sᵀ), β E ⊙ (Y Sᵀ) and Ē ⊙ (U dS'ᵀ), each [B,H,n,C,Dk]"""
        grown, shrunk, _ = decays(self.sums, self.q)
        before = transposed(self.states[:, :, :-1, ...])
        return (grown * product(do, before), self.beta * grown * product(y, before),
                shrunk * product(self.written, transposed(after)))

    def _kept(self, after: Array) -> Array:
        """e^{G_C} Σ S ⊙ dS', which every g of the chunk gets, [B,H,n,1]"""
        xp, (_, _, kept) = namespace(after), decays(self.sums, self.q)
        stays = self.states[:, :, :-1, ...] * after
        return kept[..., 0] * xp.sum(stays, axis=(-2, -1), dtype=after.dtype)[..., None]


def _sum(x: Array) -> Array:
    """Over the last axis"""
    return namespace(x).sum(x, axis=-1, dtype=x.dtype)


def delta_flops_per_chunk(size: int, keys: int, values: int) -> int:
    """K Kᵀ and Q Kᵀ, T, T R and P U, three products with states"""
    return 4 * size * size * (keys + values) + inverse_flops(size) + 6 * size * keys * values


def delta_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
                 s: Tensor) -> tuple[Tensor, Tensor]:
    """(o[B,H,n,C,Dv], the state after them [B,H,Dk,Dv]) of n chunks of C tokens, a power of two, behind the
    state s[B,H,Dk,Dv]; q, k [B,H,n,C,Dk], v[B,H,n,C,Dv], g ≤ 0 and β [B,H,n,C].  Half precision is
    computed in float32; o has v's type, the state that of s."""
    size = q.shape[3] if q.ndim == 5 else 0
    if not (q.shape == k.shape and v.shape[:4] == q.shape[:4] == g.shape == beta.shape
            and size & (size - 1) == 0 < size):
        raise ValueError(f"delta_chunks: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} are "
                         f"[B,H,n,C,D], C a power of two, "
                         f"g {list(g.shape)} and beta {list(beta.shape)} [B,H,n,C]")
    return DeltaChunks.apply(q, k, v, g, beta, s)
