"""The gated delta rule, which replaces what is stored under a key: both forms of

    S̄ = e^{g_t} S_{t−1},   S_t = S̄ + β_t k_t (v_t − S̄ᵀ k_t)ᵀ,   o_t = S_tᵀ q_t,   g_t ≤ 0, 0 ≤ β_t ≤ 2

‖k_t‖ ≤ 1 keeps it stable: I − β k kᵀ then has no eigenvalue beyond ±1.  Rounded to half precision keys may be
longer than that, and at β = 2 the state grows: keys are given in float32.  g = 0 is the plain delta rule."""

from nn import ops
from nn.layers.chunks import CHUNK, from_chunks, state_before, to_chunks
from nn.layers.formulas import ceil_to
from nn.layers.mode import KernelMode, select_mode
from nn.ops.delta import delta_flops_per_chunk
from nn.tensor import Array, Tensor


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, s: Array, *,
                     mode: str | None = None, size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """(o[B,H,T,Dv], S after the last token [B,H,Dk,Dv]) from q, k [B,H,T,Dk], v[B,H,T,Dv], g and β [B,H,T]
    and the state s[B,H,Dk,Dv].  q is scaled already; a token with β = 0 and g = 0 leaves no trace.  `size`,
    the tokens of a chunk, is a power of two."""
    length, before = q.shape[2], state_before(s, k, v)
    if select_mode(length, mode=mode) == KernelMode.RECURRENT or not length:
        return _recurrent(q, k, v, g, beta, before)
    q, k, v, g, beta = (to_chunks(x, size) for x in (q, k, v, g, beta))           # [B,H,n,C,...]
    o, last = ops.delta_chunks(q, k, v, g, beta, before)
    return from_chunks(o, length), last


def _recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
               s: Tensor) -> tuple[Tensor, Tensor]:
    outputs, decay = [], ops.exp(g)
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        s = decay[:, :, now, None] * s
        change = beta[:, :, now, None] * (v[:, :, now] - k[:, :, now] @ s)        # [B,H,1,Dv]
        s = s + ops.transpose(k[:, :, now]) @ change                              # [B,H,Dk,Dv]
        outputs.append(q[:, :, now] @ s)
    return (ops.concat(outputs, axis=2) if outputs else v), s


def delta_flops(batch: int, heads: int, length: int, key_width: int, value_width: int, mode: str | None,
                size: int = CHUNK) -> int:
    """Of gated_delta_rule, chunks counted whole"""
    if select_mode(length, mode=mode) == KernelMode.RECURRENT:
        return batch * heads * length * 6 * key_width * value_width
    chunks = batch * heads * ceil_to(length, size) // size
    return chunks * delta_flops_per_chunk(size, key_width, value_width)
