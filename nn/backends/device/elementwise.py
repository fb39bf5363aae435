"""Sums, products and casts on the device, by what its arrays can do themselves."""

from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from nn.backends.device.arrays import FLOAT32, cast, dense
from nn.dtypes import DType, is_half


def add(a: DeviceArray, b: DeviceArray) -> Any:
    return a + b


def mul(a: DeviceArray, b: DeviceArray) -> Any:
    return a * b


def add_row(x: DeviceArray, row: DeviceArray) -> Any:
    return x + row


def mul_row(x: DeviceArray, row: DeviceArray) -> Any:
    return x * row


def scale(x: DeviceArray, factor: float) -> DeviceArray:
    (x,) = dense(x)
    y = x.device.empty(x.shape, x.dtype)
    x.device.call("scale_forward", y, x, x.size, factor, 0.0, x.code)
    return y


def accumulate(total: DeviceArray, x: DeviceArray) -> None:
    total += x


def widen(x: DeviceArray) -> DeviceArray:
    return cast(dense(x)[0], FLOAT32) if is_half(x.dtype) else x.copy()


def to_bfloat16(x: DeviceArray) -> DeviceArray:
    dtype = DType.bfloat16.numpy
    return x.copy() if x.dtype == dtype else cast(dense(x)[0], dtype)


def contiguous(x: DeviceArray) -> DeviceArray:
    return x.copy()


def column_sum(x: DeviceArray) -> DeviceArray:
    return x.sum(axis=0, dtype=np.dtype(np.float32))
