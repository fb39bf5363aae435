"""Softplus and log σ: what step sizes and decays of recurrences are made of."""

from nn.backends.array_api import namespace, sigmoid
from nn.dtypes import narrow, widen
from nn.ops.elementwise import Operand, neg
from nn.tensor import Array, Op, Tensor


class Softplus(Op):
    """y = log(1 + eˣ) = max(x, 0) + log(1 + e^−|x|), which never overflows:  dx = dy σ(x)"""

    def forward(self, x: Array) -> Array:
        self.x, xp, wide = x, namespace(x), widen(x)
        y = xp.where(wide > 0.0, wide, xp.zeros_like(wide)) + xp.log1p(xp.exp(-xp.abs(wide)))
        return narrow(y, x.dtype)

    def backward(self, dy: Array) -> Array:
        return dy * narrow(sigmoid(widen(self.x)), dy.dtype)


def softplus(x: Operand) -> Tensor:
    """log(1 + eˣ), elementwise"""
    return Softplus.apply(x)


def log_sigmoid(x: Operand) -> Tensor:
    """log σ(x) = −softplus(−x), elementwise; 0 or less"""
    return neg(softplus(neg(x)))
