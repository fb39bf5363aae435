"""What the state h becomes when a step has made u of it.

    replace    h ← u                              for layers that hold their own residual connections
    residual   h ← h + u                          for a block that returns its branch alone
    gated      h ← h + σ(W_g [h; u] + b) ⊙ (u − h),  b = −1 at the start
    ema        h ← λ h + (1 − λ) u
    norm       h ← RMSNorm(h + u)                 its size stays bounded however many steps there are"""

from typing import Any

from nn import ops
from nn.layers.linear import Linear
from nn.layers.module import Module, Parameter
from nn.layers.norm import RMSNorm
from nn.names import check_name
from nn.tensor import Tensor

RULES = ("replace", "residual", "gated", "ema", "norm")


class UpdateRule(Module):
    """gate [D,2D] + b, or norm [D], or nothing"""

    def __init__(self, rule: str, hidden_size: int, *, decay: float = 0.5, eps: float = 1e-6,
                 std: float = 0.02, dtype: Any = "float32") -> None:
        check_name("rule", rule, RULES)
        self.rule, self.decay = rule, decay
        if rule == "gated":
            self.gate = Linear(2 * hidden_size, hidden_size, std=std, dtype=dtype)
            self.gate.bias = Parameter((hidden_size,), fill=-1.0, dtype=dtype, decay=False)
        if rule == "norm":
            self.norm = RMSNorm(hidden_size, eps, dtype=dtype)

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        """h, u [B,T,D] -> [B,T,D]"""
        if self.rule == "replace":
            return u
        if self.rule == "residual":
            return h + u
        if self.rule == "ema":
            return h * self.decay + u * (1.0 - self.decay)
        if self.rule == "norm":
            return self.norm(h + u)
        return h + ops.sigmoid(self.gate(ops.concat([h, u], axis=-1))) * (u - h)


def rule_parameters(rule: str, width: int) -> int:
    return {"gated": 2 * width * width + width, "norm": width}.get(rule, 0)


def rule_flops(rule: str, tokens: int, width: int) -> int:
    return 4 * tokens * width * width * (rule == "gated")
