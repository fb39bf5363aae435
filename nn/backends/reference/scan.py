"""The selective scan: chunks of tokens at once, by all prefixes of h ↦ a h + b."""

from collections.abc import Iterator
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array, h: Array, parts: int, *,
                   keep: bool = True) -> tuple[Array, Array, Array | None]:
    """(y, h_T, the states [B,P,N,C] before each part) of  h_t = e^{Δ_t a} ⊙ h_{t−1} + (Δ_t x_t) b_tᵀ,
    y_t = h_t c_t + d ⊙ x_t.  The tokens of a part are handled together: pairs (a, b) stand for h ↦ a h + b,
    and two of them, first (a, b), then (a', b'), for the pair (a' a, a' b + b').  All prefixes of L tokens
    take 2 log₂ L rounds over pairs of neighbouring blocks (Brent & Kung 1982).  Only products of decays are
    formed, none is divided by: what underflows is forgotten.  Inside, states stand before channels: the
    longer axis last."""
    xp, kind, rates, skip = namespace(x), h.dtype, _transposed(widen(a)), widen(d)
    h, y, starts = _transposed(widen(h)), xp.zeros(x.shape, dtype=x.dtype), []                  # h [B,N,C]
    for part in parts_of(x.shape[1], parts):
        starts.append(h)
        if part.start == part.stop:
            continue
        x_, delta_, b_, c_ = (widen(z[:, part, :]) for z in (x, delta, b, c))
        _, states = _states(x_, delta_, rates, b_, h)
        read = (c_[:, :, None, :] @ states)[:, :, 0, :]
        y[:, part, :] = narrow(read + skip * x_, x.dtype)
        h = xp.asarray(states[:, -1, ...], copy=True)
    return y, narrow(_transposed(h), kind), xp.stack(starts, axis=1) if keep else None


def selective_scan_backward(dy: Array, dlast: Array, x: Array, delta: Array, a: Array, b: Array, c: Array,
                            d: Array, starts: Array) -> tuple[Array, ...]:
    """(dx, dΔ, da, db, dc, dd, dh), part by part from the last, from u = dy and dh' = dlast:
        dh_t = u_t c_tᵀ + a_{t+1} ⊙ dh_{t+1}      the same scan from right to left, each a one token earlier
        dc_t = h_tᵀ u_t,   db_t = dh_tᵀ (Δ_t x_t),   s_t = dh_t b_t,   m_t = dh_t ⊙ a_t ⊙ h_{t−1}
        dx_t = d ⊙ u_t + Δ_t ⊙ s_t,   dd = Σ_t u_t ⊙ x_t
        dΔ_t = Σ_states m_t ⊙ a + x_t ⊙ s_t,   da = Σ_t Δ_t m_t,   dh_0 = a_1 ⊙ dh_1
    with a_t = e^{Δ_t a}: ∂a_t/∂Δ_t = a a_t and ∂a_t/∂a = Δ_t a_t.  States within a part are formed again."""
    xp, rates = namespace(x), _transposed(widen(a))
    kind, parts = rates.dtype, starts.shape[1]
    dh = _transposed(widen(dlast))
    dx, ddelta, db, dc = (xp.zeros(z.shape, dtype=kind) for z in (x, delta, b, c))
    da, skip = xp.zeros(rates.shape, dtype=kind), widen(d)
    for i, part in reversed(list(enumerate(parts_of(x.shape[1], parts)))):
        if part.start == part.stop:
            continue
        given = tuple(widen(z[:, part, :]) for z in (x, delta, b, c, dy))
        *found, da_, dh = _part_backward(given, rates, starts[:, i, ...], dh)
        for total, piece in zip((dx, ddelta, db, dc), found, strict=True):
            total[:, part, :] = piece
        da = da + da_
    u, wide = widen(dy), widen(x)
    dd = xp.sum(u * wide, axis=(0, 1), dtype=kind)
    return (narrow(dx + skip * u, x.dtype), ddelta, _transposed(da), narrow(db, b.dtype),
            narrow(dc, c.dtype), dd, _transposed(dh))


def parts_of(length: int, parts: int) -> Iterator[slice]:
    """[0, length) in `parts` of ⌈length / parts⌉; the last ones may be shorter, or empty"""
    size = -(-length // parts)
    return (slice(min(i * size, length), min((i + 1) * size, length)) for i in range(parts))


def _transposed(x: Array) -> Array:
    return namespace(x).matrix_transpose(x)


def _states(x: Array, delta: Array, rates: Array, b: Array, h: Array) -> tuple[Array, Array]:
    """a and h of every token of a part behind h[B,N,C], both [B,L,N,C]"""
    xp = namespace(x)
    decays = xp.exp(delta[:, :, None, :] * rates)
    states = (delta * x)[:, :, None, :] * b[..., None]
    states[:, 0, ...] += decays[:, 0, ...] * h
    if x.shape[1] > 1:
        run(xp.asarray(decays, copy=True), states)
    return decays, states


def _part_backward(given: tuple[Array, ...], rates: Array, start: Array, after: Array) -> tuple[Array, ...]:
    """dx without d's share, dΔ, db, dc, da[N,C] from x, Δ, b, c and u = dy of a part behind `start`, and
    the gradient of `start`"""
    (x, delta, b, c, u), xp = given, namespace(start)
    decays, states = _states(x, delta, rates, b, start)
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
    ddelta = xp.sum(m * rates, axis=2, dtype=m.dtype) + x * s
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
