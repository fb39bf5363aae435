"""Softmax attention of queries over sets of keys, by the operation that serves what is wanted of it."""

from nn import ops
from nn.ops.merged import KeySet
from nn.tensor import Array, Tensor


def attend(q: Tensor, sets: list[KeySet], *, scale: float, sinks: Tensor | None = None, softcap: float = 0.0,
           dropout: float = 0.0, noise: Array | None = None, dense: bool = False) -> Tensor:
    """o[B,H,T,Dv] of q[B,H,T,Dk].  softcap c: scores u become c tanh(u / c); 0 = not.  dropout: share of the
    probabilities that are left out, drawn at `noise`.  These, and `dense`, form all scores at once; without
    them nothing of the size T·S is kept."""
    if softcap or dropout or dense:
        return ops.dense_attention(q, sets, sinks=sinks, scale=scale, softcap=softcap, dropout=dropout,
                                   noise=noise)
    if sinks is None and len(sets) == 1:
        keys = sets[0]
        return ops.attention(q, keys.k, keys.v, scale=scale, causal=keys.causal, window=keys.window,
                             mask=keys.mask)
    return ops.merged_attention(q, sets, sinks=sinks, scale=scale)
