"""Softmax and log-softmax over the last axis."""

from nn.backends import kernels
from nn.tensor import Array, Op, Tensor


class Softmax(Op):
    """y_j = exp x_j / Σ_i exp x_i:  ∂y_j/∂x_i = y_j (1[i=j] − y_i),  so  dx = y ⊙ (dy − Σ_j dy_j y_j)"""

    new_gradients = True

    def forward(self, x: Array) -> Array:
        self.y = kernels.softmax(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return kernels.softmax_backward(dy, self.y)


class LogSoftmax(Op):
    """y = x − log Σ exp x:  dx = dy − exp(y) Σ_j dy_j"""

    new_gradients = True

    def forward(self, x: Array) -> Array:
        self.y = kernels.log_softmax(x)
        return self.y

    def backward(self, dy: Array) -> Array:
        return kernels.log_softmax_backward(dy, self.y)


def softmax(x: Tensor) -> Tensor:
    """[...,C] -> [...,C]; a row of −inf gives zeros."""
    return Softmax.apply(x)


def log_softmax(x: Tensor) -> Tensor:
    """[...,C] -> [...,C]"""
    return LogSoftmax.apply(x)
