"""Mixture of experts on the device: the plan, rows to experts and back, all experts' linear maps, and the
router's auxiliary losses.  No expert count is read on the host: a captured step serves any routing."""

import numpy as np

from cuda.nn.device import Device, DeviceArray
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.activation import swiglu_packed_backward
from nn.backends.device.arrays import FLOAT32, cast, dense, expect, expect_size

# ---- plan and rows ----


def expert_order(experts: DeviceArray, num_experts: int) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """(order[M], inverse[M], offsets[E+1]), int64, from experts[N,K] (int64 or int32): the pairs sorted by
    expert, stable, the row of each pair, and where each expert's rows begin.  A pair whose expert is not in
    0 ... E-1 is dropped: it comes after offsets[E]."""
    device, pairs = experts.device, experts.size
    order, inverse = (device.empty((pairs,), np.int64) for _ in range(2))
    offsets = device.empty((num_experts + 1,), np.int64)
    size = device.library.nn_moe_plan_workspace_size(pairs, num_experts)
    device.call("moe_plan", order, inverse, offsets, experts.contiguous(), pairs, num_experts, experts.code,
                _workspace(device, size), size)
    return order, inverse, offsets


def moe_dispatch(x: DeviceArray, order: DeviceArray, choices: int) -> DeviceArray:
    """xs[r] = x[order[r] // choices]:  x[N,D] -> [M,D]"""
    (tokens, width), rows = x.shape, order.shape[0]
    expect("order", order, (tokens * choices,), np.int64)
    xs = x.device.empty((rows, width), x.dtype)
    x.device.call("moe_dispatch_forward", xs, x.contiguous(), order.contiguous(), tokens, choices,
                  width, x.code)
    return xs


