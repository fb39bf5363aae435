"""Linear attention whose state decays by one number per channel of the keys: both forms of

    S_t = diag(e^{g_t}) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t,   g_t ≤ 0"""

from nn import ops
from nn.layers.chunks import CHUNK, from_chunks, state_before, to_chunks
from nn.layers.formulas import ceil_to
from nn.layers.mode import KernelMode, select_mode
from nn.layers.precision import cast_to
from nn.ops.gla import gla_flops_per_token
from nn.tensor import Array, Tensor


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Array, *, mode: str | None = None,
                           size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """(o[B,H,T,Dv], S after the last token [B,H,Dk,Dv]) from q, k, g [B,H,T,Dk], v[B,H,T,Dv] and the state
    s[B,H,Dk,Dv].  q is scaled already; a token with k = 0 and g = 0 leaves no trace.  `size`, the tokens of
    a chunk, is a power of two."""
    length, before = q.shape[2], state_before(s, k, v)
    if select_mode(length, mode=mode) == KernelMode.RECURRENT or not length:
        return _recurrent(q, k, v, g, before)
    q, k, v, g = (to_chunks(x, size) for x in (q, k, v, g))                       # [B,H,n,C,D]
    o, last = ops.gla_chunks(q, k, v, g, before)
    return from_chunks(o, length), last


def _recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    outputs, decay, v = [], ops.transpose(ops.exp(g)), cast_to(v, s.dtype)        # [B,H,Dk,T]; k vᵀ unrounded
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        s = decay[..., now] * s + ops.transpose(k[:, :, now]) @ v[:, :, now]      # [B,H,Dk,Dv]
        outputs.append(q[:, :, now] @ s)                                          # [B,H,1,Dv]
    return (ops.concat(outputs, axis=2) if outputs else v), s


def gla_flops(batch: int, heads: int, length: int, key_width: int, value_width: int, mode: str | None,
              size: int = CHUNK) -> int:
    """Of gated_linear_attention, chunks counted whole; of what is above their diagonal only zeros are
    multiplied, with values."""
    if select_mode(length, mode=mode) == KernelMode.RECURRENT:
        return batch * heads * length * 4 * key_width * value_width
    return batch * heads * ceil_to(length, size) * gla_flops_per_token(size, key_width, value_width)
