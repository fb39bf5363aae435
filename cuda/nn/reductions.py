"""Reductions of DeviceArrays over axes: sums, means, extremes, through nn_array_reduce."""

import math
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn.dtypes import BOOL, FLOAT32, FLOAT64, INT64, is_floating
from cuda.nn.layout import (
    KEPT,
    Shape,
    dense_strides,
    layout,
    normal_axes,
)

if TYPE_CHECKING:
    from cuda.nn.array import DeviceArray


class Reduction(IntEnum):
    """nn_array_reduction"""

    SUM, MEAN, PROD, MAX, MIN, ANY, ALL, ARGMAX, ARGMIN = range(9)


def sum_(x: "DeviceArray", axis: Any, dtype: Any, keepdims: bool,
         op: Reduction = Reduction.SUM) -> "DeviceArray":
    """Without dtype, floats keep their type (summed in float32), integers and booleans become int64."""
    dtype = (x.dtype if is_floating(x.dtype) else INT64) if dtype is None else np.dtype(dtype)
    if dtype == FLOAT64 or (is_floating(dtype) and not is_floating(x.dtype)):
        x = x.astype(dtype if dtype == FLOAT64 else FLOAT32, copy=False)
    return _reduced(op, x, axis, keepdims, dtype)


def mean(x: "DeviceArray", axis: Any, keepdims: bool) -> "DeviceArray":
    return _reduced(Reduction.MEAN, x, axis, keepdims, x.dtype if is_floating(x.dtype) else FLOAT32)


def reduce(op: Reduction, x: "DeviceArray", axis: Any, keepdims: bool) -> "DeviceArray":
    if op in (Reduction.ANY, Reduction.ALL):
        return _reduced(op, x, axis, keepdims, BOOL)
    shape, _, _ = reduction(x.shape, x.strides, _axes(axis), bool(keepdims))
    if math.prod(shape) and not x.size:
        raise ValueError(f"{op.name.lower()} of no elements: shape {list(x.shape)}, axis {axis}")
    return _reduced(op, x, axis, keepdims, INT64 if op in (Reduction.ARGMAX, Reduction.ARGMIN) else x.dtype)


def _axes(axis: Any) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def _reduced(op: Reduction, x: "DeviceArray", axis: Any, keepdims: bool, dtype: np.dtype) -> "DeviceArray":
    device = x.device
    shape, layout, count = reduction(x.shape, x.strides, _axes(axis), bool(keepdims))
    y = device.empty(shape, dtype)
    size = reduction_workspace(device.library, layout, count, op)
    scratch = device.workspace(size) if size else None
    device.call("array_reduce", y.pointer, x.pointer, layout, count, op, y.code, x.code,
                scratch, size)
    return y


@lru_cache(KEPT)
def reduction(shape: Shape, strides: Shape, axis: Any, keepdims: bool) -> tuple[Shape, bytes, int]:
    """The result's shape, the layout with the reduced axes last, and how many they are."""
    axes = normal_axes(axis, len(shape))
    kept = [a for a in range(len(shape)) if a not in axes]
    small = tuple(shape[a] for a in kept)
    order = [*kept, *axes]
    made = layout(tuple(shape[a] for a in order), dense_strides(small) + (0,) * len(axes),
                  tuple(strides[a] for a in order))
    full = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return (full if keepdims else small), made, len(axes)


@lru_cache(KEPT)
def reduction_workspace(library: Any, layout: bytes, count: int, op: int) -> int:
    return int(library.nn_array_reduce_workspace_size(layout, count, op))
