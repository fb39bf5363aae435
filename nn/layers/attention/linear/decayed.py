"""Linear attention whose state decays by one number per head and token (retention, simple GLA, Mamba-2):

    S_t = e^{g_t} S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t,   g_t ≤ 0

In chunks of C tokens, G the sums of g within one (Sun et al. 2023; Dao & Gu 2024):
    O = (q ⊙ e^G) S + (q kᵀ ⊙ Γ) v,  Γ_ij = e^{G_i − G_j} for i ≥ j, else 0
    S' = e^{G_C} S + (k ⊙ e^{G_C − G})ᵀ v
Every exponent is 0 or less: nothing overflows.  Operations per token and head: the recurrence 4 Dk Dv,
chunks 2[C(Dk + Dv) + 2 Dk Dv]."""

from nn import ops
from nn.backends.array_api import namespace
from nn.layers.chunks import CHUNK, from_chunks, to_chunks
from nn.layers.formulas import ceil_to
from nn.layers.mode import KernelMode, select_mode
from nn.tensor import Array, Tensor


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Array, *, mode: str | None = None,
                      size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """(o[B,H,T,Dv], S after the last token [B,H,Dk,Dv]) from q, k [B,H,T,Dk], v[B,H,T,Dv], g[B,H,T] and the
    state s[B,H,Dk,Dv].  q is scaled already; a token with k = 0 and g = 0 leaves no trace."""
    form = _recurrent if select_mode(q.shape[2], mode=mode) == KernelMode.RECURRENT else _chunked
    return form(q, k, v, g, Tensor(s), size)


def _recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor, size: int) -> tuple[Tensor, Tensor]:
    outputs = []
    decay = ops.exp(g)
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        added = ops.transpose(k[:, :, now]) @ v[:, :, now]                        # [B,H,Dk,Dv]
        s = decay[:, :, now, None] * s + added
        outputs.append(q[:, :, now] @ s)                                          # [B,H,1,Dv]
    return (ops.concat(outputs, axis=2) if outputs else v), s


def _chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor, size: int) -> tuple[Tensor, Tensor]:
    length = q.shape[2]
    if not length:
        return v, s
    q, k, v, g = (to_chunks(x, size) for x in (q, k, v, g))                       # [B,H,n,C,...]
    sums = ops.cumsum(g, axis=3)                                                  # G [B,H,n,C]
    inside = (q @ ops.transpose(k)) * _decays(sums)                               # [B,H,n,C,C]
    last = sums[:, :, :, -1:]                                                     # G_C [B,H,n,1]
    added = ops.transpose(k * ops.exp(last - sums)[..., None]) @ v                # [B,H,n,Dk,Dv]
    kept, before = ops.exp(last)[..., None], []
    for i in range(q.shape[2]):
        before.append(s)
        s = kept[:, :, i] * s + added[:, :, i]
    o = (q * ops.exp(sums)[..., None]) @ ops.stack(before, axis=2) + inside @ v
    return from_chunks(o, length), s


def _decays(sums: Tensor) -> Tensor:
    """Γ [...,C,C] from G [...,C]; masked before the exponential, above the diagonal it would overflow"""
    size, xp = sums.shape[-1], namespace(sums.data)
    row, column = xp.arange(size)[:, None], xp.arange(size)[None, :]
    return ops.exp(ops.where(column <= row, sums[..., None] - sums[..., None, :], -float("inf")))


def decayed_flops(batch: int, heads: int, length: int, key_width: int, value_width: int, mode: str | None,
                  size: int = CHUNK) -> int:
    """Of decayed_attention, chunks counted whole"""
    if select_mode(length, mode=mode) == KernelMode.RECURRENT:
        return batch * heads * length * 4 * key_width * value_width
    tokens = batch * heads * ceil_to(length, size)
    return tokens * 2 * (size * (key_width + value_width) + 2 * key_width * value_width)
