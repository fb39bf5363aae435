"""Layers whose weights are packed: what pack() puts in the places of Linear, FeedForward and Experts."""

import math
from typing import Any

from nn.backends import kernels
from nn.errors import InputError
from nn.layers.module import Module
from nn.packed.weight import PackedWeight
from nn.tensor import Array, Op, Tensor


class _Packed(Op):
    """For inference: the weights have no gradient, and none goes through them."""

    def backward(self, *gradients: Array) -> Any:
        raise RuntimeError(f"{self.name}: packed weights are for inference and have no gradients; train the "
                           "model that was packed, or compute under no_grad()")


class PackedLinearProduct(_Packed):
    """y = x Wᵀ + b"""

    def forward(self, x: Array, *, weight: PackedWeight, bias: Array | None) -> Array:
        rows = x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
        y = kernels.packed_linear(rows, weight.data, int(weight.format), weight.outputs, bias=bias)
        return y.reshape((*x.shape[:-1], weight.outputs))

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 2 * math.prod(results[0].shape) * inputs[0].shape[-1]


class PackedSwiGLUProduct(_Packed):
    """y = SiLU(W_gate x) ⊙ W_up x, of both by one pass"""

    def forward(self, x: Array, *, weight: PackedWeight) -> Array:
        rows, features = x.reshape((math.prod(x.shape[:-1]), x.shape[-1])), weight.outputs // 2
        y = kernels.packed_swiglu(rows, weight.data, int(weight.format), features)
        return y.reshape((*x.shape[:-1], features))

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 4 * math.prod(results[0].shape) * inputs[0].shape[-1]


class PackedExpertsProduct(_Packed):
    """y[n] = Σ_k w[n,k] expert_{e[n,k]}(x[n])"""

    def forward(self, x: Array, weights: Array, *, experts: Array, gate_up: PackedWeight,
                down: PackedWeight) -> Array:
        count, _, features = down.shape
        return kernels.packed_experts(x, gate_up.data, down.data, weights, experts, count, features,
                                      int(down.format))

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        return 6 * math.prod(inputs[1].shape) * math.prod(options["down"].shape[1:])


class PackedLinear(Module):
    """y = x Wᵀ (+ b), the weight [out, in] packed"""

    def __init__(self, weight: PackedWeight, bias: Any = None) -> None:
        self.packed, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        bias = None if self.bias is None else self.bias.data.astype(x.dtype, copy=False)
        return PackedLinearProduct.apply(x, weight=self.packed, bias=bias)


class PackedFeedForward(Module):
    """y = W_down(SiLU(W_gate x) ⊙ W_up x), gate and up in one packed weight [2F, D]"""

    def __init__(self, gate_up: PackedWeight, down: PackedWeight) -> None:
        self.gate_up, self.down_proj = gate_up, PackedLinear(down)

    def forward(self, x: Tensor, mask: Array | None = None) -> Tensor:
        """[..., D] -> [..., D]"""
        return self.down_proj(PackedSwiGLUProduct.apply(x, weight=self.gate_up))


class PackedExperts(Module):
    """All experts: gate_up [E, 2F, D] and down [E, D, F], packed"""

    def __init__(self, gate_up: PackedWeight, down: PackedWeight) -> None:
        self.gate_up, self.down = gate_up, down
        self.num_experts = gate_up.shape[0]

    def forward(self, x: Tensor, routing: Any, batch_invariant: bool = True) -> Tensor:
        """y[n] = Σ_k w[n,k] expert_{e[n,k]}(x[n]), x[N,D] -> [N,D]"""
        return PackedExpertsProduct.apply(x, routing.weights, experts=routing.experts, gate_up=self.gate_up,
                                          down=self.down)

    def grouped(self, x: Tensor, offsets: Array) -> Tensor:
        """Refused: experts that choose their tokens are not packed."""
        raise InputError("pack: experts that choose their tokens have no packed kernels")
