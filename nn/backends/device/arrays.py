"""What the kernels of this backend share: dense arrays of one type on one device, and scratch memory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray

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
    dx = x.device.empty(x.shape, x.dtype)
    x.device.call(f"{kernel}_backward", dx, dy, x, *sizes(x))
    return cast(dx, dtype)


def scratch(x: DeviceArray, size: int) -> tuple[DeviceArray | None, int]:
    """The two arguments workspace and workspace_bytes."""
    return (x.device.workspace(size) if size else None), size


def rows_of(x: DeviceArray) -> tuple[int, int]:
    """(rows, columns): everything but the last axis, and the last axis."""
    columns = x.shape[-1]
    return (x.size // columns if columns else 0), columns
