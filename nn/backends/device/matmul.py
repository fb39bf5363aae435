"""Matrix products on the device (csrc/kernels/gemm).  Transposed views are passed as they lie, not copied."""

from cuda.nn import products
from cuda.nn.array import DeviceArray
from cuda.nn.dtypes import FLOAT32
from cuda.nn.products import gemm


def matmul(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """y[...,I,O] = a[...,I,J] b[...,J,O]"""
    return products.matmul(a, b)


def linear(x: DeviceArray, weight: DeviceArray, *, bias: DeviceArray | None = None) -> DeviceArray:
    """y[R,O] = x[R,I] weight[O,I]ᵀ + bias[O]"""
    return gemm(x, weight, trans_b=True, bias=bias, out_dtype=x.dtype)


def linear_backward(dy: DeviceArray, x: DeviceArray, weight: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """(dx[R,I], dweight[O,I]), the latter not rounded"""
    return gemm(dy, weight, out_dtype=x.dtype), gemm(dy, x, trans_a=True, out_dtype=FLOAT32)


__all__ = ["gemm", "linear", "linear_backward", "matmul"]
