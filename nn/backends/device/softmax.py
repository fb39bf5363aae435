"""Softmax and log-softmax over the last axis, on the device (csrc/kernels/softmax)."""

from typing import Any

from cuda.nn.array import DeviceArray
from nn.backends.device.arrays import mapped, mapped_backward, rows_of, scratch


def _sizes(x: DeviceArray) -> list[Any]:
    sizes = [*rows_of(x), x.code]
    return [*sizes, *scratch(x, x.device.library.nn_softmax_workspace_size(*sizes))]


def softmax(x: DeviceArray) -> DeviceArray:
    return mapped("softmax", x, _sizes)


def softmax_backward(dy: DeviceArray, y: DeviceArray) -> DeviceArray:
    return mapped_backward("softmax", dy, y, _sizes)


def log_softmax(x: DeviceArray) -> DeviceArray:
    return mapped("log_softmax", x, _sizes)


def log_softmax_backward(dy: DeviceArray, y: DeviceArray) -> DeviceArray:
    return mapped_backward("log_softmax", dy, y, _sizes)
