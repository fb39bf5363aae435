"""The selective scan: what Mamba remembers, channel by channel, at a rate that each token sets."""

import math
from collections.abc import Iterator
from typing import Any

from nn.backends.array_api import namespace, on_device
from nn.dtypes import narrow, widen
from nn.tensor import Array, Op, Tensor

STEP = 9                # operations counted per token, channel and state: the literature's convention
IN_CACHE = 1 << 16      # numbers per array that the host handles together: four such arrays fit its cache
FEWEST = 8              # tokens it handles together all the same: the backward keeps so much less


class SelectiveScan(Op):
    """a_t = e^{Δ_t A},  h_t = a_t ⊙ h_{t−1} + (Δ_t x_t) B_tᵀ,  y_t = h_t C_t + D ⊙ x_t   (Gu & Dao 2023)

    A, h of channels × states; x, Δ, D of channels; B, C of states.  The tokens of a chunk are handled
    together: pairs (a, b) stand for h ↦ a h + b, and two of them, first (a, b), then (a', b'), for the pair
    (a' a, a' b + b').  All prefixes of L tokens take 2 log₂ L rounds over pairs of neighbouring blocks
    (Brent & Kung 1982).  Only products of decays are formed, none is divided by: what underflows is
    forgotten.  The host takes fewer tokens at a time than asked for where their states do not fit its cache.

    Backward, chunk by chunk from the last, from u = dy and dh' = dh_T, what comes after the chunk:
        dh_t = u_t C_tᵀ + a_{t+1} ⊙ dh_{t+1}      the same scan from right to left, each a one token earlier
        dC_t = h_tᵀ u_t,   dB_t = dh_tᵀ (Δ_t x_t),   s_t = dh_t B_t,   m_t = dh_t ⊙ a_t ⊙ h_{t−1}
        dx_t = D ⊙ u_t + Δ_t ⊙ s_t,   dD = Σ_t u_t ⊙ x_t
        dΔ_t = Σ_states m_t ⊙ A + x_t ⊙ s_t,   dA = Σ_t Δ_t m_t,   dh_0 = a_1 ⊙ dh_1
    as ∂a_t/∂Δ_t = A a_t and ∂a_t/∂A = Δ_t a_t.  Saved: the inputs and the states between chunks; those within
    a chunk are computed again.  Inside, states stand before channels: the longer axis last."""

    def forward(self, x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array, h: Array, *,
                size: int) -> tuple[Array, Array]:
        xp, self.inputs, self.h_type, self.size = namespace(x), (x, delta, a, b, c, d), h.dtype, size
        if not on_device(x):
            self.size = min(size, max(FEWEST, IN_CACHE // max(1, math.prod(h.shape))))
        self.a, skip = xp.matrix_transpose(widen(a)), widen(d)                    # [N,C], [C]
        h, self.starts = xp.matrix_transpose(widen(h)), []                        # [B,N,C] each
        y = xp.zeros(x.shape, dtype=x.dtype)
        for part in self._chunks():
            x_, delta_, b_, c_ = (widen(z[:, part, :]) for z in (x, delta, b, c))
            self.starts.append(h)
            _, states = self._states(x_, delta_, b_, h)
            read = (c_[:, :, None, :] @ states)[:, :, 0, :]
            y[:, part, :] = narrow(read + skip * x_, x.dtype)
            h = xp.asarray(states[:, -1, ...], copy=True)
        return y, narrow(xp.matrix_transpose(h), self.h_type)

    def _chunks(self) -> Iterator[slice]:
        length = self.inputs[0].shape[1]
        return (slice(i, min(i + self.size, length)) for i in range(0, length, self.size))

    def _states(self, x: Array, delta: Array, b: Array, h: Array) -> tuple[Array, Array]:
        """a and h of every token of a chunk behind h[B,N,C], both [B,L,N,C]"""
        xp = namespace(x)
        decays = xp.exp(delta[:, :, None, :] * self.a)
        states = (delta * x)[:, :, None, :] * b[..., None]
        states[:, 0, ...] += decays[:, 0, ...] * h
        if x.shape[1] > 1:
            run(xp.asarray(decays, copy=True), states)
        return decays, states

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return STEP * math.prod(inputs[0].shape) * inputs[2].shape[1]

    def backward(self, dy: Array | None, dh: Array | None) -> Any:
        x, delta, a, b, c, d = self.inputs
        xp, kind = namespace(x), self.a.dtype
        dy = xp.zeros(x.shape, dtype=kind) if dy is None else dy
        batch, states, channels = x.shape[0], a.shape[1], a.shape[0]
        dh = xp.zeros((batch, states, channels), dtype=kind) if dh is None else xp.matrix_transpose(widen(dh))
        dx, ddelta, db, dc = (xp.zeros(z.shape, dtype=kind) for z in (x, delta, b, c))
        da, skip = xp.zeros(self.a.shape, dtype=kind), widen(d)
        for part, start in reversed(list(zip(self._chunks(), self.starts, strict=True))):
            given = tuple(widen(z[:, part, :]) for z in (x, delta, b, c, dy))
            *found, da_, dh = self._chunk_backward(given, start, dh)
            for total, piece in zip((dx, ddelta, db, dc), found, strict=True):
                total[:, part, :] = piece
            da = da + da_
        u, wide = widen(dy), widen(x)
        dd = xp.sum(u * wide, axis=(0, 1), dtype=kind)
        dx = dx + skip * u
        gradients = dx, ddelta, xp.matrix_transpose(da), db, dc, dd, xp.matrix_transpose(dh)
        kinds = [z.dtype for z in self.inputs] + [self.h_type]
        return tuple(narrow(g, kind) for g, kind in zip(gradients, kinds, strict=True))

    def _chunk_backward(self, given: tuple[Array, ...], start: Array, after: Array) -> tuple[Array, ...]:
        """dx without D's share, dΔ, dB, dC, dA[N,C] from x, Δ, B, C and u = dy of a chunk behind `start`, and
        the gradient of `start`"""
        (x, delta, b, c, u), xp = given, namespace(start)
        decays, states = self._states(x, delta, b, start)
        dstates = u[:, :, None, :] * c[..., None]                                 # [B,L,N,C]
        dstates[:, -1, ...] += after
        if x.shape[1] > 1:
            run(xp.concat([decays[:, 1:, ...], decays[:, :1, ...]], axis=1), dstates, backwards=True)
        dc = (states @ u[..., None])[..., 0]
        db = (dstates @ (delta * x)[..., None])[..., 0]
        s = (b[:, :, None, :] @ dstates)[:, :, 0, :]
        m = decays * dstates
        before = xp.asarray(m[:, 0, ...], copy=True)
        m[:, 1:, ...] *= states[:, :-1, ...]
        m[:, 0, ...] *= start
        ddelta = xp.sum(m * self.a, axis=2, dtype=m.dtype) + x * s
        da = xp.sum(m * delta[:, :, None, :], axis=(0, 1), dtype=m.dtype)
        return delta * s, ddelta, db, dc, da, before


def run(decays: Array, h: Array, backwards: bool = False) -> None:
    """h_t ← decays_t ⊙ h_{t−1} + h_t along axis 1, in place; backwards with h_{t+1}.  decays is used up.

    Up: the last token of each block of 2w takes in what its first half ends with, and its decay becomes that
    of the whole block.  Down: the ends of first halves take in what came before their block."""
    length = h.shape[1]
    widths = [1 << i for i in range(length.bit_length() - 1)]                     # w with 2w ≤ length
    for w in widths:
        to, source = _pairs(length, 2 * w - 1, w, backwards)
        h[:, to, ...] += decays[:, to, ...] * h[:, source, ...]
        decays[:, to, ...] *= decays[:, source, ...]
    for w in reversed(widths):
        if 3 * w <= length:
            to, source = _pairs(length, 3 * w - 1, w, backwards)
            h[:, to, ...] += decays[:, to, ...] * h[:, source, ...]


def _pairs(length: int, first: int, w: int, backwards: bool) -> tuple[slice, slice]:
    """The tokens first, first + 2w, ... and those w before them; backwards counted from the end"""
    tokens = range(first, length, 2 * w)
    start, shift = (length - 1 - tokens[-1], w) if backwards else (first, -w)
    span = tokens[-1] - first + 1
    return slice(start, start + span, 2 * w), slice(start + shift, start + shift + span, 2 * w)


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
