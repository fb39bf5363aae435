"""Activations on the device (csrc/kernels/elementwise): SiLU, GELU (exact and tanh form), SwiGLU."""

from cuda.nn.array import DeviceArray
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.arrays import cast, expect, mapped, mapped_backward, same_type


def _sizes(x: DeviceArray) -> tuple[int, int]:
    return x.size, x.code


def silu(x: DeviceArray) -> DeviceArray:
    return mapped("silu", x, _sizes)


def silu_backward(dy: DeviceArray, x: DeviceArray) -> DeviceArray:
    return mapped_backward("silu", dy, x, _sizes)


def gelu(x: DeviceArray) -> DeviceArray:
    return mapped("gelu", x, _sizes)


def gelu_backward(dy: DeviceArray, x: DeviceArray) -> DeviceArray:
    return mapped_backward("gelu", dy, x, _sizes)


def gelu_tanh(x: DeviceArray) -> DeviceArray:
    return mapped("gelu_tanh", x, _sizes)


def gelu_tanh_backward(dy: DeviceArray, x: DeviceArray) -> DeviceArray:
    return mapped_backward("gelu_tanh", dy, x, _sizes)


def swiglu(gate: DeviceArray, up: DeviceArray) -> DeviceArray:
    dtype = gate.dtype
    gate, up = same_type(gate, up)
    expect("up", up, gate.shape)
    y = gate.device.empty(gate.shape, gate.dtype)
    gate.device.call("swiglu_forward", y, gate, up, gate.size, gate.code)
    return cast(y, dtype)


def swiglu_backward(dy: DeviceArray, gate: DeviceArray, up: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    dtypes = gate.dtype, up.dtype
    gate, up, dy = same_type(gate, up, dy)
    expect("up", up, gate.shape)
    expect("dy", dy, gate.shape)
    dgate, dup = (gate.device.empty(gate.shape, gate.dtype) for _ in range(2))
    gate.device.call("swiglu_backward", dgate, dup, dy, gate, up, gate.size, gate.code)
    return cast(dgate, dtypes[0]), cast(dup, dtypes[1])


def swiglu_packed(x: DeviceArray) -> DeviceArray:
    """y[R,F] of x[R,2F], whose rows hold gate, then up"""
    (x,) = same_type(x)
    rows, half = _halves(x)
    y = x.device.empty((rows, half), x.dtype)
    x.device.call("swiglu_packed_forward", y, x, rows, half, x.code)
    return y


def swiglu_packed_backward(dy: DeviceArray, x: DeviceArray) -> DeviceArray:
    """[dgate, dup] side by side"""
    x, dy = same_type(x, dy)
    rows, half = _halves(x)
    expect("dy", dy, (rows, half))
    dx = x.device.empty(x.shape, x.dtype)
    x.device.call("swiglu_packed_backward", dx, dy, x, rows, half, x.code)
    return dx


def _halves(x: DeviceArray) -> tuple[int, int]:
    """(R, F) of x[R,2F]"""
    if x.ndim != 2 or x.shape[1] % 2:
        raise DeviceArgumentError(f"x: shape {list(x.shape)} is not [R,2F], gate beside up")
    return x.shape[0], x.shape[1] // 2
