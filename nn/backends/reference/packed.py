"""Products with packed weights: unpacked, then multiplied.  Formats and layout: nn/packed/layout.py."""

from typing import Any

import numpy as np

from nn.backends.array_api import namespace, on_device
from nn.backends.reference.activation import swiglu_packed
from nn.backends.reference.matmul import linear
from nn.backends.reference.moe import expert_order, grouped_linear, moe_combine, moe_dispatch
from nn.dtypes import narrow, widen
from nn.packed.layout import Format
from nn.packed.weight import unpacked

Array = Any


def packed_linear(x: Array, weight: Array, format: int, outputs: int, *, bias: Array | None = None,
                  residual: Array | None = None) -> Array:
    """y[R,O] = x[R,I] weightᵀ + bias[O] + residual[R,O], rounded once; weight: the bytes of [O,I]"""
    matrix = unpacked_matrix(x, weight, format, (outputs, x.shape[1]))
    y = linear(widen(x), matrix, bias=None if bias is None else widen(bias))
    return narrow(y if residual is None else y + widen(residual), x.dtype)


def packed_swiglu(x: Array, weight: Array, format: int, features: int) -> Array:
    """y[R,F] = SiLU(gate) ⊙ up of x[R,I]; weight: the bytes of [2F,I], gated"""
    matrix = unpacked_matrix(x, weight, format, (2 * features, x.shape[1]), gated=True)
    return narrow(swiglu_packed(linear(widen(x), matrix)), x.dtype)


def packed_experts(x: Array, gate_up: Array, down: Array, weights: Array, experts: Array, num_experts: int,
                   features: int, format: int) -> Array:
    """y[N,D] = Σ_k weights[n,k] W_down SiLU(W_gate x) ⊙ W_up x of expert experts[n,k]; a pair of expert
    num_experts adds nothing.  gate_up: bytes of [E,2F,D], gated; down: of [E,D,F]"""
    width = x.shape[1]
    order, inverse, offsets = expert_order(experts, num_experts)
    wide = widen(x)
    up = unpacked_matrix(x, gate_up, format, (num_experts, 2 * features, width), gated=True)
    hidden = swiglu_packed(grouped_linear(moe_dispatch(wide, order, experts.shape[1]), up, offsets))
    ys = grouped_linear(hidden, unpacked_matrix(x, down, format, (num_experts, width, features)), offsets)
    return narrow(moe_combine(ys, weights, inverse), x.dtype)


def unpacked_matrix(x: Array, weight: Array, format: int, shape: tuple[int, ...],
                    gated: bool = False) -> Array:
    """The weight where x is, in the type that sums are formed in"""
    host = weight.numpy() if on_device(weight) else np.asarray(weight)
    values = unpacked(host, Format.of(format), shape, gated)
    return namespace(x).asarray(values.astype(np.float64 if "float64" in str(x.dtype) else np.float32))
