"""What queries and keys of linear attention go through: scaled to length 1, or made positive."""

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.tensor import Array, Op, Tensor


class L2Norm(Op):
    """y = r x,  r = (Σ x² + ε)^−½ over the last axis

    ∂r/∂x = −r³ x, so  dx = r (dy − y ⟨y, dy⟩), for any ε."""

    def forward(self, x: Array, *, eps: float) -> Array:
        xp, wide = namespace(x), widen(x)
        self.r = (xp.sum(wide * wide, axis=-1, keepdims=True, dtype=wide.dtype) + eps) ** -0.5
        self.y = wide * self.r
        return narrow(self.y, x.dtype)

    def backward(self, dy: Array) -> Array:
        g = widen(dy)
        along = namespace(g).sum(self.y * g, axis=-1, keepdims=True, dtype=g.dtype)
        return narrow(self.r * (g - self.y * along), dy.dtype)


class EluPlusOne(Op):
    """y = x + 1 for x > 0, eˣ otherwise (elu(x) + 1):  dx = dy for x > 0, dy y otherwise"""

    def forward(self, x: Array) -> Array:
        xp = namespace(x)
        zero = xp.zeros_like(x)
        self.slope = xp.exp(xp.where(x > 0.0, zero, x))
        return self.slope + xp.where(x > 0.0, x, zero)

    def backward(self, dy: Array) -> Array:
        return dy * self.slope


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x[...,D] / √(Σ x² + ε) -> [...,D]; ε is added to the sum."""
    return L2Norm.apply(x, eps=eps)


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, elementwise: positive, with slope 1 at 0   (Katharopoulos et al. 2020)"""
    return EluPlusOne.apply(x)
