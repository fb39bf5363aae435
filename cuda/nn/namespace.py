"""The Python array API standard (2024.12) on one device: `array.__array_namespace__()`, `device.namespace`.

Types are NumPy's (bfloat16 from ml_dtypes); float32 is the default.  What would need a look at the values to
know the shape of its result (nonzero, unique, boolean selection) is refused."""

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from cuda.nn import along_axis, operations, reductions
from cuda.nn.array import DeviceArray
from cuda.nn.dtypes import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    INTEGERS,
    UINT8,
    UINT32,
    is_floating,
    promoted,
    promoted_with,
)
from cuda.nn.elementwise import Elementwise
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.layout import broadcast_shapes, normal_axes, normal_axis
from cuda.nn.operations import Op, is_number
from cuda.nn.reductions import Reduction

if TYPE_CHECKING:
    from cuda.nn.device import Device

Array = Any


class Namespace(Elementwise):
    float32, float16, float64, bfloat16 = FLOAT32, FLOAT16, FLOAT64, BFLOAT16
    int64, int32, uint32, uint8, bool = INT64, INT32, UINT32, UINT8, BOOL
    inf, nan, pi, e, newaxis = math.inf, math.nan, math.pi, math.e, None
    __array_api_version__ = "2024.12"

    def __init__(self, device: "Device") -> None:
        self.device = device

    def __repr__(self) -> str:
        return f"<array namespace of {self.device!r}>"

    # ---- making arrays ----

    def asarray(self, values: Any, /, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Array:
        self._here(device)
        if isinstance(values, DeviceArray):
            found = self.device.asarray(values, dtype)
            return found.copy() if copy and found is values else found
        if copy is False:
            raise DeviceArgumentError("asarray: values of the host come to the device by a copy")
        return self.device.asarray(values, dtype)

    def from_dlpack(self, x: Any, /, *, device: Any = None, copy: Any = None) -> Array:
        self._here(device)
        found = self.device.from_dlpack(x)
        return found.copy() if copy else found

    def empty(self, shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
        self._here(device)
        return self.device.empty(shape, FLOAT32 if dtype is None else dtype)

    def zeros(self, shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(shape, 0, dtype=FLOAT32 if dtype is None else dtype, device=device)

    def ones(self, shape: Any, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(shape, 1, dtype=FLOAT32 if dtype is None else dtype, device=device)

    def full(self, shape: Any, value: Any, *, dtype: Any = None, device: Any = None) -> Array:
        self._here(device)
        if dtype is None:
            dtype = promoted_with(BOOL, operations.number_kind(value))
        return self.device.full(shape, value, dtype)

    def empty_like(self, x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
        return self.empty(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)

    def zeros_like(self, x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(x.shape, 0, dtype=x.dtype if dtype is None else dtype, device=device)

    def ones_like(self, x: Array, /, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(x.shape, 1, dtype=x.dtype if dtype is None else dtype, device=device)

    def full_like(self, x: Array, value: Any, /, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(x.shape, value, dtype=x.dtype if dtype is None else dtype, device=device)

    def arange(self, start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None,
               device: Any = None) -> Array:
        self._here(device)
        if stop is None:
            start, stop = 0, start
        if dtype is None:
            dtype = FLOAT32 if any(isinstance(n, float) for n in (start, stop, step)) else INT64
        out = self.device.empty((max(0, math.ceil((stop - start) / step)),), dtype)
        self.device.call("array_arange", out.pointer, float(start), float(step), out.size, out.code)
        return out

    def _here(self, device: Any) -> None:
        if device is not None and device is not self.device:
            raise DeviceArgumentError(f"device: {device!r} is not {self.device!r}, whose functions these are")

    # ---- types ----

    def astype(self, x: Array, dtype: Any, /, *, copy: Any = True, device: Any = None) -> Array:
        self._here(device)
        return x.astype(dtype, copy=copy)

    def result_type(self, *operands: Any) -> np.dtype:
        strong = [x.dtype if hasattr(x, "dtype") else np.dtype(x) for x in operands if not is_number(x)]
        if not strong:
            raise DeviceArgumentError("result_type: needs an array or a dtype")
        found = strong[0]
        for dtype in strong[1:]:
            found = promoted(found, dtype)
        for x in operands:
            if is_number(x):
                found = promoted_with(found, operations.number_kind(x))
        return found

    def isdtype(self, dtype: Any, kind: Any) -> Any:
        dtype = np.dtype(dtype)
        if isinstance(kind, tuple):
            return any(self.isdtype(dtype, k) for k in kind)
        if not isinstance(kind, str):
            return dtype == np.dtype(kind)
        kinds = {"bool": dtype == BOOL, "real floating": is_floating(dtype), "complex floating": False,
                 "signed integer": dtype in INTEGERS and dtype.kind == "i",
                 "unsigned integer": dtype in INTEGERS and dtype.kind == "u", "integral": dtype in INTEGERS,
                 "numeric": dtype in INTEGERS or is_floating(dtype)}
        if kind not in kinds:
            raise DeviceArgumentError(f"kind: {kind!r} is none of {', '.join(kinds)}")
        return kinds[kind]

    def can_cast(self, source: Any, to: Any, /) -> Any:
        source = source.dtype if hasattr(source, "dtype") else np.dtype(source)
        return promoted(source, np.dtype(to)) == np.dtype(to)

    def finfo(self, dtype: Any, /) -> Any:
        return ml_dtypes.finfo(getattr(dtype, "dtype", dtype))

    def iinfo(self, dtype: Any, /) -> Any:
        return np.iinfo(getattr(dtype, "dtype", dtype))

    # ---- views ----

    def reshape(self, x: Array, /, shape: Any, *, copy: Any = None) -> Array:
        found = x.reshape(shape)
        return found.copy() if copy and found.block is x.block else found

    def permute_dims(self, x: Array, /, axes: Any) -> Array:
        return x.permute(axes)

    def matrix_transpose(self, x: Array, /) -> Array:
        return x.mT

    def moveaxis(self, x: Array, source: int, destination: int, /) -> Array:
        order = list(range(x.ndim))
        order.insert(normal_axis(destination, x.ndim), order.pop(normal_axis(source, x.ndim)))
        return x.permute(order)

    def broadcast_to(self, x: Array, /, shape: Any) -> Array:
        return x.broadcast_to(tuple(shape))

    def broadcast_arrays(self, *arrays: Array) -> list[Array]:
        shape = broadcast_shapes(*(x.shape for x in arrays))
        return [x.broadcast_to(shape) for x in arrays]

    def expand_dims(self, x: Array, /, *, axis: int = 0) -> Array:
        axis = normal_axis(axis, x.ndim + 1)
        return x.view((*x.shape[:axis], 1, *x.shape[axis:]), (*x.strides[:axis], 0, *x.strides[axis:]))

    def squeeze(self, x: Array, /, axis: Any) -> Array:
        axes = normal_axes(axis, x.ndim)
        if any(x.shape[a] != 1 for a in axes):
            raise DeviceArgumentError(f"axis: {axis} of shape {list(x.shape)} has more than one element")
        keep = [a for a in range(x.ndim) if a not in axes]
        return x.view(tuple(x.shape[a] for a in keep), tuple(x.strides[a] for a in keep))

    def flip(self, x: Array, /, *, axis: Any = None) -> Array:
        axes = normal_axes(axis, x.ndim)
        return x[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(x.ndim))]

    # ---- putting together ----

    def concat(self, arrays: Any, /, *, axis: int | None = 0) -> Array:
        arrays = list(arrays)
        if axis is None:
            arrays, axis = [x.reshape((-1,)) for x in arrays], 0
        axis = normal_axis(axis, arrays[0].ndim)
        rest = {x.shape[:axis] + x.shape[axis + 1:] for x in arrays}
        if len(rest) > 1:
            shapes = [list(x.shape) for x in arrays]
            raise DeviceArgumentError(f"concat: shapes {shapes} differ beside axis {axis}")
        shape = arrays[0].shape
        total = sum(x.shape[axis] for x in arrays)
        out = self.device.empty((*shape[:axis], total, *shape[axis + 1:]), self.result_type(*arrays))
        place, before = 0, (slice(None),) * axis
        for x in arrays:
            out[(*before, slice(place, place + x.shape[axis]))] = x
            place += x.shape[axis]
        return out

    def stack(self, arrays: Any, /, *, axis: int = 0) -> Array:
        arrays = list(arrays)
        return self.concat([self.expand_dims(x, axis=axis) for x in arrays],
                           axis=normal_axis(axis, arrays[0].ndim + 1))

    def tile(self, x: Array, repetitions: Any, /) -> Array:
        times = tuple(repetitions)
        shape = (1,) * (len(times) - x.ndim) + x.shape
        times = (1,) * (x.ndim - len(times)) + times
        x = x.reshape(shape)
        pairs = tuple(n for pair in zip(times, shape, strict=True) for n in pair)
        spread = x.reshape(tuple(n for size in shape for n in (1, size))).broadcast_to(pairs)
        return spread.copy().reshape(tuple(t * n for t, n in zip(times, shape, strict=True)))

    def repeat(self, x: Array, repeats: int, /, *, axis: int | None = None) -> Array:
        if axis is None:
            x, axis = x.reshape((-1,)), 0
        axis = normal_axis(axis, x.ndim)
        spread = self.expand_dims(x, axis=axis + 1)
        wide = spread.broadcast_to((*x.shape[:axis + 1], repeats, *x.shape[axis + 1:]))
        return wide.reshape((*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1:]))

    def roll(self, x: Array, /, shift: Any, *, axis: Any = None) -> Array:
        if axis is None:
            return self.roll(x.reshape((-1,)), shift, axis=0).reshape(x.shape)
        shifts = (shift,) if isinstance(shift, int) else tuple(shift)
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        for by, a in zip(shifts, axes, strict=True):
            a = normal_axis(a, x.ndim)
            by = by % max(1, x.shape[a])
            before = (slice(None),) * a
            cut = x.shape[a] - by
            x = self.concat([x[(*before, slice(cut, None))], x[(*before, slice(0, cut))]], axis=a)
        return x

    # ---- reductions ----

    def sum(self, x: Array, /, *, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Array:
        return reductions.sum_(x, axis, dtype, keepdims)

    def prod(self, x: Array, /, *, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Array:
        return reductions.sum_(x, axis, dtype, keepdims, Reduction.PROD)

    def mean(self, x: Array, /, *, axis: Any = None, keepdims: Any = False) -> Array:
        return reductions.mean(x, axis, keepdims)

    def var(self, x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: Any = False) -> Array:
        away = x - reductions.mean(x, axis, True)
        n = math.prod(x.shape[a] for a in normal_axes(axis, x.ndim))
        squares = reductions.sum_(operations.unary(Op.SQUARE, away), axis, None, keepdims)
        return squares / max(n - correction, 0)

    def max(self, x: Array, /, *, axis: Any = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.MAX, x, axis, keepdims)

    def min(self, x: Array, /, *, axis: Any = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.MIN, x, axis, keepdims)

    def any(self, x: Array, /, *, axis: Any = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.ANY, x, axis, keepdims)

    def all(self, x: Array, /, *, axis: Any = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.ALL, x, axis, keepdims)

    def argmax(self, x: Array, /, *, axis: int | None = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.ARGMAX, x, axis, keepdims)

    def argmin(self, x: Array, /, *, axis: int | None = None, keepdims: Any = False) -> Array:
        return reductions.reduce(Reduction.ARGMIN, x, axis, keepdims)

    def cumulative_sum(self, x: Array, /, *, axis: int | None = None, dtype: Any = None,
                       include_initial: Any = False) -> Array:
        return along_axis.cumulative_sum(x, axis, dtype, include_initial)

    # ---- indexing, sorting, products ----

    def take(self, x: Array, index: Array, /, *, axis: int | None = None) -> Array:
        if axis is None:
            x, axis = x.reshape((-1,)), 0
        return along_axis.take(x, index, normal_axis(axis, x.ndim))

    def take_along_axis(self, x: Array, index: Array, /, *, axis: int = -1) -> Array:
        return along_axis.take_along_axis(x, index, normal_axis(axis, x.ndim))

    def sort(self, x: Array, /, *, axis: int = -1, descending: Any = False, stable: Any = True) -> Array:
        return along_axis.sort(x, axis, descending)

    def argsort(self, x: Array, /, *, axis: int = -1, descending: Any = False, stable: Any = True) -> Array:
        return along_axis.argsort(x, axis, descending)

    def searchsorted(self, x: Array, values: Array, /, *, side: str = "left", sorter: Any = None) -> Array:
        return along_axis.searchsorted(x if sorter is None else along_axis.take(x, sorter, 0), values, side)

    def nonzero(self, x: Array, /) -> Array:
        raise TypeError(f"nonzero: how many elements of {x!r} are nonzero is not known without reading the "
                        "device; use where(), argmax() or sum() on the device, or x.numpy()")

    def matmul(self, a: Array, b: Array, /) -> Array:
        return operations.matmul(a, b)

    def vecdot(self, a: Array, b: Array, /, *, axis: int = -1) -> Array:
        return reductions.sum_(a * b, axis, None, False)


def _no_host_read(name: str) -> Any:
    def refuse(self: Namespace, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{name}: its result's size is not known without reading the device; use x.numpy()")

    return refuse


for _name in ("unique_all", "unique_counts", "unique_inverse", "unique_values"):
    setattr(Namespace, _name, _no_host_read(_name))
