"""All experts' weights, stacked, and their work on tokens grouped by expert."""

from typing import Any

from nn import ops
from nn.layers.feed_forward import ACTIVATIONS, KINDS
from nn.layers.module import Module, Parameter
from nn.layers.moe.decision import Routing
from nn.names import check_name
from nn.tensor import Array, Tensor


class Experts(Module):
    """swiglu: expert_e(x) = W_down(SiLU(W_gate x) ⊙ W_up x);   else W_down act(W_up x)

    Weights: gate_up_proj [E, 2F, D], gate rows first (or up_proj [E, F, D]), and down_proj [E, D, F]."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, kind: str = "swiglu", *,
                 std: float = 0.02, down_std: float | None = None, dtype: Any = "float32") -> None:
        check_name("activation", kind, KINDS)
        self.num_experts, self.intermediate_size, self.kind = num_experts, intermediate_size, kind
        if kind == "swiglu":
            self.gate_up_proj = Parameter((num_experts, 2 * intermediate_size, hidden_size), std=std,
                                          dtype=dtype)
        else:
            self.up_proj = Parameter((num_experts, intermediate_size, hidden_size), std=std, dtype=dtype)
        self.down_proj = Parameter((num_experts, hidden_size, intermediate_size),
                                   std=down_std or std, dtype=dtype)

    def forward(self, x: Tensor, routing: Routing, batch_invariant: bool = True) -> Tensor:
        """y[n] = Σ_k w[n,k] expert_{e[n,k]}(x[n]), x[N,D] -> [N,D].  batch_invariant: see grouped_linear.

        Dropless: tokens are sorted by expert, so each works on one contiguous range of rows, however long."""
        plan = ops.plan(routing.experts, self.num_experts)
        if self.kind == "swiglu":
            hidden = ops.gathered_swiglu(x, self.gate_up_proj, plan, batch_invariant)             # [M,F]
        else:
            up = ops.grouped_linear(ops.dispatch(x, plan), self.up_proj, plan.offsets, batch_invariant)
            hidden = ACTIVATIONS[self.kind](up)
        rows = ops.grouped_linear(hidden, self.down_proj, plan.offsets, batch_invariant)          # [M,D]
        return ops.combine(rows, routing.weights, plan)

    def grouped(self, x: Tensor, offsets: Array) -> Tensor:
        """expert_e(x[r]) for the rows r = offsets[e] ... offsets[e+1] of each expert, x[M,D] -> [M,D]"""
        if self.kind == "swiglu":
            hidden = ops.swiglu_packed(ops.grouped_linear(x, self.gate_up_proj, offsets))
        else:
            hidden = ACTIVATIONS[self.kind](ops.grouped_linear(x, self.up_proj, offsets))
        return ops.grouped_linear(hidden, self.down_proj, offsets)
