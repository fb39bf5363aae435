"""What the kernels of this backend share: dense arrays of one type on one device, their shapes, and scratch
memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.errors import DeviceArgumentError

FLOAT32 = np.dtype(np.float32)


def dense(x: DeviceArray, *others: Any) -> list[DeviceArray]:
    """The arrays without gaps; host arrays beside the first are uploaded."""
    return [a if a.is_contiguous else a.contiguous() for a in map(x.device.asarray, (x, *others))]


def cast(x: DeviceArray, dtype: Any) -> DeviceArray:
    """x in another of the types float32, float16, bfloat16; x itself if it has that type."""
    if x.dtype == dtype:
        return x
    y = x.device.empty(x.shape, dtype)
    x.device.call("cast_forward", y, x, x.size, y.code, x.code)
    return y


def same_type(x: DeviceArray, *others: Any) -> list[DeviceArray]:
    """Dense arrays of one type: theirs, or float32 where they differ."""
    arrays = dense(x, *others)
    return arrays if len({a.dtype for a in arrays}) == 1 else [cast(a, FLOAT32) for a in arrays]


def expect_device(like: DeviceArray, **arrays: DeviceArray | None) -> None:
    """Of what a structure holds: Device.call() sees no array there."""
    for name, array in arrays.items():
        if array is not None and array.device is not like.device:
            raise DeviceArgumentError(f"{name}: {array!r} is on another device than {like!r}")


def expect(name: str, array: DeviceArray, shape: tuple[int, ...], dtype: Any = None) -> None:
    """DeviceArgumentError, unless the array has that shape, and that dtype if one is given: the kernels see
    addresses and sizes only."""
    if array.shape != shape or (dtype is not None and array.dtype != np.dtype(dtype)):
        wanted = "" if dtype is None else np.dtype(dtype)
        raise DeviceArgumentError(f"{name}: {array.dtype}{list(array.shape)}; expected {wanted}{list(shape)}")


def expect_size(name: str, array: DeviceArray | None, size: int, dtype: Any = None) -> None:
    """The same of its number of elements, in whatever shape; None stands for what may be left out."""
    if array is not None and (array.size != size or (dtype is not None and array.dtype != np.dtype(dtype))):
        wanted = f"{size} elements" + ("" if dtype is None else f" of {np.dtype(dtype)}")
        raise DeviceArgumentError(f"{name}: {array.dtype}{list(array.shape)}; expected {wanted}")


def mapped(kernel: str, x: DeviceArray, sizes: Callable[[DeviceArray], Any]) -> DeviceArray:
    """y = kernel(x) of x's shape and type; sizes(x) gives the arguments behind the arrays."""
    (x,) = dense(x)
    y = x.device.empty(x.shape, x.dtype)
    x.device.call(f"{kernel}_forward", y, x, *sizes(x))
    return y


def mapped_backward(kernel: str, dy: DeviceArray, x: DeviceArray,
                    sizes: Callable[[DeviceArray], Any]) -> DeviceArray:
    """dx of such a kernel from dy and x, or the y that it keeps instead; in that one's type."""
    dtype = x.dtype
    x, dy = same_type(x, dy)
    expect("dy", dy, x.shape)
    dx = x.device.empty(x.shape, x.dtype)
    x.device.call(f"{kernel}_backward", dx, dy, x, *sizes(x))
    return cast(dx, dtype)


def scratch(x: DeviceArray, size: int) -> tuple[DeviceArray | None, int]:
    """The two arguments workspace and workspace_bytes."""
    return (x.device.workspace(size) if size else None), size


def rows_of(x: DeviceArray) -> tuple[int, int]:
    """(rows, columns): everything but the last axis, and the last axis."""
    return math.prod(x.shape[:-1]), x.shape[-1]
