"""Cross-entropy over rows of logits, and linear + cross-entropy that never holds all logits.

With z' = c·tanh(z/c) (softcap c; z' = z without), L = log Σ exp z', smoothing ε and z-loss ζ:
    loss = L − (1−ε) z'_y − ε/V Σ z' + ζ L²
    dz' = softmax(z')(1 + 2ζL) − (1−ε) 1[j = y] − ε/V,   dz = dz' (1 − (z'/c)²)
Rows whose target is `ignore_index` have loss 0 and gradient 0."""

from typing import Any

from nn.backends.array_api import add_at_columns, namespace
from nn.backends.reference.softmax import row_max
from nn.dtypes import narrow, widen

Array = Any
LOGITS_AT_ONCE = 1 << 22     # logits that linear_cross_entropy holds at a time (16 MiB in float32)


def _capped(logits: Array, softcap: float) -> Array:
    z = widen(logits)
    return softcap * namespace(z).tanh(z / softcap) if softcap else z


def cross_entropy(logits: Array, targets: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
                  z_loss: float = 0.0, softcap: float = 0.0) -> tuple[Array, Array]:
    """(loss[R], lse[R]) in nats from logits[R,V] and integer targets[R]."""
    xp = namespace(logits)
    z = _capped(logits, softcap)
    m = row_max(z)
    lse = xp.log(xp.sum(xp.exp(z - m), axis=-1, dtype=z.dtype)) + m[:, 0]
    counted = targets != ignore_index
    label = xp.where(counted, targets, xp.zeros_like(targets))
    loss = lse - (1.0 - label_smoothing) * xp.take_along_axis(z, label[:, None], axis=-1)[:, 0]
    if label_smoothing:
        loss = loss - label_smoothing / z.shape[-1] * xp.sum(z, axis=-1, dtype=z.dtype)
    if z_loss:
        loss = loss + z_loss * lse * lse
    return xp.where(counted, loss, xp.zeros_like(loss)), lse


def cross_entropy_backward(dloss: Array, logits: Array, targets: Array, lse: Array, *,
                           ignore_index: int = -100, label_smoothing: float = 0.0,
                           z_loss: float = 0.0, softcap: float = 0.0) -> Array:
    """dlogits[R,V]"""
    xp = namespace(logits)
    z = _capped(logits, softcap)
    counted = targets != ignore_index
    upstream = xp.where(counted, widen(dloss), xp.zeros_like(lse))
    dz = xp.exp(z - lse[:, None])
    if z_loss:
        dz *= 1.0 + 2.0 * z_loss * lse[:, None]
    if label_smoothing:
        dz -= label_smoothing / z.shape[-1]
    dz *= upstream[:, None]
    label = xp.where(counted, targets, xp.zeros_like(targets))
    dz = add_at_columns(dz, label, (label_smoothing - 1.0) * upstream)
    if softcap:
        dz *= 1.0 - (z / softcap) ** 2
    return narrow(dz, logits.dtype)


def linear_cross_entropy(x: Array, weight: Array, targets: Array, *, gradient: bool = True,
                         scale: float = 1.0,
                         **options: Any) -> tuple[Array, Array | None, Array | None]:
    """(loss[R], dx[R,D], dweight[V,D]): cross-entropy of x weightᵀ, and the gradients of scale · Σ loss.

    Chunk by chunk of rows; gradient=False leaves dx and dweight out (None)."""
    xp = namespace(x)
    rows = max(1, LOGITS_AT_ONCE // max(1, weight.shape[0]))
    w, losses, dxs = widen(weight), [], []
    dweight = xp.zeros(w.shape, dtype=w.dtype) if gradient else None
    for start in range(0, x.shape[0], rows):
        stop = min(start + rows, x.shape[0])
        part, label = widen(x[start:stop, :]), targets[start:stop]
        logits = xp.matmul(part, w.T)
        loss, lse = cross_entropy(logits, label, **options)
        losses.append(loss)
        if gradient:
            dlogits = cross_entropy_backward(xp.full_like(loss, scale), logits, label, lse, **options)
            dxs.append(xp.matmul(dlogits, w))
            dweight += xp.matmul(dlogits.T, part)
    loss = xp.concat(losses) if losses else xp.zeros((0,), dtype=w.dtype)
    if not gradient:
        return loss, None, None
    dx = xp.concat(dxs) if dxs else xp.zeros(x.shape, dtype=w.dtype)
    return loss, narrow(dx, x.dtype), dweight
