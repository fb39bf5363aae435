"""RMSNorm and LayerNorm layers."""

from typing import Any

from nn import ops
from nn.layers.module import Module, Parameter
from nn.layers.residual import Residual
from nn.names import by_name
from nn.tensor import Tensor


class RMSNorm(Module):
    """y = weight ⊙ x / √(mean(x²) + ε)   (Zhang & Sennrich 2019)"""

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, dtype: Any = "float32") -> None:
        self.weight = Parameter((hidden_size,), fill=1.0, dtype=dtype, decay=False)
        self.eps = eps

    def forward(self, x: Tensor | Residual) -> Any:
        """[..., D] -> [..., D]; of a Residual, (the norm of its sum, its sum), in one pass"""
        if isinstance(x, Residual):
            return ops.rms_norm_residual(x.h, x.delta, self.weight, self.eps)
        return ops.rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """y = weight ⊙ (x − mean) / √(var + ε) + bias   (Ba, Kiros & Hinton 2016)"""

    def __init__(self, hidden_size: int, eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        self.weight = Parameter((hidden_size,), fill=1.0, dtype=dtype, decay=False)
        self.bias = Parameter((hidden_size,), dtype=dtype, decay=False)
        self.eps = eps

    def forward(self, x: Tensor | Residual) -> Any:
        """[..., D] -> [..., D]; of a Residual, (the norm of its sum, its sum)"""
        h = x.total() if isinstance(x, Residual) else x
        y = ops.layer_norm(h, self.weight, self.bias, self.eps)
        return (y, h) if isinstance(x, Residual) else y


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def create_norm(kind: str, hidden_size: int, eps: float, dtype: Any = "float32") -> Module:
    """The norm layer called `kind`; InputError lists the names otherwise."""
    return by_name("norm", kind, NORMS)(hidden_size, eps, dtype=dtype)
