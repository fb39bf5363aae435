"""Reductions.  Half-precision sums are formed in float32."""

import math
from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import is_floating, narrow, widen
from nn.tape import check_floating
from nn.tensor import Array, Op, Tensor

Axis = int | tuple[int, ...] | None


def _spread(reduced: Array, x_shape: tuple[int, ...], axis: Axis, keepdims: bool) -> Array:
    """The reduced array stretched back over the reduced axes."""
    xp = namespace(reduced)
    if not keepdims:
        axes = range(len(x_shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = {a % len(x_shape) for a in axes} if x_shape else set()
        reduced = xp.reshape(reduced, tuple(1 if i in gone else n for i, n in enumerate(x_shape)))
    return xp.broadcast_to(reduced, x_shape)


class Sum(Op):
    """y = c Σ x:  dx = c dy on every summed element"""

    integers = True

    def forward(self, x: Array, *, axis: Axis, keepdims: bool, scale: float = 1.0) -> Array:
        self.shape, self.axis, self.keepdims, self.scale = tuple(x.shape), axis, keepdims, scale
        z, xp = widen(x), namespace(x)
        if not is_floating(z):
            return xp.asarray(xp.sum(z, axis=axis, keepdims=keepdims))         # in the widest integer
        total = xp.sum(z, axis=axis, keepdims=keepdims, dtype=z.dtype)
        return narrow(total if scale == 1.0 else total * scale, x.dtype)

    def backward(self, dy: Array) -> Array:
        each = dy if self.scale == 1.0 else narrow(widen(dy) * self.scale, dy.dtype)
        return _spread(each, self.shape, self.axis, self.keepdims)


class Max(Op):
    """y = max x:  dy goes to the largest element, in equal shares if several are largest"""

    integers = True

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        self.axis, self.keepdims = axis, keepdims
        xp = namespace(x)
        y = xp.asarray(xp.max(x, axis=axis, keepdims=keepdims))
        self.largest = x == _spread(y, tuple(x.shape), axis, keepdims)
        return y

    def backward(self, dy: Array) -> Array:
        xp, g, shape = namespace(dy), widen(dy), tuple(self.largest.shape)
        hits = xp.astype(self.largest, g.dtype)
        ties = xp.sum(hits, axis=self.axis, keepdims=True, dtype=g.dtype)
        return narrow(_spread(g, shape, self.axis, self.keepdims) * hits / ties, dy.dtype)


class CumSum(Op):
    """y_i = Σ_{j≤i} x_j:  dx_j = Σ_{i≥j} dy_i"""

    integers = True

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis = axis
        return narrow(namespace(x).cumulative_sum(widen(x), axis=axis), x.dtype)

    def backward(self, dy: Array) -> Array:
        xp = namespace(dy)
        backwards = xp.cumulative_sum(xp.flip(widen(dy), axis=self.axis), axis=self.axis)
        return narrow(xp.flip(backwards, axis=self.axis), dy.dtype)


class LogSumExp(Op):
    """y = log Σ exp x over the last axis:  dx = softmax(x) dy;  a row of −inf gives −inf and gets 0"""

    def forward(self, x: Array) -> Array:
        xp, z = namespace(x), widen(x)
        m = xp.max(z, axis=-1, keepdims=True)
        m = xp.where(m == -xp.inf, xp.zeros_like(m), m)
        self.p = xp.exp(z - m)
        total = xp.sum(self.p, axis=-1, keepdims=True, dtype=z.dtype)
        empty = total == 0.0
        total = xp.where(empty, xp.ones_like(total), total)
        self.p /= total
        return narrow(xp.where(empty, -xp.inf * total, m + xp.log(total))[..., 0], x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrow(self.p * widen(dy)[..., None], dy.dtype)


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return Sum.apply(x, axis=axis, keepdims=keepdims)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    check_floating("mean", [x.data])
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return Sum.apply(x, axis=axis, keepdims=keepdims, scale=1.0 / (math.prod(x.shape[a] for a in axes) or 1))


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return Max.apply(x, axis=axis, keepdims=keepdims)


def cumsum(x: Tensor, axis: int = -1) -> Tensor:
    return CumSum.apply(x, axis=axis)


def logsumexp(x: Tensor) -> Tensor:
    """log Σ exp over the last axis"""
    return LogSumExp.apply(x)


__all__: list[Any] = ["cumsum", "logsumexp", "max", "mean", "sum"]
