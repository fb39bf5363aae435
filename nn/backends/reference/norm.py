"""RMSNorm and LayerNorm over the last axis, each beside its backward.  Statistics are one float per row.

RMSNorm (Zhang & Sennrich 2019): r = (mean(x²) + ε)^−½,  x̂ = x r,  y = w ⊙ x̂
    with a = dy ⊙ w:  dx = r (a − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂
LayerNorm (Ba et al. 2016): s = (var(x) + ε)^−½,  x̂ = (x − μ) s,  y = w ⊙ x̂ + b
    with a = dy ⊙ w:  dx = s (a − mean(a) − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂,  db = Σ_rows dy
"""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def _mean(z: Array) -> Array:
    xp = namespace(z)
    return xp.sum(z, axis=-1, keepdims=True, dtype=z.dtype) / max(z.shape[-1], 1)


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """(y[R,D], rstd[R,1]).  In half precision x̂ is rounded before the weight multiplies it, as in Llama."""
    xp = namespace(x)
    z = widen(x)
    rstd = 1.0 / xp.sqrt(_mean(z * z) + eps)
    return narrow(narrow(z * rstd, x.dtype) * weight, x.dtype), rstd


def rms_norm_residual(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    """(y[R,D], sum[R,D], rstd[R,1]): the norm of sum = x + residual, and the sum"""
    total = narrow(widen(x) + widen(residual), x.dtype)
    y, rstd = rms_norm(total, weight, eps)
    return y, total, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array, *,
                      dresidual: Array | None = None) -> tuple[Array, Array]:
    """(dx[R,D], dweight[D]); dresidual is added to dx before it is rounded"""
    xp = namespace(x)
    g = widen(dy)
    normed = widen(x) * rstd
    dweight = xp.sum(g * normed, axis=0, dtype=g.dtype)
    a = g * widen(weight)
    normed *= _mean(a * normed)
    a -= normed
    a *= rstd
    if dresidual is not None:
        a += widen(dresidual)
    return narrow(a, x.dtype), dweight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """(y[R,D], mean[R,1], rstd[R,1]); the variance is taken in a second pass, E[x²] − E[x]² would cancel."""
    xp = namespace(x)
    z = widen(x)
    mean = _mean(z)
    z = z - mean
    rstd = 1.0 / xp.sqrt(_mean(z * z) + eps)
    return narrow(z * rstd * widen(weight) + widen(bias), x.dtype), mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array,
                        rstd: Array) -> tuple[Array, Array, Array]:
    """(dx[R,D], dweight[D], dbias[D])"""
    xp = namespace(x)
    g = widen(dy)
    normed = (widen(x) - mean) * rstd
    a = g * widen(weight)
    dx = rstd * (a - _mean(a) - normed * _mean(a * normed))
    return narrow(dx, x.dtype), xp.sum(g * normed, axis=0, dtype=g.dtype), xp.sum(g, axis=0, dtype=g.dtype)
