"""Matrix products.  Half-precision inputs are multiplied in float32 and the result rounded once."""

import math
from typing import Any

from nn.arithmetic import reshaped, sum_to
from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.dtypes import narrow
from nn.ops.elementwise import Operand, unbroadcast
from nn.tensor import Array, Op, Tensor


def _transposed(x: Array) -> Array:
    return namespace(x).matrix_transpose(x)


def _one_type(a: Array, b: Array) -> tuple[Array, Array]:
    """Both in the wider of their types."""
    if a.dtype == b.dtype:
        return a, b
    dtype = namespace(a, b).result_type(a.dtype, b.dtype)
    return narrow(a, dtype), narrow(b, dtype)


class MatMul(Op):
    """y = a b, batched over leading axes:  da = dy bᵀ,  db = aᵀ dy"""

    new_gradients = True

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return kernels.matmul(*_one_type(a, b))

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * math.prod(results[0].shape) * inputs[0].shape[-1]

    def backward(self, dy: Array) -> Any:
        da = kernels.matmul(*_one_type(dy, _transposed(self.b))) if self.needs[0] else None
        db = kernels.matmul(*_one_type(_transposed(self.a), dy)) if self.needs[1] else None
        return (unbroadcast(da, self.a) if da is not None else None,
                unbroadcast(db, self.b) if db is not None else None)


class Linear(Op):
    """y = x Wᵀ + b, W [out, in]:  dx = dy W,  dW = dyᵀ x,  db = Σ dy  (sums over all leading axes)"""

    new_gradients = True

    def forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        self.x, self.weight = x, weight
        rows, matrix = _one_type(_as_rows(x), weight)
        y = kernels.linear(rows, matrix, bias=None if bias is None else narrow(bias, rows.dtype))
        return narrow(namespace(x).reshape(y, (*x.shape[:-1], weight.shape[0])), x.dtype)

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * math.prod(inputs[0].shape) * inputs[1].shape[0]

    def backward(self, dy: Array) -> Any:
        rows, matrix = _one_type(_as_rows(self.x), self.weight)
        g = narrow(_as_rows(dy), rows.dtype)
        if self.needs[1]:
            dx, dweight = kernels.linear_backward(g, rows, matrix)
        else:                                                       # a frozen weight: half the work
            dx, dweight = kernels.matmul(g, matrix), None
        dx = narrow(namespace(dy).reshape(dx, self.x.shape), self.x.dtype) if self.needs[0] else None
        if len(self.needs) == 2:
            return dx, dweight
        return dx, dweight, sum_to(g, g.shape[1:]) if self.needs[2] else None


def _as_rows(x: Array) -> Array:
    """[..., D] -> [R, D]; R is given, as −1 is undefined for empty arrays."""
    return reshaped(x, (math.prod(x.shape[:-1]), x.shape[-1]))


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
