"""Clipping by the global L2 norm: g ← g · min(1, max_norm / (‖g‖ + 1e-6)), the norm taken over all parameters
together (Pascanu et al., arXiv 1211.5063).

Training uses `grad_norm` and hands `clip_scale` to the optimizer, which then needs no second pass over the
gradients; `clip_grad_norm` is the same thing applied to the gradients themselves."""

import math
from collections.abc import Iterable
from typing import Any

from nn.backends import kernels


def grad_norm(parameters: Iterable[Any]) -> float:
    """‖g‖ over every gradient there is (0 without any), summed in float64; inf or NaN if a gradient is."""
    return math.sqrt(math.fsum(kernels.sum_of_squares(p.grad) for p in parameters if p.grad is not None))


def clip_scale(norm: float, max_norm: float | None) -> float:
    """What to multiply every gradient by; 1 for no limit (None), and for a norm that is not finite: such a
    step must not be taken at all, and zero or NaN times the gradients would hide why."""
    if max_norm is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


def clip_grad_norm(parameters: Iterable[Any], max_norm: float) -> float:
    """Scale the gradients in place; return their norm from before.  A norm that is not finite scales
    nothing."""
    parameters = list(parameters)
    norm = grad_norm(parameters)
    scale = clip_scale(norm, max_norm)
    if scale < 1.0:
        for p in parameters:
            if p.grad is not None:
                p.grad *= scale
    return norm
