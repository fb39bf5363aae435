"""The kernel library as a backend: the protocol's functions on DeviceArrays, on a GPU and emulated.

Beside them, what steps that are recorded need and the protocol has no name for: many tensors' AdamW and norm,
sampling."""

from nn.backends.device.activation import (
    gelu,
    gelu_backward,
    gelu_tanh,
    gelu_tanh_backward,
    silu,
    silu_backward,
    swiglu,
    swiglu_backward,
    swiglu_packed,
    swiglu_packed_backward,
)
from nn.backends.device.attention import attention
from nn.backends.device.attention_backward import attention_backward
from nn.backends.device.conv import causal_conv, causal_conv_backward
from nn.backends.device.decoding import cache_append, decode_attention, rope_at
from nn.backends.device.elementwise import (
    accumulate,
    add,
    add_row,
    column_sum,
    contiguous,
    mul,
    mul_row,
    scale,
    to_bfloat16,
    widen,
)
from nn.backends.device.loss import cross_entropy, cross_entropy_backward, linear_cross_entropy
from nn.backends.device.matmul import linear, linear_backward, matmul
from nn.backends.device.moe import (
    expert_order,
    gathered_swiglu,
    gathered_swiglu_backward,
    grouped_linear,
    grouped_linear_backward,
    moe_balance_loss,
    moe_balance_loss_backward,
    moe_combine,
    moe_combine_backward,
    moe_dispatch,
    moe_dispatch_backward,
    moe_z_loss,
    moe_z_loss_backward,
)
from nn.backends.device.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    rms_norm_residual,
)
from nn.backends.device.optimizer import (
    adamw,
    adamw_plan,
    adamw_step,
    embedding,
    global_norm,
    increment,
    scatter_add,
    sum_of_squares,
)
from nn.backends.device.packed import packed_experts, packed_linear, packed_swiglu
from nn.backends.device.rotary import rope
from nn.backends.device.router import jitter, router_topk, router_topk_backward
from nn.backends.device.sampling import next_token, sample, sampling_key, top_k
from nn.backends.device.scan import selective_scan, selective_scan_backward
from nn.backends.device.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward

__all__ = [
    "accumulate", "adamw", "adamw_plan", "adamw_step", "add", "add_row", "attention",
    "attention_backward", "cache_append", "causal_conv", "causal_conv_backward", "column_sum",
    "contiguous", "cross_entropy", "cross_entropy_backward", "decode_attention", "embedding",
    "expert_order", "gathered_swiglu", "gathered_swiglu_backward", "gelu", "gelu_backward", "gelu_tanh",
    "gelu_tanh_backward", "global_norm", "grouped_linear", "grouped_linear_backward", "increment",
    "jitter", "layer_norm", "layer_norm_backward", "linear", "linear_backward", "linear_cross_entropy",
    "log_softmax", "log_softmax_backward", "matmul", "moe_balance_loss", "moe_balance_loss_backward",
    "moe_combine", "moe_combine_backward", "moe_dispatch", "moe_dispatch_backward", "moe_z_loss",
    "moe_z_loss_backward", "mul", "mul_row", "next_token", "packed_experts", "packed_linear", "packed_swiglu",
    "rms_norm", "rms_norm_backward", "rms_norm_residual", "rope", "rope_at", "router_topk",
    "router_topk_backward", "sample", "sampling_key", "scale", "scatter_add", "selective_scan",
    "selective_scan_backward", "silu", "silu_backward", "softmax", "softmax_backward", "sum_of_squares",
    "swiglu", "swiglu_backward", "swiglu_packed", "swiglu_packed_backward", "to_bfloat16", "top_k", "widen",
]
