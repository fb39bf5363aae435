"""Matrix products.  Half-precision inputs are multiplied in float32 and the result rounded once."""

import math
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.elementwise import Operand, unbroadcast
from nn.tensor import Array, Op, Tensor


def _transposed(x: Array) -> Array:
    return namespace(x).matrix_transpose(x)


class MatMul(Op):
    """y = a b, batched over leading axes:  da = dy bᵀ,  db = aᵀ dy"""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        xp = namespace(a, b)
        dtype = a.dtype if a.dtype == b.dtype else xp.result_type(a.dtype, b.dtype)
        return narrow(xp.matmul(widen(a), widen(b)), dtype)

    def backward(self, dy: Array) -> Any:
        xp, g = namespace(dy), widen(dy)
        da = unbroadcast(xp.matmul(g, _transposed(widen(self.b))), self.a) if self.needs[0] else None
        db = unbroadcast(xp.matmul(_transposed(widen(self.a)), g), self.b) if self.needs[1] else None
        return da, db


class Linear(Op):
    """y = x Wᵀ + b, W [out, in]:  dx = dy W,  dW = dyᵀ x,  db = Σ dy  (sums over all leading axes)"""

    def forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        xp = namespace(x)
        self.x, self.weight = x, weight
        y = xp.matmul(_as_rows(x), widen(weight).T)
        if bias is not None:
            y += widen(bias)
        return narrow(xp.reshape(y, (*x.shape[:-1], weight.shape[0])), x.dtype)

    def backward(self, dy: Array) -> Any:
        xp, x = namespace(dy), self.x
        g = _as_rows(dy)
        dx = narrow(xp.reshape(xp.matmul(g, widen(self.weight)), x.shape), x.dtype) if self.needs[0] else None
        dweight = xp.matmul(g.T, _as_rows(x)) if self.needs[1] else None
        if len(self.needs) == 2:
            return dx, dweight
        return dx, dweight, xp.sum(g, axis=0, dtype=g.dtype) if self.needs[2] else None


def _as_rows(x: Array) -> Array:
    """[..., D] -> [R, D] in the type sums are formed in; R is given, as −1 is undefined for empty arrays."""
    return namespace(x).reshape(widen(x), (math.prod(x.shape[:-1]), x.shape[-1]))


def matmul(a: Operand, b: Operand) -> Tensor:
    """a[...,I,K] @ b[...,K,J] -> [...,I,J], leading axes broadcast."""
    if min(len(a.shape), len(b.shape)) < 2:
        raise ValueError(f"matmul: two axes or more are needed: a {list(a.shape)}, b {list(b.shape)}; "
                         "reshape the vector")
    return MatMul.apply(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x[...,I] weight[O,I]ᵀ + bias[O] -> [...,O]"""
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x is [..., in] = {list(x.shape)}, "
                         f"weight [out, in] = {list(weight.shape)}: in differs")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias [out] = {list(bias.shape)}, weight [out, in] = {list(weight.shape)}")
    return Linear.apply(x, weight) if bias is None else Linear.apply(x, weight, bias)
