"""Rotary position embedding on the device: tables, and the rotation of queries and keys in one launch."""

from ctypes import byref, sizeof
from typing import Any

import numpy as np

from cuda.nn.device import Device, DeviceArray
from cuda.nn.dtypes import code
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.prototypes.rope import Rope, RopeArray
from nn.backends.device.arrays import expect_device

SCALINGS = {"none": 0, "linear": 1, "ntk": 2}


def rope(x: DeviceArray, cos: Any, sin: Any, *, interleaved: bool = False,
         inverse: bool = False) -> DeviceArray:
    """The first r channels of x[B,H,T,D] turned by cos, sin [T,r/2] or [B,1,T,r/2]; the rest pass through."""
    turned = rope_qk(x, None, cos, sin, interleaved=interleaved, inverse=inverse)[0]
    assert turned is not None
    return turned


def rope_at(x: DeviceArray, cos: Any, sin: Any, positions: Any, *, interleaved: bool = False) -> DeviceArray:
    """rope of x[B,H,T,D], row b standing at positions[b] ... of cos, sin [P,r/2]; beyond them is NaN."""
    turned = rope_qk(x, None, cos, sin, positions=positions, interleaved=interleaved)[0]
    assert turned is not None
    return turned


def rope_qk(q: DeviceArray | None, k: DeviceArray | None, cos: Any, sin: Any, *, positions: Any = None,
            interleaved: bool = False, inverse: bool = False, in_place: bool = False,
            ) -> tuple[DeviceArray | None, DeviceArray | None]:
    """q[B,H,T,D] and k[B,G,T,D] in one launch; either may be None.  in_place: both are changed and returned.

    With `positions`, an int32 or int64 array of 1 or B starts on the device, row b at time t takes row
    positions[b] + t of the tables cos, sin [rows,
                                             r/2], without the host knowing which; beyond them is NaN."""
    first = q if q is not None else k
    if first is None:
        return None, None
    device, (batch, _, length, width) = first.device, first.shape
    cos, sin = _table(device, cos), _table(device, sin)
    if cos.shape != sin.shape or cos.ndim not in (2, 4) or (cos.ndim == 4 and cos.shape[:2] != (batch, 1)):
        raise DeviceArgumentError(f"cos, sin: shapes {cos.shape}, {sin.shape}, not [T,r/2] or [B,1,T,r/2]")
    if k is not None and q is not None and (k.dtype != q.dtype or q.shape[::2] != k.shape[::2]
                                            or q.shape[3] != k.shape[3]):
        raise DeviceArgumentError(f"q, k: {q.dtype} {q.shape}, {k.dtype} {k.shape} differ in more than heads")
    expect_device(first, k=k)
    rows, half = cos.shape[-2:]
    if positions is None and rows < length:
        raise DeviceArgumentError(f"cos, sin: {rows} rows for {length} positions")
    call = Rope(size=sizeof(Rope), cos=cos.pointer, sin=sin.pointer, batch=batch, length=length, width=width,
                half=half, table_rows=rows, table_batch=rows if cos.ndim == 4 else 0, dtype=first.code,
                interleaved=interleaved, inverse=inverse)
    if positions is not None:
        positions = device.asarray(positions).contiguous()
        if positions.size not in (1, batch):
            raise DeviceArgumentError(f"positions: {positions.shape} for {batch} sequences")
        call.positions, call.position_dtype = positions.pointer, positions.code
        call.position_stride = int(positions.size == batch and batch > 1)
    turned = []
    for name, x in (("q", q), ("k", k)):
        if x is not None:
            dense = x.strides[3] == 1 or width <= 1
            if in_place and not dense:
                raise DeviceArgumentError(f"{name}: strides {x.strides}; in place, the last must be 1")
            x = x if dense else x.contiguous()
            y = x if in_place else device.empty(x.shape, x.dtype)
            setattr(call, name, _array(y, x))
        turned.append(None if x is None else y)
    device.call("rope_forward", byref(call))
    return turned[0], turned[1]


def rope_table(device: Device, inverse: Any, positions: int, *, start: int = 0,
               factor: float = 1.0) -> tuple[DeviceArray, DeviceArray]:
    """cos, sin [positions, len(inverse)] in float32 of the positions from `start` on, times `factor`;
    inverse in float64, radians per position, such as nn.layers.rotary.inverse_frequencies gives."""
    inverse = device.asarray(inverse if isinstance(inverse, DeviceArray) else np.asarray(inverse, np.float64))
    if inverse.dtype != np.float64:
        raise DeviceArgumentError(f"inverse: {inverse.dtype}; float64 is needed for far positions")
    shape = (positions, inverse.size)
    cos, sin = device.empty(shape, np.float32), device.empty(shape, np.float32)
    device.call("rope_table", cos, sin, inverse.contiguous(), start, positions, inverse.size, factor)
    return cos, sin


def rope_frequencies(device: Device, dim: int, theta: float = 10000.0, *, scaling: str = "none",
                     factor: float = 1.0) -> DeviceArray:
    """[dim/2] float64 radians per position; scaling "none", "linear" or "ntk" by `factor`."""
    if scaling not in SCALINGS:
        raise DeviceArgumentError(f"scaling: {scaling}; computed on the device: {', '.join(SCALINGS)}")
    inverse = device.empty((dim // 2,), np.float64)
    device.call("rope_frequencies", inverse, dim, theta, factor, SCALINGS[scaling])
    return inverse


def _array(y: DeviceArray, x: DeviceArray) -> RopeArray:
    return RopeArray(y.pointer, x.pointer, x.shape[1], *y.strides[:3], *x.strides[:3])


def _table(device: Device, values: Any) -> DeviceArray:
    table = device.asarray(values)
    if table.code != code(np.float32):
        raise DeviceArgumentError(f"cos, sin: {table.dtype}; tables are float32")
    return table.contiguous()
