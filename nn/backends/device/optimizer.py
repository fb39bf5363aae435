"""An optimizer step on the device: AdamW over many tensors at once, the gradients' norm, embedding gradients.

    plan = adamw_plan(params, grads, m, v)                       # once: what lies where, in device memory
    zero_gradients(plan); ...backward...
    norm, scale, skip = global_norm(plan, max_norm=1.0)          # nothing is copied to the host
    increment(step, skip=skip)
    adamw_step(plan, lr, step, scale=scale, skip=skip, betas=(0.9, 0.95), eps=1e-8)

lr[1] float64, step[1] int64, scale[1] float32 and skip[1] int32 are read on the device, so that all of this
can be captured in a graph and replayed with other values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.device import Device
from cuda.nn.dtypes import FLOATING
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.arrays import FLOAT32, dense, expect_size, scratch

# nn_tensor and nn_chunk of nn/optimizer.h
TENSOR = np.dtype([("param", "u8"), ("master", "u8"), ("grad", "u8"), ("m", "u8"), ("v", "u8"),
                   ("count", "i8"),
                   ("lr_scale", "f8"), ("weight_decay", "f8"), ("param_dtype", "i4"), ("grad_dtype", "i4")])
CHUNK = np.dtype([("tensor", "i4"), ("index", "i4")])


@dataclass(frozen=True)
class AdamWPlan:
    """Which tensors a step is for.  It keeps them alive; whoever replaces one makes a new plan."""

    device: Device
    tensors: DeviceArray             # bytes: a table of nn_tensor
    chunks: DeviceArray              # bytes: a table of nn_chunk
    chunk_count: int
    arrays: tuple[Any, ...]
    table: np.ndarray                # what `tensors` has to hold

    def upload(self) -> None:
        """Let the device have the table."""
        self.tensors.upload(self.table.view(np.uint8))

    def moved(self, grads: Sequence[DeviceArray], tensors: DeviceArray | None = None) -> "AdamWPlan":
        """The plan for gradients that lie elsewhere.  A recording needs memory for `tensors` from before it,
        since replays write over their own; whoever records calls upload() before the replay."""
        table, device = self.table.copy(), self.device
        for i, (grad, count) in enumerate(zip(grads, table["count"], strict=True)):
            if grad.size != count or grad.dtype not in FLOATING or not grad.is_contiguous:
                raise DeviceArgumentError(f"grad of tensor {i}: {grad.dtype} {grad.shape}; expected "
                                          f"{count} dense elements")
            table[i]["grad"], table[i]["grad_dtype"] = grad.pointer, grad.code
        place = device.empty(self.tensors.shape, np.uint8) if tensors is None else tensors
        plan = replace(self, tensors=place, arrays=(*self.arrays, *grads), table=table)
        if tensors is None:
            plan.upload()
        return plan


def adamw_plan(params: Sequence[DeviceArray], grads: Sequence[DeviceArray], m: Sequence[DeviceArray],
               v: Sequence[DeviceArray], *, masters: Sequence[DeviceArray | None] | None = None,
               lr_scale: Sequence[float] | float = 1.0,
               weight_decay: Sequence[float] | float = 0.0) -> AdamWPlan:
    """The plan for tensors: params and grads in float32, float16 or bfloat16, moments in float32; all dense.

    With a master, a float32 copy, the step is made on it, and the param is its rounding.  lr_scale and
    weight_decay are one number or one per tensor."""
    if not params:
        raise DeviceArgumentError("params: none given")
    count, device = len(params), params[0].device
    masters = [None] * count if masters is None else masters
    table = np.zeros(count, TENSOR)
    for i, (param, grad, first, second, master) in enumerate(zip(params, grads, m, v, masters, strict=True)):
        _check_tensor(i, param, grad, first, second, master)
        table[i] = (param.pointer, master.pointer if master is not None else 0, grad.pointer, first.pointer,
                    second.pointer, param.size, 0, 0, param.code, grad.code)
    table["lr_scale"], table["weight_decay"] = lr_scale, weight_decay
    size = device.library.nn_chunk_elements()
    pieces = -(-table["count"] // size)
    chunks = np.empty(int(pieces.sum()), CHUNK)
    chunks["tensor"] = np.repeat(np.arange(count), pieces)
    chunks["index"] = np.arange(len(chunks)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return AdamWPlan(device, device.asarray(table.view(np.uint8)), device.asarray(chunks.view(np.uint8)),
                     len(chunks), (*params, *m, *v, *masters, *grads), table)


def adamw_step(plan: AdamWPlan, lr: DeviceArray, step: DeviceArray, *, betas: tuple[float, float], eps: float,
               scale: DeviceArray | None = None, skip: DeviceArray | None = None) -> None:
    """One AdamW step on the whole plan, in place: lr[1] float64; step[1] int64, from 1; scale[1] float32
    multiplies the gradients; nothing is changed where skip[1] int32 is not 0."""
    expect_size("lr", lr, 1, np.float64)
    expect_size("step", step, 1, np.int64)
    expect_size("scale", scale, 1, np.float32)
    expect_size("skip", skip, 1, np.int32)
    plan.device.call("adamw_forward", plan.tensors, plan.chunks, plan.chunk_count, lr, step, scale, skip,
                     *betas, eps)


def global_norm(plan: AdamWPlan, max_norm: float = 0.0, *, scale: DeviceArray | None = None,
                skipped: DeviceArray | None = None) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """(norm[1], scale[1], skip[1]) of the plan's gradients times `scale`[1] (None: 1), all on the device: the
    new scale clips to max_norm (0: no clipping); skip is 1 if the norm is not finite, and skipped[1] int64 is
    increased then."""
    expect_size("scale", scale, 1, np.float32)
    expect_size("skipped", skipped, 1, np.int64)
    device = plan.device
    norm, clipped = device.empty((1,), np.float32), device.empty((1,), np.float32)
    skip = device.empty((1,), np.int32)
    workspace, size = scratch(norm, device.library.nn_gradient_norm_workspace_size(plan.chunk_count))
    device.call("gradient_norm_forward", norm, clipped, skip, skipped, plan.tensors, plan.chunks,
                plan.chunk_count,
                scale, max_norm, workspace, size)
    return norm, clipped, skip


def zero_gradients(plan: AdamWPlan) -> None:
    """All gradients of the plan are 0, in one launch."""
    plan.device.call("zero_gradients", plan.tensors, plan.chunks, plan.chunk_count)


def increment(counter: DeviceArray, *, skip: DeviceArray | None = None) -> None:
    """counter[1] int64 += 1, unless skip[1] int32 is not 0."""
    expect_size("counter", counter, 1, np.int64)
    expect_size("skip", skip, 1, np.int32)
    counter.device.call("counter_increment", counter, skip)


# ---- the protocol ----

def adamw(param: DeviceArray, grad: DeviceArray, m: DeviceArray, v: DeviceArray, *, lr: float, beta1: float,
          beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float = 1.0,
          stored: DeviceArray | None = None) -> None:
    """One AdamW step in place on param, m and v, and on `stored`, param in half precision; `step` counts
    from 1."""
    device, dense_now = param.device, [x.contiguous() for x in (param, grad, m, v)]
    plan = adamw_plan(*([x] for x in dense_now), weight_decay=weight_decay)
    adamw_step(plan, device.asarray(np.array([lr], np.float64)), device.asarray(np.array([step], np.int64)),
               betas=(beta1, beta2), eps=eps, scale=device.asarray(np.array([grad_scale], np.float32)))
    for given, changed in zip((param, m, v), (dense_now[0], *dense_now[2:]), strict=True):
        if changed is not given:
            given[...] = changed
    if stored is not None:
        stored[...] = device.namespace.astype(param, stored.dtype)


def sum_of_squares(x: DeviceArray) -> float:
    """Σ x² in float64.  Copies the sum to the host: a training step uses global_norm instead."""
    (x,) = dense(x)
    total = x.device.empty((1,), np.float64)
    workspace, size = scratch(x, x.device.library.nn_sum_of_squares_workspace_size(x.size))
    x.device.call("sum_of_squares", total, x, x.size, x.code, workspace, size)
    return float(total.numpy()[0])


def scatter_add(source: DeviceArray, index: Any, rows: int) -> DeviceArray:
    """out[rows,D] in float32: out[index[n]] += source[n], in increasing n (an embedding's gradient)."""
    return scatter_add_into(source.device.empty((rows, *source.shape[1:]), np.float32), source, index,
                            accumulate=False)


def scatter_add_into(out: DeviceArray, source: DeviceArray, index: Any, *,
                     accumulate: bool = True) -> DeviceArray:
    """The same, added to a dense float32 out[rows,D], of which only named rows are touched; or over it."""
    source, index = dense(source, index)
    rows, width = out.shape[0], source.size // max(1, source.shape[0])
    if not out.is_contiguous:
        raise DeviceArgumentError(f"out: strides {out.strides} of shape {out.shape}; expected a dense array")
    if index.size != source.shape[0] or out.shape[1:] != source.shape[1:] or out.dtype != FLOAT32:
        raise DeviceArgumentError(f"scatter_add: out {out.dtype} {out.shape}, source {source.shape}, index "
                                  f"{index.shape} do not fit together")
    workspace, size = scratch(source, source.device.library.nn_scatter_add_workspace_size(index.size, rows))
    source.device.call("scatter_add_forward", out, source, index, index.size, rows,
                       width if width else out.size // max(1, rows),
                       accumulate, source.code, index.code, workspace, size)
    return out


def embedding(weight: DeviceArray, ids: Any) -> DeviceArray:
    """weight[V,D] by ids[...]: [..., D]; NaN for one outside 0 ... V - 1."""
    weight, ids = dense(weight, ids)
    out = weight.device.empty((*ids.shape, weight.shape[1]), weight.dtype)
    weight.device.call("embedding_forward", out, weight, ids, ids.size, *weight.shape, weight.code, ids.code)
    return out


def _check_tensor(i: int, param: DeviceArray, grad: DeviceArray, m: DeviceArray, v: DeviceArray,
                  master: DeviceArray | None) -> None:
    for name, array in (("param", param), ("grad", grad), ("m", m), ("v", v), ("master", master)):
        if array is None:
            continue
        allowed = FLOATING if name in ("param", "grad") else (FLOAT32,)
        if array.size != param.size or array.dtype not in allowed or not array.is_contiguous:
            names = ", ".join(dtype.name for dtype in allowed)
            raise DeviceArgumentError(f"{name} of tensor {i}: {array.dtype} {array.shape}; expected "
                                      f"dense {names} {param.shape}")
