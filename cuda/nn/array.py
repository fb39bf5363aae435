"""DeviceArray: an array in device memory.  Nothing leaves the device unless `.numpy()` is called."""

import math
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda.nn.dtypes import code
from cuda.nn.memory import Block

if TYPE_CHECKING:
    from cuda.nn.device import Device

Shape = tuple[int, ...]


class DeviceArray:
    """shape, strides (in elements), dtype, and where in which block the first element is."""

    __slots__ = ("block", "device", "dtype", "offset", "shape", "strides")

    def __init__(self, device: "Device", block: Block, dtype: Any, shape: Shape, strides: Shape | None = None,
                 offset: int = 0) -> None:
        self.device, self.block, self.dtype = device, block, np.dtype(dtype)
        self.shape, self.offset = tuple(shape), offset                       # offset in elements
        self.strides = dense_strides(self.shape) if strides is None else tuple(strides)

    @property
    def pointer(self) -> int:
        return self.block.address + self.offset * self.dtype.itemsize

    @property
    def _as_parameter_(self) -> c_void_p:          # how ctypes passes it
        return c_void_p(self.pointer)

    @property
    def code(self) -> int:
        """nn_dtype"""
        return code(self.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        return self.size <= 1 or all(n == 1 or s == d for n, s, d in
                                     zip(self.shape, self.strides, dense_strides(self.shape), strict=True))

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the stream."""
        return self.device.download(self)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a DeviceArray is not copied to the host by accident; call .numpy()")


def dense_strides(shape: Shape) -> Shape:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))
