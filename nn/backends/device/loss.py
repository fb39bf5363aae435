"""Losses on the device: cross-entropy, linear + cross-entropy in chunks of rows, means over tokens."""

from ctypes import byref, sizeof
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.prototypes.loss import CrossEntropy, LinearCrossEntropy
from nn.backends.device.arrays import FLOAT32, dense, expect_size, scratch

BUDGET = 256 << 20          # bytes of logits and their gradients that linear_cross_entropy holds at a time


def cross_entropy(logits: DeviceArray, targets: Any, *, ignore_index: int = -100,
                  label_smoothing: float = 0.0,
                  z_loss: float = 0.0, softcap: float = 0.0) -> tuple[DeviceArray, DeviceArray]:
    """(loss[R], lse[R]) in nats from logits[R,V] and integer targets[R]; NaN for one outside 0 ... V - 1."""
    logits, targets = dense(logits, targets)
    device, rows = logits.device, logits.shape[0]
    loss, lse = device.empty((rows,), np.float32), device.empty((rows,), np.float32)
    call = _call(logits, targets, ignore_index, label_smoothing, z_loss, softcap)
    call.loss, call.lse = loss.pointer, lse.pointer
    device.call("cross_entropy_forward", byref(call))
    return loss, lse


def cross_entropy_backward(dloss: Any, logits: DeviceArray, targets: Any, lse: Any, *,
                           ignore_index: int = -100, label_smoothing: float = 0.0,
                           z_loss: float = 0.0, softcap: float = 0.0) -> DeviceArray:
    """dlogits[R,V]"""
    logits, targets, lse = dense(logits, targets, lse)
    return _backward(logits.device.empty(logits.shape, logits.dtype), dloss, logits, targets, lse,
                     (ignore_index, label_smoothing, z_loss, softcap))


def cross_entropy_backward_in_place(dloss: Any, logits: DeviceArray, targets: Any, lse: Any, *,
                                    ignore_index: int = -100, label_smoothing: float = 0.0,
                                    z_loss: float = 0.0, softcap: float = 0.0) -> DeviceArray:
    """The same, over the logits, which must be dense."""
    if not logits.is_contiguous:
        raise DeviceArgumentError("logits: not dense, so the gradient cannot take their place")
    targets, lse = dense(logits, targets, lse)[1:]
    return _backward(logits, dloss, logits, targets, lse, (ignore_index, label_smoothing, z_loss, softcap))


def linear_cross_entropy(x: DeviceArray, weight: Any, targets: Any, *, gradient: bool = True,
                         scale: float = 1.0,
                         **options: Any) -> tuple[DeviceArray, DeviceArray | None, DeviceArray | None]:
    """(loss[R], dx[R,D], dweight[V,D]): cross-entropy of x weightᵀ and the gradients of scale · Σ loss;
    options are those of cross_entropy."""
    dloss = None if scale == 1.0 else x.device.full((x.shape[0],), scale, np.float32)
    return linear_cross_entropy_scaled(x, weight, targets, dloss, gradient=gradient, **options)


def linear_cross_entropy_scaled(
        x: DeviceArray, weight: Any, targets: Any, dloss: Any, *, gradient: bool = True,
        ignore_index: int = -100, label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0,
        budget: int = BUDGET, dweight: DeviceArray | None = None, tf32: bool = False,
) -> tuple[DeviceArray, DeviceArray | None, DeviceArray | None]:
    """linear_cross_entropy with gradients of Σ dloss · loss, for dloss[R] or None (ones).

    A given float32 `dweight` is added to and returned.  `budget` bytes bound logits and their gradients."""
    x, weight, targets = dense(x, weight, targets)
    device, (rows, width), vocabulary = x.device, x.shape, weight.shape[0]
    _check_targets(targets, rows)
    if weight.dtype != x.dtype or weight.shape[1:] != (width,):
        raise DeviceArgumentError(f"weight: {weight.dtype} {weight.shape} for x of {x.dtype} {x.shape}")
    loss, dx, accumulate = device.empty((rows,), np.float32), None, dweight is not None
    if gradient:
        dx = device.empty(x.shape, x.dtype)
        if dweight is None:
            dweight = device.empty(weight.shape, np.float32)
        elif dweight.shape != weight.shape or dweight.dtype != FLOAT32 or not dweight.is_contiguous:
            raise DeviceArgumentError(f"dweight: {dweight.dtype} {dweight.shape}; expected dense float32 "
                                      f"{weight.shape}")
    upstream = None if dloss is None else _float32(device.asarray(dloss), rows)
    call = LinearCrossEntropy(
        size=sizeof(LinearCrossEntropy), loss=loss.pointer, x=x.pointer, weight=weight.pointer,
        targets=targets.pointer, dloss=None if upstream is None else upstream.pointer, rows=rows, width=width,
        vocabulary=vocabulary, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        softcap=softcap, target_dtype=targets.code, dtype=x.code, accumulate=accumulate, compute=tf32)
    if dx is not None and dweight is not None:
        call.dx, call.dweight = dx.pointer, dweight.pointer
    library = device.library
    call.chunk = library.nn_linear_cross_entropy_chunk(rows, vocabulary, x.code, budget)
    workspace, size = scratch(x, max(0, library.nn_linear_cross_entropy_workspace_size(byref(call))))
    device.call("linear_cross_entropy_forward", byref(call), workspace, size)
    return loss, dx, dweight if gradient else None


