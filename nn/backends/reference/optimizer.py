"""What an optimizer step and an embedding's gradient need: AdamW, the sum of squares; embedding and
scatter-add."""

from typing import Any

from nn.backends import array_api
from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def adamw(param: Array, grad: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float,
          weight_decay: float, step: int, grad_scale: float = 1.0, stored: Array | None = None) -> None:
    """One AdamW step (Loshchilov & Hutter 2019) in place on param, m and v; `step` counts from 1.

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  θ ← θ(1 − lr·wd) − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε);
    stored ← θ, rounded"""
    xp = namespace(param)
    g = widen(grad) * grad_scale
    m *= beta1
    m += (1.0 - beta1) * g
    g *= g
    g *= 1.0 - beta2
    v *= beta2
    v += g
    denominator = xp.sqrt(v)
    denominator *= 1.0 / (1.0 - beta2**step) ** 0.5
    denominator += eps
    param *= 1.0 - lr * weight_decay
    update = m / denominator
    update *= lr / (1.0 - beta1**step)
    param -= update
    if stored is not None:
        stored[...] = narrow(param, stored.dtype)


def sum_of_squares(x: Array) -> float:
    """Σ x² in float64: the square of a float32 may exceed float32."""
    xp = namespace(x)
    z = xp.astype(x, xp.float64)
    z *= z
    return float(xp.sum(z))


def embedding(weight: Array, ids: Array) -> Array:
    """y[N,D]: row ids[n] of weight[V,D]"""
    return namespace(weight).take(weight, ids, axis=0)


def scatter_add(source: Array, index: Array, rows: int) -> Array:
    """out[rows,D]: out[index[n]] += source[n], in increasing n (an embedding's gradient)."""
    return array_api.scatter_add(widen(source), index, rows)
