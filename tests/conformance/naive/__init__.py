"""What every kernel of nn.backends.protocol computes,
written once more as a reader of the formula would write it.  One file per family, named as in
nn/backends/reference.

Nothing here imports nn.  In float64 these functions are the exact answer; called on arrays of another type,
they are the plain implementation in that type whose error FlashAttention's rule doubles: every intermediate
result is rounded to the type, only sums are formed wider (float32 for half precision)."""

from tests.conformance.naive.activation import (
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
from tests.conformance.naive.arithmetic import accumulator, logistic, product, total
from tests.conformance.naive.attention import (
    attention,
    attention_backward,
    cache_append,
    decode_attention,
    reach,
)
from tests.conformance.naive.conv import causal_conv, causal_conv_backward
from tests.conformance.naive.elementwise import (
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
from tests.conformance.naive.loss import cross_entropy, cross_entropy_backward, linear_cross_entropy
from tests.conformance.naive.matmul import linear, linear_backward, matmul
from tests.conformance.naive.moe import (
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
from tests.conformance.naive.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    rms_norm_residual,
)
from tests.conformance.naive.optimizer import adamw, embedding, scatter_add, sum_of_squares
from tests.conformance.naive.packed import packed_experts, packed_linear, packed_swiglu
from tests.conformance.naive.rotary import rope, rope_at
from tests.conformance.naive.sampling import next_token, top_k
from tests.conformance.naive.scan import selective_scan, selective_scan_backward
from tests.conformance.naive.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward

__all__ = [
    "accumulate", "accumulator", "adamw", "add", "add_row", "attention", "attention_backward", "cache_append",
    "causal_conv", "causal_conv_backward", "column_sum", "contiguous", "cross_entropy",
    "cross_entropy_backward", "decode_attention", "embedding", "expert_order", "gathered_swiglu",
    "gathered_swiglu_backward", "gelu", "gelu_backward", "gelu_tanh", "gelu_tanh_backward", "grouped_linear",
    "grouped_linear_backward", "jitter", "layer_norm", "layer_norm_backward", "linear", "linear_backward",
    "linear_cross_entropy", "log_softmax", "log_softmax_backward", "logistic", "matmul", "moe_balance_loss",
    "moe_balance_loss_backward", "moe_combine", "moe_combine_backward", "moe_dispatch",
    "moe_dispatch_backward", "moe_z_loss", "moe_z_loss_backward", "mul", "mul_row", "next_token",
    "packed_experts", "packed_linear", "packed_swiglu", "product", "reach", "rms_norm", "rms_norm_backward",
    "rms_norm_residual", "rope", "rope_at", "router_topk", "router_topk_backward", "scale", "scatter_add",
    "selective_scan", "selective_scan_backward", "silu", "silu_backward", "softmax", "softmax_backward",
    "sum_of_squares", "swiglu", "swiglu_backward", "swiglu_packed", "swiglu_packed_backward", "to_bfloat16",
    "top_k", "total", "widen",
]
