"""Linear attention whose state decays by one number per head and token (retention, simple GLA, Mamba-2): both
forms of

    S_t = e^{g_t} S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t,   g_t ≤ 0

Operations per token and head: the recurrence 4 Dk Dv, chunks of C tokens 2[C(Dk + Dv) + 2 Dk Dv]."""

from nn import ops
from nn.layers.chunks import CHUNK, from_chunks, state_before, to_chunks
from nn.layers.formulas import ceil_to
from nn.layers.mode import KernelMode, select_mode
from nn.layers.precision import cast_to
from nn.ops.decayed import decayed_flops_per_token
from nn.tensor import Array, Tensor


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Array | Tensor, *,
                      mode: str | None = None, size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """(o[B,H,T,Dv], S after the last token [B,H,Dk,Dv]) from q, k [B,H,T,Dk], v[B,H,T,Dv], g[B,H,T] and the
    state s[B,H,Dk,Dv].  q is scaled already; a token with k = 0 and g = 0 leaves no trace."""
    length, s = q.shape[2], state_before(s, k, v)
    if select_mode(length, mode=mode) == KernelMode.RECURRENT or not length:
        return _recurrent(q, k, v, g, s)
    q, k, v, g = (to_chunks(x, size) for x in (q, k, v, g))                       # [B,H,n,C,...]
    o, last = ops.decayed_chunks(q, k, v, g, s)
    return from_chunks(o, length), last


def _recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    outputs, decay, v = [], ops.exp(g), cast_to(v, s.dtype)                       # k vᵀ unrounded
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        added = ops.transpose(k[:, :, now]) @ v[:, :, now]                        # [B,H,Dk,Dv]
        s = decay[:, :, now, None] * s + added
        outputs.append(q[:, :, now] @ s)                                          # [B,H,1,Dv]
    return (ops.concat(outputs, axis=2) if outputs else v), s


def decayed_flops(batch: int, heads: int, length: int, key_width: int, value_width: int, mode: str | None,
                  size: int = CHUNK) -> int:
    """Of decayed_attention, chunks counted whole"""
    if select_mode(length, mode=mode) == KernelMode.RECURRENT:
        return batch * heads * length * 4 * key_width * value_width
    return batch * heads * ceil_to(length, size) * decayed_flops_per_token(size, key_width, value_width)
