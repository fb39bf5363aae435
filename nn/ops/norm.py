"""RMSNorm and LayerNorm over the last axis.  Saved: the input and one or two floats per row."""

import math
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.tensor import Array, Op, Tensor


def _rows(x: Array) -> Array:
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


class RMSNorm(Op):
    """y = w ⊙ x̂,  x̂ = x r,  r = (mean(x²) + ε)^−½   (Zhang & Sennrich 2019)

    With a = dy ⊙ w:  dr = Σ a x,  ∂r/∂x = −r³ x / D,  so  dx = r (a − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂."""

    def forward(self, x: Array, weight: Array, *, eps: float) -> Array:
        self.x, self.weight = x, weight
        y, self.rstd = kernels.rms_norm(_rows(x), weight, eps)
        return namespace(x).reshape(y, x.shape)

    def backward(self, dy: Array) -> Any:
        dx, dweight = kernels.rms_norm_backward(_rows(dy), _rows(self.x), self.weight, self.rstd)
        return namespace(dy).reshape(dx, self.x.shape), dweight


class LayerNorm(Op):
    """y = w ⊙ x̂ + b,  x̂ = (x − μ) s,  s = (var(x) + ε)^−½   (Ba, Kiros & Hinton 2016)

    With a = dy ⊙ w:  dx = s (a − mean(a) − x̂ mean(a ⊙ x̂)),  dw = Σ_rows dy ⊙ x̂,  db = Σ_rows dy."""

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


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """x[...,D], weight[D], bias[D] -> [...,D]"""
    _check_width("layer_norm", x, weight=weight, bias=bias)
    return LayerNorm.apply(x, weight, bias, eps=eps)
