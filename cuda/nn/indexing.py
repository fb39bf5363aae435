"""x[key] and x[key] = value.  Integers, slices, None and ... make views; one integer array gathers along its
axis (or scatters); a mask is for assignment only: how much it selects is known to the device alone."""

from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn import along_axis, operations
from cuda.nn.dtypes import BOOL, INTEGERS
from cuda.nn.errors import DeviceArgumentError

if TYPE_CHECKING:
    from cuda.nn.array import DeviceArray


def get(x: "DeviceArray", key: Any) -> "DeviceArray":
    if is_mask(x, key):
        raise TypeError(f"x[mask]: how many elements of {list(x.shape)} are selected is not known without "
                        "reading the device; use where(mask, x, other), or assign: x[mask] = value")
    view, axis, index = parsed(x, key)
    return view if index is None else along_axis.take(view, index, axis)


def set_(x: "DeviceArray", key: Any, value: Any) -> None:
    if is_mask(x, key):
        operations.put_where(x, key, value)
        return
    view, axis, index = parsed(x, key)
    if index is None:
        operations.copy_into(view, value)
    else:
        along_axis.put(view, index, axis, value)


def is_mask(x: "DeviceArray", key: Any) -> bool:
    return key.__class__ is x.__class__ and key.dtype == BOOL


def parsed(x: "DeviceArray", key: Any) -> "tuple[DeviceArray, int, DeviceArray | None]":
    """The view that all but an index array make, and the axis of it that the index array is for."""
    keys = key if isinstance(key, tuple) else (key,)
    taken = sum(k is not None and k is not Ellipsis for k in keys)
    if taken > x.ndim:
        raise IndexError(f"{taken} indices for an array with {x.ndim} axes, shape {list(x.shape)}")
    if sum(k is Ellipsis for k in keys) == 0:
        keys = (*keys, Ellipsis)
    shape: list[int] = []
    strides: list[int] = []
    offset, axis, found, place = 0, 0, None, 0
    for k in keys:
        if k is None:
            shape.append(1)
            strides.append(0)
        elif k is Ellipsis:
            rest = x.ndim - taken
            shape += x.shape[axis:axis + rest]
            strides += x.strides[axis:axis + rest]
            axis += rest
        elif isinstance(k, slice):
            start, stop, step = k.indices(x.shape[axis])
            n = len(range(start, stop, step))
            offset += start * x.strides[axis] if n else 0
            shape.append(n)
            strides.append(step * x.strides[axis])
            axis += 1
        elif k.__class__ is x.__class__:
            found, place = _index_array(x, k, found), len(shape)
            shape.append(x.shape[axis])
            strides.append(x.strides[axis])
            axis += 1
        else:
            offset += _integer(x, k, axis) * x.strides[axis]
            axis += 1
    return x.view(tuple(shape), tuple(strides), offset), place, found


def _index_array(x: "DeviceArray", index: "DeviceArray", found: Any) -> "DeviceArray":
    if found is not None:
        raise TypeError("x[i, j] with two index arrays; index one axis at a time, or use take_along_axis")
    if index.dtype not in INTEGERS:
        raise TypeError(f"index: an array of {index.dtype}; an index array holds integers")
    if index.device is not x.device:
        raise DeviceArgumentError(f"index: {index!r} is on another device than {x!r}")
    return index


def _integer(x: "DeviceArray", k: Any, axis: int) -> int:
    if isinstance(k, np.ndarray | list):
        raise TypeError(f"index: a {type(k).__name__} of the host; put it on the device: asarray(index)")
    if isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer):
        raise TypeError(f"index: {k!r} is no integer, slice, None, ... or integer array of the device")
    n = x.shape[axis]
    if not -n <= k < n:
        raise IndexError(f"index {k} is outside axis {axis} of {n} elements")
    return int(k) % n
