"""Several residual streams side by side: one vector read from them, one written to them while they mix."""

import math
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.elementwise import unbroadcast
from nn.ops.matmul import matmul
from nn.tensor import Array, Op, Tensor


class WriteStreams(Op):
    """X'_o = Σ_i M_oi X_i + b_o y

    dX_i = Σ_o M_oi dX'_o,  dM_oi = ⟨dX'_o, X_i⟩,  db_o = ⟨dX'_o, y⟩,  dy = Σ_o b_o dX'_o"""

    def forward(self, x: Array, mix: Array, write: Array, y: Array) -> Array:
        self.x, self.mix, self.write, self.y = x, mix, write, y
        new = _product(mix, x)
        new = new + widen(write)[..., :, None] * widen(y)[..., None, :]
        return narrow(new, x.dtype)

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * math.prod(results[0].shape) * (results[0].shape[-2] + 1)

    def backward(self, dy: Array) -> Any:
        xp = namespace(dy)
        dx = _product(xp.matrix_transpose(self.mix), dy)
        dmix = _product(dy, xp.matrix_transpose(self.x))
        dwrite = _product(dy, self.y[..., :, None])[..., 0]
        dout = _product(self.write[..., None, :], dy)[..., 0, :]
        return (narrow(dx, self.x.dtype), _like(dmix, self.mix), _like(dwrite, self.write),
                narrow(dout, self.y.dtype))


def _product(a: Array, b: Array) -> Array:
    """a b in the type sums are formed in"""
    a, b = widen(a), widen(b)
    dtype = namespace(a, b).result_type(a.dtype, b.dtype)
    return kernels.matmul(narrow(a, dtype), narrow(b, dtype))


def _like(gradient: Array, parameter: Array) -> Array:
    return narrow(unbroadcast(gradient, parameter), parameter.dtype)


def write_streams(x: Tensor, mix: Tensor, write: Tensor, y: Tensor) -> Tensor:
    """x[...,n,D], mix[...,n,n] or [n,n], write[...,n] or [n], y[...,D] -> [...,n,D]"""
    n, width = x.shape[-2:]
    if mix.shape[-2:] != (n, n) or write.shape[-1:] != (n,) or y.shape != (*x.shape[:-2], width):
        raise ValueError(f"write_streams: mix {list(mix.shape)}, write {list(write.shape)} and "
                         f"y {list(y.shape)} do not fit x [...,n,D] = {list(x.shape)}")
    return WriteStreams.apply(x, mix, write, y)


def read_streams(x: Tensor, weights: Tensor) -> Tensor:
    """u = Σ_i a_i X_i: x[...,n,D], weights a[...,n] or [n] -> [...,D] in the type of x"""
    row = weights.reshape(*weights.shape[:-1], 1, weights.shape[-1])
    u = matmul(row, x).reshape(*x.shape[:-2], x.shape[-1])
    return u if u.dtype == x.dtype else u.cast(x.dtype)
