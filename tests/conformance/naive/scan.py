"""The selective scan, token by token."""

import numpy as np

from tests.conformance.naive.arithmetic import Array, total


def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array, h: Array, parts: int, *,
                   keep: bool = True) -> tuple[Array, Array, Array | None]:
    y, h, starts, size = np.zeros(x.shape, x.dtype), h.copy(), [], -(-x.shape[1] // parts)
    for t in range(parts * size):
        if t % size == 0:
            starts.append(h.copy())
        if t < x.shape[1]:
            now = delta[:, t, :, None]
            h = np.exp(now * a) * h + now * x[:, t, :, None] * b[:, t, None, :]
            y[:, t] = total(h * c[:, t, None, :], keepdims=False) + d * x[:, t]
    before = np.stack(starts or [h] * parts, axis=1).swapaxes(2, 3)
    return y, h, before if keep else None


def selective_scan_backward(dy: Array, dlast: Array, x: Array, delta: Array, a: Array, b: Array, c: Array,
                            d: Array, starts: Array) -> tuple[Array, ...]:
    dx, ddelta, da, db, dc, dd = (np.zeros(z.shape, z.dtype) for z in (x, delta, a, b, c, d))
    dh, length = dlast.copy(), x.shape[1]
    size = -(-length // starts.shape[1])
    for t in reversed(range(length)):
        first = t // size * size
        h = before = starts[:, t // size].swapaxes(1, 2)
        for i in range(first, t + 1):
            now, before = delta[:, i, :, None], h
            decay, written = np.exp(now * a), now * x[:, i, :, None]
            h = decay * before + written * b[:, i, None, :]
        dh = dh + dy[:, t, :, None] * c[:, t, None, :]
        dc[:, t] = total(h * dy[:, t, :, None], axis=1, keepdims=False)
        db[:, t] = total(dh * written, axis=1, keepdims=False)
        read, m = total(dh * b[:, t, None, :], keepdims=False), dh * decay * before
        dx[:, t] = d * dy[:, t] + delta[:, t] * read
        ddelta[:, t] = total(m * a, keepdims=False) + x[:, t] * read
        da += total(now * m, axis=0, keepdims=False)
        dd += total(dy[:, t] * x[:, t], axis=0, keepdims=False)
        dh = dh * decay
    return dx, ddelta, da, db, dc, dd, dh
