"""The short causal convolution in front of recurrences: each channel looks back over a few tokens."""

from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.dtypes import Shape
from nn.layers.module import Module, Parameter
from nn.names import check_name
from nn.tensor import Array, Tensor

ACTIVATIONS = ("none", "silu")


class ShortConv(Module):
    """y_t = act(b + Σ_j w_j ⊙ x_{t − (K−1−j)δ}), weight [C,K], the last tap for the present

    Inputs before the first token are zeros, so padding must be (nn.layers.masks.masked).
    Weights and bias start uniform in ±1/√K, PyTorch's convention for such a convolution."""

    def __init__(self, channels: int, kernel_size: int = 4, *, dilation: int = 1, bias: bool = False,
                 activation: str = "silu", dtype: Any = "float32") -> None:
        check_name("activation", activation, ACTIVATIONS)
        bound = kernel_size**-0.5

        def draw(random: np.random.Generator, shape: Shape) -> np.ndarray:
            return random.uniform(-bound, bound, shape)

        self.weight = Parameter((channels, kernel_size), dtype=dtype, draw=draw)
        self.bias = Parameter((channels,), dtype=dtype, decay=False, draw=draw) if bias else None
        self.kernel_size, self.dilation, self.activation = kernel_size, dilation, activation

    @property
    def reach(self) -> int:
        """Inputs before a token that its result depends on: the length of the tail a state keeps."""
        return (self.kernel_size - 1) * self.dilation

    def forward(self, x: Tensor, tail: Array | None = None) -> tuple[Tensor, Array]:
        """(y[B,T,C], the newest `reach` inputs [B,reach,C]) from x[B,T,C] behind tail[B,reach,C]; without a
        tail, zeros came before."""
        if tail is None:
            tail = namespace(x.data).zeros((x.shape[0], self.reach, x.shape[2]), dtype=x.dtype)
        whole = ops.concat([Tensor(tail), x], axis=1)
        newest = namespace(whole.data).asarray(whole.data[:, x.shape[1] :, :], copy=True)
        y = ops.causal_conv(whole, self.weight, self.dilation)
        y = y if self.bias is None else y + self.bias
        return (ops.silu(y) if self.activation == "silu" else y), newest


def conv_parameters(channels: int, kernel_size: int, bias: bool = False) -> int:
    return channels * (kernel_size + bias)


def conv_flops(tokens: int, channels: int, kernel_size: int) -> int:
    return 2 * tokens * channels * kernel_size
