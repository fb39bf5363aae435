"""Cross-entropy, and linear + cross-entropy fused so that the logits of all rows never exist at once."""

import math
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import beside, namespace, on_device
from nn.dtypes import widen
from nn.errors import InputError
from nn.ops.gather import as_integers
from nn.tensor import Array, Op, Tensor


class CrossEntropy(Op):
    """loss_r = log Σ exp z_r − z_r[target]:  dz = (softmax(z) − onehot(target)) dloss

    Ignored rows give 0 and get 0."""

    new_gradients = True

    def forward(self, logits: Array, *, targets: Array, **options: Any) -> Array:
        self.logits, self.targets, self.options = logits, targets, options
        loss, self.lse = kernels.cross_entropy(logits, targets, **options)
        return loss

    def backward(self, dloss: Array) -> Array:
        return kernels.cross_entropy_backward(dloss, self.logits, self.targets, self.lse, **self.options)


class LinearCrossEntropy(Op):
    """y = c Σ_r CE(x_r Wᵀ, target_r).  The sum's gradient is formed with the logits at hand, chunk by chunk:

    dz = c (softmax(z) − onehot),  dx = dz W,  dW = dzᵀ x;  backward only multiplies by dy, unless that is 1.
    (On a device c is multiplied there, too: it may be an array.)"""

    new_gradients = True

    def forward(self, x: Array, weight: Array, *, targets: Array, scale: float, **options: Any) -> Array:
        xp = namespace(x)
        rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        if not on_device(x):
            options["scale"] = float(scale)
        loss, dx, dweight = kernels.linear_cross_entropy(rows, weight, targets,
                                                         gradient=any(self.needs), **options)
        self.shape, self.dx, self.dweight = tuple(x.shape), dx, dweight
        self.scale = scale if on_device(x) else 1.0             # what the gradients still lack
        if on_device(x):
            return xp.sum(loss, dtype=loss.dtype) * xp.asarray(scale, dtype=loss.dtype)
        total = kernels.column_sum(xp.reshape(loss, (-1, 1)))   # by kernels, which are recorded
        return xp.reshape(kernels.scale(total, float(scale)), ())

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        """Of the logits alone, although the gradients are formed with them at hand."""
        return 2 * math.prod(inputs[0].shape) * inputs[1].shape[0]

    def backward(self, dy: Array) -> Any:
        dx = namespace(self.dx).reshape(self.dx, self.shape)
        if not on_device(dy) and float(dy) == 1.0:
            return dx, self.dweight
        factor = dy * self.scale
        return widen(dx) * factor, self.dweight * factor


def _checked_targets(targets: Any, rows: tuple[int, ...], vocab_size: int, ignore_index: int) -> Array:
    """[R] integers; InputError for another shape or type, or the first target outside the vocabulary (not of
    targets on a device, which were checked when they were put there)."""
    targets = as_integers("targets", targets)
    if tuple(targets.shape) != (math.prod(rows),):
        raise InputError(f"targets: shape {list(targets.shape)}, expected one per row, [{math.prod(rows)}]")
    if on_device(targets):
        return targets
    bad = ((targets < 0) | (targets >= vocab_size)) & (targets != ignore_index)
    xp = namespace(targets)
    if bool(xp.any(bad)):
        row = int(xp.nonzero(bad)[0][0])
        raise InputError(f"targets[{row}]: {int(targets[row])} is outside 0 ... {vocab_size - 1}; "
                         f"use {ignore_index} for positions without a target")
    return targets


def cross_entropy(logits: Tensor, targets: Array, *, ignore_index: int = -100, **options: float) -> Tensor:
    """[R] losses in nats from logits[R,V], integer targets[R]; options label_smoothing, z_loss, softcap."""
    if logits.ndim != 2:
        raise ValueError(f"cross_entropy: logits are [R,V], not {list(logits.shape)}; reshape them")
    targets = beside(_checked_targets(targets, logits.shape[:1], logits.shape[1], ignore_index), logits.data)
    return CrossEntropy.apply(logits, targets=targets, ignore_index=ignore_index, **options)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Array, *, scale: float = 1.0,
                         ignore_index: int = -100, **options: float) -> Tensor:
    """scale · Σ cross_entropy(x weightᵀ, targets), a scalar; x[...,D], weight[V,D], integer targets[R]."""
    targets = beside(_checked_targets(targets, x.shape[:-1], weight.shape[0], ignore_index), x.data)
    return LinearCrossEntropy.apply(x, weight, targets=targets, scale=scale,
                                    ignore_index=ignore_index, **options)
