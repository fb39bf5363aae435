"""All experts' SwiGLU weights, stacked, and their work on tokens grouped by expert."""

from typing import Any

from nn import ops
from nn.layers.module import Module, Parameter
from nn.layers.moe.router import Routing
from nn.tensor import Tensor


class Experts(Module):
    """expert_e(x) = W_down(SiLU(W_gate x) ⊙ W_up x)

    Weights: gate_up_proj [E, 2F, D], gate rows first, and down_proj [E, D, F]."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, *, std: float = 0.02,
                 down_std: float | None = None, dtype: Any = "float32") -> None:
        self.num_experts, self.intermediate_size = num_experts, intermediate_size
        self.gate_up_proj = Parameter((num_experts, 2 * intermediate_size, hidden_size), std=std, dtype=dtype)
        self.down_proj = Parameter((num_experts, hidden_size, intermediate_size),
                                   std=down_std or std, dtype=dtype)

    def forward(self, x: Tensor, routing: Routing, batch_invariant: bool = True) -> Tensor:
        """y[n] = Σ_k w[n,k] expert_{e[n,k]}(x[n]), x[N,D] -> [N,D].  batch_invariant: see grouped_linear.

        Dropless: tokens are sorted by expert, so each works on one contiguous range of rows, however long."""
        plan = ops.plan(routing.experts, self.num_experts)
        hidden = ops.gathered_swiglu(x, self.gate_up_proj, plan, batch_invariant)                 # [M,F]
        rows = ops.grouped_linear(hidden, self.down_proj, plan.offsets, batch_invariant)          # [M,D]
        return ops.combine(rows, routing.weights, plan)
