"""Feed-forward layers: SwiGLU (gated) and the two-matrix MLP with SiLU or GELU."""

from typing import Any

from nn import ops
from nn.layers.linear import Linear
from nn.layers.module import Module
from nn.names import check_name
from nn.tensor import Tensor

KINDS = ("swiglu", "silu", "gelu", "gelu_tanh", "relu")


class FeedForward(Module):
    """swiglu: y = W_down(SiLU(W_gate x) ⊙ W_up x)   (Shazeer 2020);   else y = W_down act(W_up x)"""

    def __init__(self, hidden_size: int, intermediate_size: int, kind: str = "swiglu", *, std: float = 0.02,
                 down_std: float | None = None, dtype: Any = "float32") -> None:
        check_name("ffn", kind, KINDS)
        self.kind = kind
        if kind == "swiglu":
            self.gate_proj = Linear(hidden_size, intermediate_size, std=std, dtype=dtype)
        self.up_proj = Linear(hidden_size, intermediate_size, std=std, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, std=down_std or std, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        up = self.up_proj(x)
        hidden = ops.swiglu(self.gate_proj(x), up) if self.kind == "swiglu" else _ACTIVATIONS[self.kind](up)
        return self.down_proj(hidden)


_ACTIVATIONS = {
    "silu": ops.silu, "gelu": ops.gelu, "relu": ops.relu,
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}