def mean_loss(loss: DeviceArray, targets: Any, *, tokens: DeviceArray | None = None,
              ignore_index: int = -100) -> tuple[DeviceArray, DeviceArray]:
    """(mean[1], tokens[1]:int64) of loss[R]: its sum divided by `tokens`, or by the number of targets that
    are not ignore_index; the mean over none is 0.  Everything stays on the device."""
    loss, targets = dense(loss, targets)
    expect_size("loss", loss, targets.size, np.float32)
    expect_size("tokens", tokens, 1, np.int64)
    device = loss.device
    mean, count = device.empty((1,), np.float32), device.empty((1,), np.int64)
    device.call("mean_loss_forward", mean, None, count, loss, targets, tokens, loss.size, ignore_index,
                targets.code)
    return mean, count


def mean_loss_backward(dmean: DeviceArray, targets: Any, count: DeviceArray, *,
                       ignore_index: int = -100) -> DeviceArray:
    """dloss[R] = dmean[1] / count[1] for rows that count"""
    dmean, targets = dense(dmean, targets)
    expect_size("dmean", dmean, 1, np.float32)
    expect_size("count", count, 1, np.int64)
    dloss = dmean.device.empty(targets.shape, np.float32)
    dmean.device.call("mean_loss_backward", dloss, dmean, targets, count, targets.size, ignore_index,
                      targets.code)
    return dloss


def _backward(dlogits: DeviceArray, dloss: Any, logits: DeviceArray, targets: DeviceArray, lse: DeviceArray,
              options: tuple[int, float, float, float]) -> DeviceArray:
    rows = logits.shape[0]
    upstream, lse = _float32(logits.device.asarray(dloss), rows), _float32(lse, rows)
    call = _call(logits, targets, *options)
    call.dlogits, call.dloss, call.lse = dlogits.pointer, upstream.pointer, lse.pointer
    logits.device.call("cross_entropy_backward", byref(call))
    return dlogits


def _call(logits: DeviceArray, targets: DeviceArray, ignore_index: int, label_smoothing: float, z_loss: float,
          softcap: float) -> CrossEntropy:
    if logits.ndim != 2:
        raise DeviceArgumentError(f"logits: shape {logits.shape} is not [rows, vocabulary]")
    rows, vocabulary = logits.shape
    _check_targets(targets, rows)
    return CrossEntropy(size=sizeof(CrossEntropy), logits=logits.pointer, targets=targets.pointer, rows=rows,
                        vocabulary=vocabulary, stride=vocabulary, gradient_stride=vocabulary,
                        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
                        softcap=softcap, target_dtype=targets.code, dtype=logits.code,
                        gradient_dtype=logits.code)


def _check_targets(targets: DeviceArray, rows: int) -> None:
    if targets.shape != (rows,):
        raise DeviceArgumentError(f"targets: shape {targets.shape} for {rows} rows")


def _float32(values: DeviceArray, rows: int) -> DeviceArray:
    if values.shape != (rows,) or values.dtype != FLOAT32:
        raise DeviceArgumentError(f"dloss or lse: {values.dtype} {values.shape}; expected float32 ({rows},)")
    return values.contiguous()
