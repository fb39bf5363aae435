"""The gated delta rule in chunks: a memory in which the value stored under a key is replaced."""

import math
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.triangular import inverse_flops, lower, unit_lower_inverse
from nn.tensor import Array, Op, Tensor


class DeltaChunks(Op):
    """S̄ = e^{g_t} S_{t−1},  S_t = S̄ + β_t k_t (v_t − S̄ᵀ k_t)ᵀ,  o_t = S_tᵀ q_t
    (Schlag et al. 2021; in chunks Yang et al. 2024; with decay Yang, Kautz & Hatamizadeh 2024)

    In a chunk of C tokens behind S, with G the sums of g within it, E = e^G, Ē = e^{G_C − G} and
    Γ_ij = e^{G_i − G_j} for j ≤ i, else 0, what is written is U, one row u_t = β_t (v_t − S̄ᵀ k_t) per token:
        u_i = β_i (v_i − E_i Sᵀ k_i − Σ_{j<i} Γ_ij ⟨k_i, k_j⟩ u_j)
    or (I + A) U = R with A = tril(β ⊙ K Kᵀ ⊙ Γ, −1) and R = β ⊙ (V − E ⊙ (K S)).  (I + A)⁻¹ = T of all chunks is
    found at once (the UT transform; T β E K and T β V are W and U of the WY form), then, chunk by chunk,
        U = T R,   O = (Q ⊙ E) S + P U with P = Q Kᵀ ⊙ Γ,   S' = e^{G_C} S + (K ⊙ Ē)ᵀ U
    Exponents are 0 or less.

    Backward, from dO and the gradient dS' of what follows, chunk by chunk from the last:
        dU = Pᵀ dO + (K ⊙ Ē) dS',   Y = Tᵀ dU = dR,   dS = (Q ⊙ E)ᵀ dO + e^{G_C} dS' − (β E K)ᵀ Y
    and for all chunks at once, as (I + A) dU = dR − dA U for differentials:
        dA = −tril(Y Uᵀ, −1),   dP = dO Uᵀ,   N = dA ⊙ β ⊙ Γ
        dV = β ⊙ Y,   dβ = Σ_columns Y ⊙ (V − E ⊙ (K S)) + Σ_columns dA ⊙ K Kᵀ ⊙ Γ
        dQ = E ⊙ (dO Sᵀ) + (dP ⊙ Γ) K
        dK = (dP ⊙ Γ)ᵀ Q + (N + Nᵀ) K + Ē ⊙ (U dS'ᵀ) − β E ⊙ (Y Sᵀ)
    G_i appears in E_i (of Q and of K S), in row i and, negative, in column i of Γ, and negative in Ē_i; G_C in
    all of Ē and in e^{G_C}.  So, with a·b the products of entries summed over a row,
        dG = q·[E ⊙ (dO Sᵀ)] − k·[β E ⊙ (Y Sᵀ)] + Σ_rows M − Σ_columns M − k·[Ē ⊙ (U dS'ᵀ)],  M = dA ⊙ A + dP ⊙ P
        dG_C also gets Σ k·[Ē ⊙ (U dS'ᵀ)] + e^{G_C} Σ S ⊙ dS';   dg_t = Σ_{s≥t} dG_s
    Saved: q, k, β, G, T, P, K Kᵀ ⊙ Γ, U, V − E ⊙ (K S) and the states between chunks."""

    def forward(self, q: Array, k: Array, v: Array, g: Array, beta: Array, s: Array) -> tuple[Array, Array]:
        xp, self.dtypes_in = namespace(q), [x.dtype for x in (q, k, v, g, beta, s)]
        self.q, self.k, v, g, beta, s = (widen(x) for x in (q, k, v, g, beta, s))
        self.beta, self.sums = beta[..., None], xp.cumulative_sum(g, axis=3)
        decays = _between(self.sums)                                              # Γ [B,H,n,C,C]
        keys = xp.matrix_transpose(self.k)
        self.products, self.scores = (self.k @ keys) * decays, (self.q @ keys) * decays      # K Kᵀ ⊙ Γ, P
        self.inverse = unit_lower_inverse(self.beta * self.products * lower(k.shape[3], s, strict=True))
        grown, shrunk, kept = _decays(self.sums)
        reading, writing = self.k * grown, xp.matrix_transpose(self.k * shrunk)
        states, missing, written = [s], [], []
        for i in range(q.shape[2]):
            missing.append(v[:, :, i, ...] - reading[:, :, i, ...] @ states[-1])
            written.append(self.inverse[:, :, i, ...] @ (self.beta[:, :, i, ...] * missing[-1]))
            states.append(kept[:, :, i, ...] * states[-1] + writing[:, :, i, ...] @ written[-1])
        self.missing, self.written, self.states = (xp.stack(x, axis=2) for x in (missing, written, states))
        o = (self.q * grown) @ self.states[:, :, :-1, ...] + self.scores @ self.written
        return o, states[-1]

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        keys, size, width = inputs[1].shape[-1], inputs[1].shape[-2], inputs[2].shape[-1]
        return math.prod(inputs[1].shape[:3]) * delta_flops_per_chunk(size, keys, width)

    def backward(self, do: Array | None, ds: Array | None) -> Any:
        xp = namespace(self.q)
        do = xp.zeros_like(self.written) if do is None else do
        ds = xp.zeros_like(self.states[:, :, 0, ...]) if ds is None else ds
        y, after, ds = self._through_states(do, ds)
        rows = (self.q, self.k, do, y, after)
        dq_state, dk_read, dk_write = self._gradients_by_states(*rows[2:])
        written = xp.matrix_transpose(self.written)
        decays, strict = _between(self.sums), lower(self.k.shape[3], y, strict=True)
        da, dp = -(y @ written) * strict, (do @ written) * decays                 # dA, dP ⊙ Γ
        n = da * self.beta * decays
        dq = dq_state + dp @ self.k
        dk = xp.matrix_transpose(dp) @ self.q + (n + xp.matrix_transpose(n)) @ self.k + dk_write - dk_read
        dbeta = _sum(y * self.missing) + _sum(da * self.products)
        inside = da * self.beta * self.products + (do @ written) * self.scores    # M
        dsums = (_sum(self.q * dq_state - self.k * (dk_read + dk_write)) + _sum(inside)
                 - xp.sum(inside, axis=-2, dtype=y.dtype))
        dg = _backwards_sum(dsums) + self._at_the_end(dk_write, after)
        found = dq, dk, self.beta * y, dg, dbeta, ds
        return tuple(narrow(x, kind) for x, kind in zip(found, self.dtypes_in, strict=True))

    def _through_states(self, do: Array, ds: Array) -> tuple[Array, Array, Array]:
        """Y [B,H,n,C,Dv], the dS' of all chunks [B,H,n,Dk,Dv], and dS of the first"""
        xp = namespace(do)
        grown, shrunk, kept = _decays(self.sums)
        du, writing = xp.matrix_transpose(self.scores) @ do, self.k * shrunk
        own = xp.matrix_transpose(self.q * grown) @ do
        reading = xp.matrix_transpose(self.beta * grown * self.k)
        inverse, ends, rows = xp.matrix_transpose(self.inverse), [], []
        for i in range(do.shape[2] - 1, -1, -1):
            ends.append(ds)
            rows.append(inverse[:, :, i, ...] @ (du[:, :, i, ...] + writing[:, :, i, ...] @ ds))
            ds = own[:, :, i, ...] + kept[:, :, i, ...] * ds - reading[:, :, i, ...] @ rows[-1]
        return xp.stack(rows[::-1], axis=2), xp.stack(ends[::-1], axis=2), ds

    def _gradients_by_states(self, do: Array, y: Array, after: Array) -> tuple[Array, Array, Array]:
        """E ⊙ (dO Sᵀ), β E ⊙ (Y Sᵀ) and Ē ⊙ (U dS'ᵀ), each [B,H,n,C,Dk]"""
        xp = namespace(do)
        grown, shrunk, _ = _decays(self.sums)
        before = xp.matrix_transpose(self.states[:, :, :-1, ...])
        return (grown * (do @ before), self.beta * grown * (y @ before),
                shrunk * (self.written @ xp.matrix_transpose(after)))

    def _at_the_end(self, dk_write: Array, after: Array) -> Array:
        """What G_C gets besides, which every g of the chunk gets, [B,H,n,1]"""
        xp = namespace(after)
        kept = xp.exp(self.sums[..., -1:])
        stays = xp.sum(self.states[:, :, :-1, ...] * after, axis=(-2, -1), dtype=after.dtype)[..., None]
        return kept * stays + xp.sum(self.k * dk_write, axis=(-2, -1), dtype=after.dtype)[..., None]


