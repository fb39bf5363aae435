"""Linear and Embedding: the two layers whose weights are plain matrices."""

from typing import Any

from nn import ops
from nn.layers.module import Module, Parameter
from nn.tensor import Array, Tensor


class Linear(Module):
    """y = x Wᵀ (+ b), weight [out, in]"""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, std: float = 0.02,
                 dtype: Any = "float32") -> None:
        self.weight = Parameter((out_features, in_features), std=std, dtype=dtype)
        self.bias = Parameter((out_features,), dtype=dtype, decay=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Row `id` of weight [V, D] for every id."""

    def __init__(self, vocab_size: int, hidden_size: int, *, std: float = 0.02,
                 dtype: Any = "float32") -> None:
        self.weight = Parameter((vocab_size, hidden_size), std=std, dtype=dtype, decay=False)

    def forward(self, ids: Array) -> Tensor:
        """integers [...] -> [..., D].  InputError names an id outside the vocabulary and its place."""
        return ops.take(self.weight, ids, "ids")
