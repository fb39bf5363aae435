"""Differentiable operations: each forward beside its hand-derived backward.

    from nn import ops;  y = ops.softmax(x @ w)

Importing this module gives Tensor its operators and methods."""

from typing import Any

from nn.operators import Operators
from nn.ops.attention import attention, rope
from nn.ops.checkpoint import checkpoint
from nn.ops.conv import causal_conv
from nn.ops.decayed import decayed_chunks
from nn.ops.delta import delta_chunks
from nn.ops.dense_attention import dense_attention
from nn.ops.dropout import dropout
from nn.ops.elementwise import (
    absolute,
    add,
    cast,
    clip,
    div,
    exp,
    gelu,
    log,
    maximum,
    mul,
    neg,
    power,
    relu,
    sigmoid,
    silu,
    sqrt,
    sub,
    swiglu,
    swiglu_packed,
    tanh,
    where,
)
from nn.ops.features import elu_plus_one, l2_norm
from nn.ops.gates import log_sigmoid, softplus
from nn.ops.gather import scatter_add, take, take_along_axis
from nn.ops.gla import gla_chunks
from nn.ops.loss import cross_entropy, linear_cross_entropy
from nn.ops.matmul import linear, matmul
from nn.ops.merged import merged_attention
from nn.ops.moe import (
    balance_loss,
    combine,
    dispatch,
    gathered_swiglu,
    grouped_linear,
    jitter,
    normal_cdf,
    plan,
    router_topk,
    sqrt_softplus,
    z_loss,
)
from nn.ops.norm import layer_norm, rms_norm, rms_norm_residual
from nn.ops.reduce import cumsum, logsumexp, max, mean, sum
from nn.ops.roots import signed_sqrt
from nn.ops.scan import selective_scan
from nn.ops.sinkhorn import sinkhorn
from nn.ops.softmax import log_softmax, softmax
from nn.ops.streams import read_streams, write_streams
from nn.ops.tiled import tiled_attention
from nn.ops.views import broadcast_to, concat, getitem, permute, reshape, split, stack, transpose
from nn.tensor import Tensor

__all__ = [
    "absolute", "add", "attention", "balance_loss", "broadcast_to", "cast", "causal_conv", "checkpoint",
    "clip", "combine", "concat", "cross_entropy", "cumsum", "decayed_chunks", "delta_chunks",
    "dense_attention", "dispatch", "div", "dropout", "elu_plus_one", "exp", "gathered_swiglu", "gelu",
    "getitem", "gla_chunks", "grouped_linear", "jitter", "l2_norm", "layer_norm", "linear",
    "linear_cross_entropy", "log", "log_sigmoid", "log_softmax", "logsumexp", "matmul", "max", "maximum",
    "mean", "merged_attention", "mul", "neg", "normal_cdf", "permute", "plan", "power", "read_streams",
    "relu", "reshape", "rms_norm", "rms_norm_residual", "rope", "router_topk", "scatter_add",
    "selective_scan", "sigmoid", "signed_sqrt", "silu", "sinkhorn", "softmax", "softplus", "split", "sqrt",
    "sqrt_softplus", "stack", "sub", "sum", "swiglu", "swiglu_packed", "take", "take_along_axis", "tanh",
    "tiled_attention", "transpose", "where", "write_streams", "z_loss",
]


def _length(x: Tensor) -> int:
    if x.ndim == 0:
        raise TypeError("len: a tensor without axes has no length")
    return x.shape[0]


_METHODS: dict[str, Any] = {
    "__add__": add, "__radd__": lambda x, y: add(y, x),
    "__sub__": sub, "__rsub__": lambda x, y: sub(y, x),
    "__mul__": mul, "__rmul__": lambda x, y: mul(y, x),
    "__truediv__": div, "__rtruediv__": lambda x, y: div(y, x),
    "__matmul__": matmul, "__rmatmul__": lambda x, y: matmul(y, x),
    "__neg__": neg, "__pow__": power, "__abs__": absolute, "__getitem__": getitem,
    "__len__": _length, "__float__": Tensor.item, "__bool__": lambda x: bool(Tensor.item(x)),
    "sum": sum, "mean": mean, "max": max, "reshape": reshape, "view": reshape,
    "permute": permute, "cast": cast,
    "exp": exp, "log": log, "sqrt": sqrt, "tanh": tanh, "sigmoid": sigmoid, "silu": silu, "softmax": softmax,
}
for _name, _function in _METHODS.items():
    setattr(Operators, _name, _function)
