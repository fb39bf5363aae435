"""RMSNorm and LayerNorm over the last axis.  Saved: the input and one or two floats per row."""

import math
from typing import Any

from nn.arithmetic import reshaped
from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.tensor import Array, Op, Tensor


def _rows(x: Array) -> Array:
    return reshaped(x, (math.prod(x.shape[:-1]), x.shape[-1]))


class RMSNorm(Op):
    """y = w ⊙ x̂,  x̂ = x r,  r = (mean(x²) + ε)^−½   (Zhang & Sennrich 2019)

    With a = dy ⊙ w:  dr = Σ a x,  ∂r/∂x = −r³ x / D,  so  dx = r (a − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂."""

    new_gradients = True

    def forward(self, x: Array, weight: Array, *, eps: float) -> Array:
        self.x, self.weight = x, weight
        y, self.rstd = kernels.rms_norm(_rows(x), weight, eps)
        return namespace(x).reshape(y, x.shape)

    def backward(self, dy: Array) -> Any:
        dx, dweight = kernels.rms_norm_backward(_rows(dy), _rows(self.x), self.weight, self.rstd)
        return namespace(dy).reshape(dx, self.x.shape), dweight


class ResidualRMSNorm(Op):
    """y = RMSNorm(h) and h = x + δ, or h = x

    h goes on beside y, so there come back dh, past the norm, and dy, through it.  With n(dy) what RMSNorm
    makes of dy, the gradient of h is n(dy) + dh; x and δ, of which h is the sum, both have it."""

    def forward(self, x: Array, weight: Array, delta: Array | None = None, *, eps: float) -> Any:
        xp, self.weight, rows = namespace(x), weight, _rows(x)
        if delta is None:
            self.h = rows
            y, self.rstd = kernels.rms_norm(rows, weight, eps)
        else:
            y, self.h, self.rstd = kernels.rms_norm_residual(rows, _rows(delta), weight, eps)
        return xp.reshape(y, x.shape), xp.reshape(self.h, x.shape)

    def backward(self, dy: Array | None, dh: Array | None) -> Any:
        if dy is None:
            return (dh, None, dh)[: len(self.needs)]
        around = None if dh is None else _rows(dh)
        dx, dweight = kernels.rms_norm_backward(_rows(dy), self.h, self.weight, self.rstd, dresidual=around)
        dx = namespace(dy).reshape(dx, dy.shape)
        return (dx, dweight, dx)[: len(self.needs)]


class LayerNorm(Op):
    """y = w ⊙ x̂ + b,  x̂ = (x − μ) s,  s = (var(x) + ε)^−½   (Ba, Kiros & Hinton 2016)

    With a = dy ⊙ w:  dx = s (a − mean(a) − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂,  db = Σ_rows dy."""

    new_gradients = True

    def forward(self, x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
        self.x, self.weight = x, weight
        y, self.mean, self.rstd = kernels.layer_norm(_rows(x), weight, bias, eps)
        return namespace(x).reshape(y, x.shape)

    def backward(self, dy: Array) -> Any:
        grads = kernels.layer_norm_backward(_rows(dy), _rows(self.x), self.weight, self.mean, self.rstd)
        return namespace(dy).reshape(grads[0], self.x.shape), *grads[1:]


def _check_width(operation: str, x: Tensor, **vectors: Tensor) -> None:
    for name, vector in vectors.items():
        if vector.shape != x.shape[-1:]:
            raise ValueError(f"{operation}: {name} [D] = {list(vector.shape)} does not fit "
                             f"x [...,D] = {list(x.shape)}")


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x[...,D], weight[D] -> [...,D]"""
    _check_width("rms_norm", x, weight=weight)
    return RMSNorm.apply(x, weight, eps=eps)


def rms_norm_residual(x: Tensor, delta: Tensor | None, weight: Tensor,
                      eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(rms_norm(h), h) for h = x + delta, or x where that is None; x, delta[...,D], weight[D] -> [...,D]"""
    _check_width("rms_norm_residual", x, weight=weight)
    if delta is None:
        return ResidualRMSNorm.apply(x, weight, eps=eps)
    if delta.shape != x.shape or delta.dtype != x.dtype:
        raise ValueError(f"rms_norm_residual: delta {delta.dtype} {list(delta.shape)} does not fit "
                         f"x {x.dtype} {list(x.shape)}")
    return ResidualRMSNorm.apply(x, weight, delta, eps=eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """x[...,D], weight[D], bias[D] -> [...,D]"""
    _check_width("layer_norm", x, weight=weight, bias=bias)
    return LayerNorm.apply(x, weight, bias, eps=eps)
