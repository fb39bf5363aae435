"""The selective scan: what Mamba remembers, channel by channel, at a rate that each token sets."""

import math
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace, on_device
from nn.backends.native.dense import served
from nn.dtypes import narrow, widen
from nn.tensor import Array, Op, Tensor

STEP = 9                # operations counted per token, channel and state: the literature's convention
IN_CACHE = 1 << 16      # numbers per array that the reference handles together: four such fit a host's cache
FEWEST = 8              # tokens it handles together all the same: the backward keeps so much less


class SelectiveScan(Op):
    """a_t = e^{Δ_t A},  h_t = a_t ⊙ h_{t−1} + (Δ_t x_t) B_tᵀ,  y_t = h_t C_t + D ⊙ x_t   (Gu & Dao 2023)

    A, h of channels × states; x, Δ, D of channels; B, C of states.  The backward has the inputs and the
    states between chunks; those within a chunk it forms again."""

    def forward(self, x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array, h: Array, *,
                size: int) -> tuple[Array, Array]:
        self.kinds = [z.dtype for z in (x, delta, a, b, c, d, h)]
        self.inputs = x, widen(delta), widen(a), b, c, widen(d)
        parts = max(1, -(-x.shape[1] // _tokens(x, h, size)))
        y, last, self.starts = kernels.selective_scan(*self.inputs, widen(h), parts, keep=any(self.needs))
        return y, narrow(last, self.kinds[-1])

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return STEP * math.prod(inputs[0].shape) * inputs[2].shape[1]

    def backward(self, dy: Array | None, dh: Array | None) -> Any:
        x, _, a, *_ = self.inputs
        xp = namespace(x)
        dy = xp.zeros(x.shape, dtype=x.dtype) if dy is None else dy
        dh = xp.zeros((x.shape[0], *a.shape), dtype=a.dtype) if dh is None else widen(dh)
        gradients = kernels.selective_scan_backward(dy, dh, *self.inputs, self.starts)
        return tuple(narrow(g, kind) for g, kind in zip(gradients, self.kinds, strict=True))


def _tokens(x: Array, h: Array, size: int) -> int:
    """Of a chunk: those asked for; the reference on a host takes fewer where their states do not fit its
    cache"""
    if on_device(x) or served(x):
        return size
    return min(size, max(FEWEST, IN_CACHE // max(1, math.prod(h.shape))))


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h: Tensor, *,
                   chunk_size: int = 64) -> tuple[Tensor, Tensor]:
    """(y[B,T,C], the state after the last token [B,C,N]) of tokens behind the state h[B,C,N].

    x, delta [B,T,C]; a[C,N], 0 or less; b, c [B,T,N]; d[C].  Up to chunk_size tokens are handled together: 1
    is the recurrence.  Half precision is computed in float32; y is of x's type, the state of h's."""
    batch, length, channels = x.shape if x.ndim == 3 else (0, 0, 0)
    right = (a.ndim == 2 and delta.shape == x.shape and d.shape == (channels,) and chunk_size > 0
             and b.shape == c.shape == (batch, length, a.shape[1]) and a.shape[0] == channels
             and h.shape == (batch, channels, a.shape[1]))
    if not right:
        raise ValueError(f"selective_scan: x {list(x.shape)}, delta {list(delta.shape)} are [B,T,C], "
                         f"a {list(a.shape)} [C,N], b {list(b.shape)}, c {list(c.shape)} [B,T,N], "
                         f"d {list(d.shape)} [C], h {list(h.shape)} [B,C,N]; chunk_size {chunk_size} > 0")
    return SelectiveScan.apply(x, delta, a, b, c, d, h, size=chunk_size)