def moe_dispatch_backward(dxs: DeviceArray, inverse: DeviceArray, choices: int) -> DeviceArray:
    """dx[n] = Σ_k dxs[inverse[n,k]], in the order of the choices:  dxs[M,D] -> [N,D]"""
    rows, width = dxs.shape
    expect("inverse", inverse, (rows,), np.int64)
    if choices < 1 or rows % choices:
        raise DeviceArgumentError(f"choices: {choices} does not divide {rows} rows")
    dx = dxs.device.empty((rows // choices, width), dxs.dtype)
    dxs.device.call("moe_dispatch_backward", dx, dxs.contiguous(), inverse.contiguous(), rows // choices,
                    choices, width, dxs.code)
    return dx


def moe_combine(ys: DeviceArray, weights: DeviceArray, inverse: DeviceArray) -> DeviceArray:
    """y[n] = Σ_k weights[n,k] ys[inverse[n,k]], in the order of the choices:  ys[M,D] -> [N,D]"""
    (tokens, choices), width = weights.shape, ys.shape[1]
    expect("ys", ys, (tokens * choices, width), ys.dtype)
    expect("weights", weights, (tokens, choices), np.float32)
    expect("inverse", inverse, (tokens * choices,), np.int64)
    y = ys.device.empty((tokens, width), ys.dtype)
    ys.device.call("moe_combine_forward", y, ys.contiguous(), weights.contiguous(),
                   inverse.contiguous(), tokens, choices, width, ys.code)
    return y


def moe_combine_backward(dy: DeviceArray, ys: DeviceArray, weights: DeviceArray, order: DeviceArray,
                         inverse: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """(dys[M,D], dweights[N,K]) in one pass over the tokens, which needs `inverse` alone"""
    (tokens, choices), width = weights.shape, ys.shape[1]
    expect("ys", ys, (tokens * choices, width), dy.dtype)
    expect("dy", dy, (tokens, width), dy.dtype)
    expect("weights", weights, (tokens, choices), np.float32)
    expect("inverse", inverse, (tokens * choices,), np.int64)
    dys, dweights = ys.device.empty(ys.shape, ys.dtype), ys.device.empty((tokens, choices), np.float32)
    ys.device.call("moe_combine_backward", dys, dweights, dy.contiguous(), ys.contiguous(),
                   weights.contiguous(), inverse.contiguous(), tokens, choices, width, ys.code)
    return dys, dweights


# ---- all experts' linear maps ----


def grouped_linear(x: DeviceArray, weight: DeviceArray, offsets: DeviceArray, *,
                   batch_invariant: bool = True) -> DeviceArray:
    """y[M,O]: row r of expert e's range times weight[e]ᵀ; rows after the last range are zeros.

    A row's bits depend on the row and its expert's weight alone, whatever `batch_invariant` says."""
    return gathered_linear(x, weight, offsets, None, 1)


def gathered_linear(x: DeviceArray, weight: DeviceArray, offsets: DeviceArray, order: DeviceArray | None,
                    choices: int) -> DeviceArray:
    """grouped_linear(moe_dispatch(x, order, choices), weight, offsets), bit for bit, copying no rows"""
    (count, outputs, inputs), rows = weight.shape, x.shape[0] * choices
    expect("x", x, (x.shape[0], inputs), weight.dtype)
    expect("offsets", offsets, (count + 1,), np.int64)
    if order is not None:
        expect("order", order, (rows,), np.int64)
    y = x.device.empty((rows, outputs), x.dtype)
    x.device.call("grouped_linear_forward", y, x.contiguous(), weight.contiguous(),
                  offsets.contiguous(), _dense(order), choices, rows, count, inputs, outputs, x.code)
    return y


def gathered_swiglu(x: DeviceArray, weight: DeviceArray, offsets: DeviceArray, order: DeviceArray | None,
                    choices: int, *, batch_invariant: bool = True,
                    keep: bool = True) -> tuple[DeviceArray, DeviceArray | None]:
    """(y[M,F], hidden[M,2F]): swiglu_packed(gathered_linear(x, weight[E,2F,I], ...)) in one launch, bit for
    bit; hidden, before the activation, is None unless it is to be kept for the backward."""
    (count, outputs, inputs), rows, device = weight.shape, x.shape[0] * choices, x.device
    if outputs % 2:
        raise DeviceArgumentError(f"weight: {list(weight.shape)} has no two halves, gate and up")
    expect("x", x, (x.shape[0], inputs), weight.dtype)
    expect("offsets", offsets, (count + 1,), np.int64)
    if order is not None:
        expect("order", order, (rows,), np.int64)
    y = device.empty((rows, outputs // 2), x.dtype)
    hidden = device.empty((rows, outputs), x.dtype) if keep else None
    device.call("grouped_swiglu_forward", y, hidden, x.contiguous(), weight.contiguous(),
                offsets.contiguous(), _dense(order), choices, rows, count, inputs, outputs // 2, x.code)
    return y, hidden


def grouped_linear_backward(dy: DeviceArray, x: DeviceArray, weight: DeviceArray,
                            offsets: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """(dx[M,I], dweight[E,O,I] in float32); an expert without rows has gradient zero."""
    return gathered_linear_backward(dy, x, weight, offsets, None, 1)


def gathered_linear_backward(dy: DeviceArray, x: DeviceArray, weight: DeviceArray, offsets: DeviceArray,
                             order: DeviceArray | None, choices: int) -> tuple[DeviceArray, DeviceArray]:
    """(dxs[M,I], dweight[E,O,I] in float32) of gathered_linear; moe_dispatch_backward turns dxs into dx."""
    (count, outputs, inputs), rows, device = weight.shape, dy.shape[0], dy.device
    expect("dy", dy, (x.shape[0] * choices, outputs), weight.dtype)
    expect("x", x, (x.shape[0], inputs), weight.dtype)
    expect("offsets", offsets, (count + 1,), np.int64)
    dy, x, weight, offsets = (array.contiguous() for array in (dy, x, weight, offsets))
    dx, dweight = device.empty((rows, inputs), x.dtype), device.empty(weight.shape, np.float32)
    device.call("grouped_linear_backward_input", dx, dy, weight, offsets, rows, count, inputs, outputs,
                x.code)
    device.call("grouped_linear_backward_weight", dweight, dy, x, offsets, _dense(order), choices, rows,
                count, inputs, outputs, x.code)
    return dx, dweight


def gathered_swiglu_backward(dy: DeviceArray, hidden: DeviceArray, x: DeviceArray, weight: DeviceArray,
                             offsets: DeviceArray, order: DeviceArray, inverse: DeviceArray,
                             choices: int) -> tuple[DeviceArray, DeviceArray]:
    """(dx[N,I], dweight[E,2F,I] in float32) of gathered_swiglu; no row of x is copied"""
    dhidden = swiglu_packed_backward(dy, hidden)
    dxs, dweight = gathered_linear_backward(dhidden, x, weight, offsets, order, choices)
    return moe_dispatch_backward(dxs, inverse, choices), dweight


# ---- auxiliary losses ----


def moe_balance_loss(probs: DeviceArray, experts: DeviceArray,
                     coefficient: float) -> tuple[DeviceArray, DeviceArray]:
    """(loss[1], load[E]) from probs[N,E] and experts[N,K]: loss = α E Σ_e load_e mean probs_e"""
    (tokens, count), choices, device = probs.shape, experts.shape[1], probs.device
    probs = cast(dense(probs)[0], FLOAT32)
    expect("experts", experts, (tokens, choices), experts.dtype)
    loss, load = device.empty((1,), np.float32), device.empty((count,), np.float32)
    size = device.library.nn_moe_balance_loss_workspace_size(tokens, count)
    device.call("moe_balance_loss_forward", loss, load, probs.contiguous(), experts.contiguous(), tokens,
                choices, count, coefficient, experts.code, _workspace(device, size), size)
    return loss, load


def moe_balance_loss_backward(dloss: DeviceArray, load: DeviceArray, tokens: int,
                              coefficient: float) -> DeviceArray:
    """dprobs[N,E]; the load is a constant"""
    load, dloss = (cast(array, FLOAT32) for array in dense(load, dloss))
    expect_size("dloss", dloss, 1)
    dprobs = load.device.empty((tokens, load.shape[0]), np.float32)
    load.device.call("moe_balance_loss_backward", dprobs, dloss, load, tokens, load.shape[0], coefficient)
    return dprobs


def moe_z_loss(logits: DeviceArray, coefficient: float) -> tuple[DeviceArray, DeviceArray]:
    """(loss[1], lse[N]) from logits[N,E]: loss = β mean_n lse_n²"""
    (tokens, count), device = logits.shape, logits.device
    logits = cast(dense(logits)[0], FLOAT32)
    loss, lse = device.empty((1,), np.float32), device.empty((tokens,), np.float32)
    size = device.library.nn_moe_z_loss_workspace_size(tokens)
    device.call("moe_z_loss_forward", loss, lse, logits.contiguous(), tokens, count, coefficient,
                _workspace(device, size), size)
    return loss, lse


def moe_z_loss_backward(dloss: DeviceArray, logits: DeviceArray, lse: DeviceArray,
                        coefficient: float) -> DeviceArray:
    """dlogits[N,E]"""
    logits, dloss, lse = (cast(array, FLOAT32) for array in dense(logits, dloss, lse))
    expect_size("dloss", dloss, 1)
    expect_size("lse", lse, logits.shape[0])
    dlogits = logits.device.empty(logits.shape, np.float32)
    logits.device.call("moe_z_loss_backward", dlogits, dloss, logits.contiguous(), lse, *logits.shape,
                       coefficient)
    return dlogits


def _workspace(device: Device, size: int) -> DeviceArray | None:
    return device.workspace(size) if size else None


def _dense(array: DeviceArray | None) -> DeviceArray | None:
    return None if array is None else array.contiguous()
