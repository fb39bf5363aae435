"""Softmax and log-softmax over the last axis, on the device (csrc/kernels/softmax)."""

from cuda.nn.array import DeviceArray
from nn.backends.device.arrays import cast, dense, rows_of, same_type, scratch


def _workspace(x: DeviceArray) -> tuple[DeviceArray | None, int]:
    return scratch(x, x.device.library.nn_softmax_workspace_size(*rows_of(x), x.code))


def _forward(kernel: str, x: DeviceArray) -> DeviceArray:
    (x,) = dense(x)
    y = x.device.empty(x.shape, x.dtype)
    x.device.call(f"{kernel}_forward", y, x, *rows_of(x), x.code, *_workspace(x))
    return y


def _backward(kernel: str, dy: DeviceArray, y: DeviceArray) -> DeviceArray:
    dtype = y.dtype
    y, dy = same_type(y, dy)
    dx = y.device.empty(y.shape, y.dtype)
    y.device.call(f"{kernel}_backward", dx, dy, y, *rows_of(y), y.code, *_workspace(y))
    return cast(dx, dtype)


def softmax(x: DeviceArray) -> DeviceArray:
    return _forward("softmax", x)


def softmax_backward(dy: DeviceArray, y: DeviceArray) -> DeviceArray:
    return _backward("softmax", dy, y)


def log_softmax(x: DeviceArray) -> DeviceArray:
    return _forward("log_softmax", x)


def log_softmax_backward(dy: DeviceArray, y: DeviceArray) -> DeviceArray:
    return _backward("log_softmax", dy, y)
