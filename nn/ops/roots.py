"""The signed square root: a dot product made shallow before a gate."""

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.tensor import Array, Op, Tensor


class SignedSqrt(Op):
    """y = sign(x) √max(|x|, ε):  dx = ½ dy / √|x|, and 0 where |x| ≤ ε"""

    def forward(self, x: Array, *, eps: float) -> Array:
        xp, wide = namespace(x), widen(x)
        size = xp.abs(wide)
        root = xp.sqrt(xp.where(size > eps, size, xp.zeros_like(size) + eps))
        self.slope = xp.where(size > eps, 0.5 / root, xp.zeros_like(size))
        return narrow(xp.sign(wide) * root, x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrow(widen(dy) * self.slope, dy.dtype)


def signed_sqrt(x: Tensor, eps: float = 1e-6) -> Tensor:
    """sign(x) √max(|x|, eps), elementwise; 0 at 0"""
    return SignedSqrt.apply(x, eps=eps)
