"""The reference backend: every kernel as plain array code, the executable specification.

Runs on any array module that speaks the Python array API standard, in any floating-point type.  Sums are
formed in float32 for half-precision inputs and in the input's own type otherwise."""

from nn.backends.reference.activation import (
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
from nn.backends.reference.attention import attention, attention_backward, cache_append, decode_attention
from nn.backends.reference.conv import causal_conv, causal_conv_backward
from nn.backends.reference.drawing import next_token
from nn.backends.reference.elementwise import (
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
from nn.backends.reference.loss import cross_entropy, cross_entropy_backward, linear_cross_entropy
from nn.backends.reference.matmul import linear, linear_backward, matmul
from nn.backends.reference.moe import (
    expert_order,
    gathered_swiglu,
    gathered_swiglu_backward,
    grouped_linear,
    grouped_linear_backward,
    jitter,
    moe_balance_loss,
    moe_balance_loss_backward,
    moe_combine,
    moe_combine_backward,
    moe_dispatch,
    moe_dispatch_backward,
    moe_z_loss,
    moe_z_loss_backward,
    router_topk,
    router_topk_backward,
)
from nn.backends.reference.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    rms_norm_residual,
)
from nn.backends.reference.optimizer import adamw, embedding, scatter_add, sum_of_squares
from nn.backends.reference.packed import packed_experts, packed_linear, packed_swiglu
from nn.backends.reference.rotary import rope, rope_at
from nn.backends.reference.sampling import top_k
from nn.backends.reference.scan import selective_scan, selective_scan_backward
from nn.backends.reference.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward

__all__ = [
    "accumulate", "adamw", "add", "add_row", "attention", "attention_backward", "cache_append",
    "causal_conv", "causal_conv_backward", "column_sum", "contiguous", "cross_entropy",
    "cross_entropy_backward", "decode_attention", "embedding", "expert_order", "gathered_swiglu",
    "gathered_swiglu_backward", "gelu", "gelu_backward", "gelu_tanh", "gelu_tanh_backward",
    "grouped_linear", "grouped_linear_backward", "jitter", "layer_norm", "layer_norm_backward", "linear",
    "linear_backward", "linear_cross_entropy", "log_softmax", "log_softmax_backward", "matmul",
    "moe_balance_loss", "moe_balance_loss_backward", "moe_combine", "moe_combine_backward",
    "moe_dispatch", "moe_dispatch_backward", "moe_z_loss", "moe_z_loss_backward", "mul", "mul_row",
    "next_token",
    "packed_experts", "packed_linear", "packed_swiglu", "rms_norm", "rms_norm_backward",
    "rms_norm_residual", "rope", "rope_at", "router_topk", "router_topk_backward", "scale", "scatter_add",
    "selective_scan", "selective_scan_backward", "silu", "silu_backward", "softmax", "softmax_backward",
    "sum_of_squares", "swiglu", "swiglu_backward", "swiglu_packed", "swiglu_packed_backward",
    "to_bfloat16", "top_k", "widen",
]
