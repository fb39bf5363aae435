"""Operations on DeviceArrays along one axis: gather and scatter, running sums, sorting."""

from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn.dtypes import INT64, INTEGERS, is_floating, promoted
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.layout import (
    Shape,
    broadcast_shapes,
    broadcast_strides,
    check_writable,
    dense_strides,
    layout,
    normal_axis,
)
from cuda.nn.operations import is_number, other_operand, overlaps

if TYPE_CHECKING:
    from cuda.nn.array import DeviceArray


def take(x: "DeviceArray", index: "DeviceArray", axis: int) -> "DeviceArray":
    """x at index along the axis; index may have any shape, which takes the axis's place."""
    index = _dense_index(x, index)
    before, after = x.shape[:axis], x.shape[axis + 1:]
    y = x.device.empty((*before, *index.shape, *after), x.dtype)
    flat = (*before, index.size, *after)
    fixed = (*x.strides[:axis], 0, *x.strides[axis + 1:])
    _gather(y, x, index, layout(flat, dense_strides(flat), fixed, _only(len(flat), axis)), axis)
    return y


def put(x: "DeviceArray", index: "DeviceArray", axis: int, value: Any) -> None:
    """x at index along the axis = value; of equal indices the last wins."""
    check_writable(x.shape, x.strides)
    device, index = x.device, _dense_index(x, index)
    wanted = (*x.shape[:axis], *index.shape, *x.shape[axis + 1:])
    source = other_operand(x, value)
    if source is None:
        raise TypeError(f"{type(value).__name__} cannot be written into {x!r}")
    source = device.full((), source, x.dtype) if is_number(source) else source.astype(x.dtype, copy=False)
    if overlaps(x, source):
        source = source.copy()
    flat = (*x.shape[:axis], index.size, *x.shape[axis + 1:])
    source = source.broadcast_to(wanted).reshape(flat)
    made = layout(flat, (*x.strides[:axis], 0, *x.strides[axis + 1:]), source.strides, _only(len(flat), axis))
    scratch = device.workspace(8 * x.shape[axis])
    device.call("array_scatter", x.pointer, source.pointer, index.pointer, made, x.shape[axis],
                x.strides[axis], index.size, x.code, index.code, scratch.pointer, scratch.size)


def _gather(y: "DeviceArray", x: "DeviceArray", index: "DeviceArray", made: bytes, axis: int) -> None:
    x.device.call("array_gather", y.pointer, x.pointer, index.pointer, made, x.shape[axis], x.strides[axis],
                  x.code, index.code)


def take_along_axis(x: "DeviceArray", index: "DeviceArray", axis: int) -> "DeviceArray":
    """y[.., i, ..] = x[.., index[.., i, ..], ..]; the other axes broadcast."""
    if index.ndim != x.ndim:
        raise DeviceArgumentError(f"take_along_axis: index {list(index.shape)} and x {list(x.shape)} "
                                  "need equally many axes")
    _dense_index(x, index)
    n = index.shape[axis]
    thin = (*x.shape[:axis], 1, *x.shape[axis + 1:])
    common = broadcast_shapes(thin, (*index.shape[:axis], 1, *index.shape[axis + 1:]))
    shape = (*common[:axis], n, *common[axis + 1:])
    y = x.device.empty(shape, x.dtype)
    made = layout(shape, y.strides, broadcast_strides(thin, x.strides, shape),
                  broadcast_strides(index.shape, index.strides, shape))
    _gather(y, x, index, made, axis)
    return y


def _dense_index(x: "DeviceArray", index: Any) -> "DeviceArray":
    if index.__class__ is not x.__class__ or index.device is not x.device:
        raise TypeError(f"index: {type(index).__name__} is no array of {x.device!r}; see device.asarray")
    if index.dtype not in INTEGERS:
        raise TypeError(f"index: an array of {index.dtype}; an index holds integers")
    found: DeviceArray = index.contiguous()
    return found


def _only(ndim: int, axis: int) -> Shape:
    return (0,) * axis + (1,) + (0,) * (ndim - axis - 1)


def _rows(x: "DeviceArray", axis: int | None) -> "tuple[DeviceArray, list[int]]":
    """x with that axis last and dense, and the order of axes that brings it back."""
    if axis is None:
        if x.ndim != 1:
            raise DeviceArgumentError(f"axis: needed for an array of {x.ndim} axes")
        axis = 0
    axis = normal_axis(axis, x.ndim)
    order = [a for a in range(x.ndim) if a != axis] + [axis]
    back = sorted(range(x.ndim), key=order.__getitem__)
    return x.permute(order).contiguous(), back


def cumulative_sum(x: "DeviceArray", axis: int | None, dtype: Any, include_initial: bool) -> "DeviceArray":
    dtype = (x.dtype if is_floating(x.dtype) else INT64) if dtype is None else np.dtype(dtype)
    rows, back = _rows(x, axis)
    device, n = x.device, rows.shape[-1]
    y = device.empty(rows.shape, dtype)
    count = x.size // n if n else 0
    size = int(device.library.nn_array_cumulative_sum_workspace_size(count, n))
    scratch = device.workspace(size) if size else None
    device.call("array_cumulative_sum", y.pointer, rows.pointer, count, n, y.code, rows.code,
                scratch, size)
    if include_initial:
        zero = device.zeros((*rows.shape[:-1], 1), dtype)
        y = device.namespace.concat([zero, y], axis=-1)
    return y.permute(back)


def argsort(x: "DeviceArray", axis: int, descending: bool) -> "DeviceArray":
    rows, back = _rows(x, axis)
    return _order(rows, descending).permute(back)


def sort(x: "DeviceArray", axis: int, descending: bool) -> "DeviceArray":
    rows, back = _rows(x, axis)
    return take_along_axis(rows, _order(rows, descending), rows.ndim - 1).permute(back)


def _order(rows: "DeviceArray", descending: bool) -> "DeviceArray":
    device, n = rows.device, rows.shape[-1]
    order = device.empty(rows.shape, INT64)
    count = rows.size // n if n else 0
    size = int(device.library.nn_array_argsort_workspace_size(count, n, rows.code))
    scratch = device.workspace(size) if size else None
    device.call("array_argsort", order.pointer, rows.pointer, count, n, int(descending), rows.code,
                scratch, size)
    return order


def searchsorted(x: "DeviceArray", values: "DeviceArray", side: str) -> "DeviceArray":
    if side not in ("left", "right"):
        raise DeviceArgumentError(f"side: {side!r} is neither 'left' nor 'right'")
    if x.ndim != 1:
        raise DeviceArgumentError(f"searchsorted: needs one axis, shape {list(x.shape)} has {x.ndim}")
    dtype = promoted(x.dtype, values.dtype)
    x, values = x.astype(dtype, copy=False).contiguous(), values.astype(dtype, copy=False).contiguous()
    place = x.device.empty(values.shape, INT64)
    x.device.call("array_searchsorted", place.pointer, x.pointer, values.pointer, x.size, values.size,
                  int(side == "right"), x.code)
    return place
