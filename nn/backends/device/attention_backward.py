"""Attention's backward on the device (csrc/kernels/attention/backward*)."""

from ctypes import byref
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.prototypes.attention import Attention
from cuda.nn.prototypes.attention_backward import AttentionGradients
from nn.backends.device.arrays import FLOAT32, cast, dense, expect, scratch
from nn.backends.device.attention import check_shapes


def attention_backward(do: DeviceArray, q: DeviceArray, k: DeviceArray, v: DeviceArray, o: DeviceArray,
                       lse: DeviceArray, *, scale: float, causal: bool = True, window: int = 0,
                       mask: Any = None) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """(dq, dk, dv), each with the shape and type of its input."""
    types = [x.dtype for x in (q, k, v)]
    do, q, k, v, o = (cast(rows_dense(q.device.asarray(x)), q.dtype) for x in (do, q, k, v, o))
    (lse,) = dense(cast(q.device.asarray(lse), FLOAT32))
    check_shapes(q, k, v)
    for name, array in (("do", do), ("o", o)):
        expect(name, array, (*q.shape[:3], v.shape[3]))
    expect("lse", lse, q.shape[:3])
    gradients = tuple(q.device.empty(x.shape, x.dtype) for x in (q, k, v))
    launch(do, q, k, v, o, lse, *gradients, scale=scale, causal=causal, window=window, mask=mask)
    dq, dk, dv = map(cast, gradients, types)
    return dq, dk, dv


def rows_dense(x: DeviceArray) -> DeviceArray:
    """The kernels take any strides but the last axis'."""
    return x if x.shape[-1] <= 1 or x.strides[-1] == 1 else x.contiguous()


def launch(do: DeviceArray, q: DeviceArray, k: DeviceArray, v: DeviceArray, o: DeviceArray, lse: DeviceArray,
           dq: DeviceArray, dk: DeviceArray, dv: DeviceArray, *, scale: float, causal: bool = True,
           window: int = 0, mask: Any = None, **options: Any) -> None:
    """Into dq, dk, dv.  options: fields of nn_attention (softcap, cu_queries, cu_keys, key_lengths; with
    packed sequences the arrays have one batch row, and batch, queries, keys are given)."""
    device = q.device
    if mask is not None:
        mask = device.asarray(mask)
        mask = mask.astype(np.bool_, copy=False).broadcast_to((*q.shape[:3], k.shape[2]))
    arrays = {"o": o, "q": q, "k": k, "v": v}
    sizes = {"batch": q.shape[0], "heads": q.shape[1], "groups": k.shape[1], "queries": q.shape[2],
             "keys": k.shape[2], "width": q.shape[3], "value_width": v.shape[3]}
    pointers = {name: x.pointer for name, x in options.items() if isinstance(x, DeviceArray)}
    attention = Attention(**(sizes | options | pointers), **{name: x.pointer for name, x in arrays.items()},
                          **{f"{name}_strides": x.strides[:3] for name, x in arrays.items()}, lse=lse.pointer,
                          lse_strides=lse.strides[:2], scale=scale, causal=int(causal), window=window,
                          mask=mask.pointer if mask is not None else None, dtype=q.code,
                          mask_strides=mask.strides if mask is not None else (0,) * 4)
    arrays = {"d_o": do, "dq": dq, "dk": dk, "dv": dv}
    gradients = AttentionGradients(**{name: x.pointer for name, x in arrays.items()},
                                   **{f"{name}_strides": x.strides[:3] for name, x in arrays.items()})
    names = ("batch", "heads", "groups", "queries", "keys", "width", "value_width")
    size = device.library.nn_attention_backward_workspace_size(*(getattr(attention, name) for name in names))
    device.call("attention_backward", byref(attention), byref(gradients), *scratch(q, size))
