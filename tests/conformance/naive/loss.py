"""Losses, row by row."""

from typing import Any

import numpy as np

from tests.conformance.naive.arithmetic import Array, product, total


def _row_loss(z: Array, target: int, smoothing: float, z_loss: float, cap: float) -> tuple[Any, Any, Array]:
    """(loss, lse, dlogits) of one row"""
    c = z.dtype.type
    capped = c(cap) * np.tanh(z / c(cap)) if cap else z
    largest = np.max(capped)
    e = np.exp(capped - largest)
    lse = largest + np.log(total(e)[0])
    loss = (lse - c(1 - smoothing) * capped[target] - c(smoothing / len(z)) * total(capped)[0]
            + c(z_loss) * lse * lse)
    grad = e / total(e) * (c(1) + c(2 * z_loss) * lse) - c(smoothing / len(z))
    grad[target] -= c(1 - smoothing)
    return loss, lse, grad * (c(1) - (capped / c(cap)) ** 2).astype(z.dtype) if cap else grad


def cross_entropy(logits: Array, targets: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
                  z_loss: float = 0.0, softcap: float = 0.0) -> tuple[Array, Array]:
    loss, lse = np.zeros(len(targets), logits.dtype), np.zeros(len(targets), logits.dtype)
    for r, target in enumerate(targets):
        counts = target != ignore_index
        row_loss, lse[r], _ = _row_loss(logits[r], target if counts else 0, label_smoothing, z_loss, softcap)
        loss[r] = row_loss if counts else 0
    return loss, lse


def cross_entropy_backward(dloss: Array, logits: Array, targets: Array, lse: Array, *,
                           ignore_index: int = -100,
                           label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0) -> Array:
    dlogits = np.zeros_like(logits)
    for r, target in enumerate(targets):
        if target != ignore_index:
            gradient = _row_loss(logits[r], target, label_smoothing, z_loss, softcap)[2]
            dlogits[r] = gradient * dloss[r].astype(logits.dtype)
    return dlogits


def linear_cross_entropy(x: Array, weight: Array, targets: Array, *, gradient: bool = True,
                         scale: float = 1.0, **options: Any) -> Any:
    logits = product(x, weight.T)
    loss, lse = cross_entropy(logits, targets, **options)
    if not gradient:
        return loss, None, None
    dlogits = cross_entropy_backward(np.full_like(loss, scale), logits, targets, lse, **options)
    return loss, product(dlogits, weight), product(dlogits.T, x)