def _between(sums: Array) -> Array:
    """Γ [...,C,C] from G [...,C]; what is above the diagonal is 0 before the exponential, or it overflowed"""
    kept = lower(sums.shape[-1], sums)
    return namespace(sums).exp((sums[..., :, None] - sums[..., None, :]) * kept) * kept


def _decays(sums: Array) -> tuple[Array, Array, Array]:
    """E and Ē [B,H,n,C,1], e^{G_C} [B,H,n,1,1]"""
    xp, last = namespace(sums), sums[..., -1:]
    return xp.exp(sums)[..., None], xp.exp(last - sums)[..., None], xp.exp(last)[..., None]


def _sum(x: Array) -> Array:
    """Over the last axis"""
    return namespace(x).sum(x, axis=-1, dtype=x.dtype)


def _backwards_sum(x: Array) -> Array:
    """Σ over the tokens of the chunk from each one on"""
    xp = namespace(x)
    return xp.flip(xp.cumulative_sum(xp.flip(x, axis=3), axis=3), axis=3)


def delta_flops_per_chunk(size: int, keys: int, values: int) -> int:
    """K Kᵀ and Q Kᵀ, T, T R and P U, three products with states"""
    return 4 * size * size * (keys + values) + inverse_flops(size) + 6 * size * keys * values


def delta_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(o[B,H,n,C,Dv], the state after them [B,H,Dk,Dv]) of n chunks of C tokens, a power of two, behind the state
    s[B,H,Dk,Dv]; q, k [B,H,n,C,Dk], v[B,H,n,C,Dv], g ≤ 0 and β [B,H,n,C]; half precision is computed in
    float32."""
    size = q.shape[3] if q.ndim == 5 else 0
    if not (q.shape == k.shape and v.shape[:4] == q.shape[:4] == g.shape == beta.shape
            and size & (size - 1) == 0 < size):
        raise ValueError(f"delta_chunks: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} are [B,H,n,C,D] with "
                         f"C a power of two, g {list(g.shape)} and beta {list(beta.shape)} [B,H,n,C]")
    return DeltaChunks.apply(q, k, v, g, beta, s)
