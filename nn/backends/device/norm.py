"""RMSNorm and LayerNorm over the last axis, on the device (csrc/kernels/norm)."""

from cuda.nn.array import DeviceArray
from nn.backends.device.arrays import (
    FLOAT32,
    cast,
    dense,
    expect,
    expect_size,
    rows_of,
    same_type,
    scratch,
)


def _floats(x: DeviceArray, count: int, *shape: int) -> list[DeviceArray]:
    return [x.device.empty(shape, FLOAT32) for _ in range(count)]


def _statistics(x: DeviceArray, **arrays: DeviceArray) -> list[DeviceArray]:
    for name, array in arrays.items():
        expect_size(name, array, rows_of(x)[0])
    return [cast(a, FLOAT32) for a in dense(x, *arrays.values())[1:]]


def _sizes(x: DeviceArray, *, like: dict[str, DeviceArray] | None = None,
           **of_columns: DeviceArray) -> tuple[int, int]:
    """x's rows and columns; `like` have its shape, the others one element per column."""
    rows, cols = rows_of(x)
    for name, array in (like or {}).items():
        expect(name, array, x.shape)
    for name, array in of_columns.items():
        expect(name, array, (cols,))
    return rows, cols


def rms_norm(x: DeviceArray, weight: DeviceArray, eps: float) -> tuple[DeviceArray, DeviceArray]:
    dtype = x.dtype
    x, weight = same_type(x, weight)
    rows, cols = _sizes(x, weight=weight)
    y, (rstd,) = x.device.empty(x.shape, x.dtype), _floats(x, 1, rows, 1)
    x.device.call("rms_norm_forward", y, rstd, x, weight, rows, cols, eps, x.code)
    return cast(y, dtype), rstd


def rms_norm_residual(x: DeviceArray, residual: DeviceArray, weight: DeviceArray,
                      eps: float) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    dtype = x.dtype
    x, residual, weight = same_type(x, residual, weight)
    rows, cols = _sizes(x, like={"residual": residual}, weight=weight)
    y, total = (x.device.empty(x.shape, x.dtype) for _ in range(2))
    (rstd,) = _floats(x, 1, rows, 1)
    x.device.call("rms_norm_residual_forward", y, total, rstd, x, residual, weight, rows, cols, eps, x.code)
    return cast(y, dtype), cast(total, dtype), rstd


def rms_norm_backward(dy: DeviceArray, x: DeviceArray, weight: DeviceArray, rstd: DeviceArray, *,
                      dresidual: DeviceArray | None = None) -> tuple[DeviceArray, DeviceArray]:
    dtype = x.dtype
    (rstd,) = _statistics(x, rstd=rstd)
    x, dy, weight, *around = same_type(x, dy, weight, *(() if dresidual is None else (dresidual,)))
    rows, cols = _sizes(x, like={"dy": dy} | ({"dresidual": around[0]} if around else {}), weight=weight)
    dx, (dweight,) = x.device.empty(x.shape, x.dtype), _floats(x, 1, cols)
    workspace = scratch(x, x.device.library.nn_rms_norm_workspace_size(rows, cols))
    x.device.call("rms_norm_backward", dx, dweight, dy, x, weight, rstd, around[0] if around else None, rows,
                  cols, x.code, *workspace)
    return cast(dx, dtype), dweight


def layer_norm(x: DeviceArray, weight: DeviceArray, bias: DeviceArray,
               eps: float) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    dtype = x.dtype
    x, weight, bias = same_type(x, weight, bias)
    rows, cols = _sizes(x, weight=weight, bias=bias)
    y, (mean, rstd) = x.device.empty(x.shape, x.dtype), _floats(x, 2, rows, 1)
    x.device.call("layer_norm_forward", y, mean, rstd, x, weight, bias, rows, cols, eps, x.code)
    return cast(y, dtype), mean, rstd


def layer_norm_backward(dy: DeviceArray, x: DeviceArray, weight: DeviceArray, mean: DeviceArray,
                        rstd: DeviceArray) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    dtype = x.dtype
    mean, rstd = _statistics(x, mean=mean, rstd=rstd)
    x, dy, weight = same_type(x, dy, weight)
    rows, cols = _sizes(x, like={"dy": dy}, weight=weight)
    dx, (dweight, dbias) = x.device.empty(x.shape, x.dtype), _floats(x, 2, cols)
    workspace = scratch(x, x.device.library.nn_layer_norm_workspace_size(rows, cols))
    x.device.call("layer_norm_backward", dx, dweight, dbias, dy, x, weight, mean, rstd, rows, cols, x.code,
                  *workspace)
    return cast(dx, dtype), dweight, dbias
