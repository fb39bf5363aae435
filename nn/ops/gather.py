"""Rows picked by index, and rows added up by index.  Each is the other's gradient."""

from typing import Any

import numpy as np

from nn.backends import kernels
from nn.backends.array_api import beside, namespace, on_device
from nn.dtypes import is_floating, widen
from nn.errors import InputError
from nn.tensor import Array, Op, Tensor


class Take(Op):
    """y[n] = x[index[n]]:  dx[v] = Σ_{n: index[n] = v} dy[n]"""

    new_gradients = True

    integers = True

    def forward(self, x: Array, *, index: Array) -> Array:
        self.index, self.shape, self.dtype = index, tuple(x.shape), x.dtype
        xp = namespace(x)
        flat = xp.reshape(index, (-1,))
        rows = kernels.embedding(x, flat) if x.ndim == 2 and is_floating(x) else xp.take(x, flat, axis=0)
        return xp.reshape(rows, (*index.shape, *x.shape[1:]))

    def backward(self, dy: Array) -> Array:
        xp = namespace(dy)
        width = self.shape[1:]
        rows = xp.reshape(dy, (self.index.size, *width))
        return kernels.scatter_add(rows, xp.reshape(self.index, (-1,)), self.shape[0])


class ScatterAdd(Op):
    """y[v] = Σ_{n: index[n] = v} x[n]:  dx[n] = dy[index[n]]"""

    integers = True

    def forward(self, x: Array, *, index: Array, rows: int) -> Array:
        self.index = index
        return kernels.scatter_add(x, index, rows)

    def backward(self, dy: Array) -> Array:
        return namespace(dy).take(dy, self.index, axis=0)


class TakeAlongAxis(Op):
    """y[r,j] = x[r, index[r,j]] over the last axis:  dx[r,c] = Σ_{j: index[r,j] = c} dy[r,j]"""

    integers = True

    def forward(self, x: Array, *, index: Array) -> Array:
        self.index, self.columns = index, x.shape[-1]
        return namespace(x).take_along_axis(x, index, axis=-1)

    def backward(self, dy: Array) -> Array:
        xp, g = namespace(dy), widen(dy)
        hit = self.index[..., None] == xp.arange(self.columns)                              # [..., J, C]
        return xp.sum(xp.where(hit, g[..., None], xp.zeros_like(g)[..., None]), axis=-2, dtype=g.dtype)


def as_integers(what: str, values: Any) -> Array:
    """The argument as an integer array; InputError if it holds anything else."""
    array = values.data if isinstance(values, Tensor) else values
    array = array if hasattr(array, "__array_namespace__") else np.asarray(array)
    if array.size == 0 and not hasattr(values, "dtype"):
        return np.zeros(array.shape, np.int64)               # an empty list has no type of its own
    if getattr(array.dtype, "kind", "i") not in "iu":
        raise InputError(f"{what}: {array.dtype} values; expected integers")
    return array


def checked_index(index: Any, rows: int, what: str = "index") -> Array:
    """The index as an integer array; InputError naming the first entry outside 0 ... rows − 1.

    One on a device is not read back: it was checked when it was put there, and kernels never follow an index
    out of an array."""
    index = as_integers(what, index)
    if on_device(index):
        return index
    bad = (index < 0) | (index >= rows)
    xp = namespace(index)
    if bool(xp.any(bad)):
        place = tuple(int(axis[0]) for axis in xp.nonzero(bad))
        raise InputError(f"{what}[{', '.join(map(str, place))}]: "
                         f"{int(index[place])} is outside 0 ... {rows - 1}")
    return index


def take(x: Tensor, index: Array, what: str = "index") -> Tensor:
    """x[V,...], integers index[...] -> x[index] [..., *x.shape[1:]].  InputError if one is out of range."""
    return Take.apply(x, index=beside(checked_index(index, x.shape[0], what), x.data))


def scatter_add(x: Tensor, index: Array, rows: int) -> Tensor:
    """[rows, D] from x[N,D]: row index[n] increased by x[n]; repeated indices add up."""
    index = beside(checked_index(index, rows), x.data)
    if tuple(index.shape) != x.shape[:1]:
        raise ValueError(f"scatter_add: index {list(index.shape)} does not fit the rows of {list(x.shape)}")
    return ScatterAdd.apply(x, index=index, rows=rows)


def take_along_axis(x: Tensor, index: Array) -> Tensor:
    """y[..., j] = x[..., index[..., j]]"""
    index = beside(checked_index(index, x.shape[-1]), x.data)
    if tuple(index.shape[:-1]) != x.shape[:-1]:
        raise ValueError(f"take_along_axis: index {list(index.shape)} has other rows than {list(x.shape)}")
    return TakeAlongAxis.apply(x, index=index)


__all__: list[Any] = ["as_integers", "checked_index", "scatter_add", "take", "take_along_axis"]
