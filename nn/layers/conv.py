"""The short causal convolution in front of recurrences: each channel looks back over a few tokens."""

from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.dtypes import Shape
from nn.errors import InputError
from nn.layers.masks import newest
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
        if kernel_size < 1 or dilation < 1:
            raise InputError(f"kernel_size: {kernel_size} taps, dilation: {dilation}; both are 1 or more")
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

    def forward(self, x: Tensor, tail: Array | None = None,
                mask: Array | None = None) -> tuple[Tensor, Array]:
        """(y[B,T,C], the newest `reach` inputs [B,reach,C]) from x[B,T,C] behind tail[B,reach,C]; without a
        tail, zeros came before.  Padding (mask, as in nn/layers/protocol.py) is left out of what is kept."""
        y, kept = depthwise_conv1d_causal(x, self.weight, self.bias, tail, mask, dilation=self.dilation)
        return (ops.silu(y) if self.activation == "silu" else y), kept


def depthwise_conv1d_causal(inputs: Tensor, weight: Tensor, bias: Tensor | None = None,
                            cache: Array | None = None, mask: Array | None = None, *,
                            dilation: int = 1) -> tuple[Tensor, Array]:
    """(y[B,T,C], the newest (K−1)·dilation inputs: the cache for what follows) from inputs[B,T,C] behind such
    a cache, weight[C,K] and bias[C]:  y_t = b + Σ_j w_j ⊙ x_{t − (K−1−j)δ}.  Without a cache, zeros came
    before.  What the mask calls padding is left out of the new cache; in y it counts as it is.
    InputError for a cache or a bias of another shape."""
    held = inputs.shape[0], (weight.shape[-1] - 1) * dilation, inputs.shape[-1]
    if cache is None:
        cache = namespace(inputs.data).zeros(held, dtype=inputs.dtype)
    if tuple(cache.shape) != held:
        raise InputError(f"cache: shape {list(cache.shape)}; expected [B,(K-1) dilation,C] = {list(held)}, "
                         "the newest inputs, without a column for the present one")
    if bias is not None and bias.shape != held[2:]:
        raise InputError(f"bias: shape {list(bias.shape)}; expected [C] = {list(held[2:])}")
    whole = ops.concat([Tensor(cache), inputs], axis=1)
    y = ops.causal_conv(whole, weight, dilation)
    return (y if bias is None else y + bias), _kept(whole.data, newest(mask, inputs.shape[1]), cache.shape[1])


def _kept(whole: Array, keep: Array | None, reach: int) -> Array:
    """The newest `reach` rows of whole[B,reach+T,C], copied, without those that keep[B,T] calls padding"""
    xp, length = namespace(whole), whole.shape[1] - reach
    if keep is None or not reach or not length:
        return xp.asarray(whole[:, length:, :], copy=True)
    keep = np.asarray(keep.numpy() if hasattr(keep, "numpy") else keep)
    known = np.concatenate([np.ones((len(keep), reach), bool), keep.astype(bool)], axis=1)
    order = np.argsort(~known, axis=1, kind="stable")                             # what is kept, then padding
    last = np.sum(known, axis=1, keepdims=True) - reach + np.arange(reach)        # [B,reach]
    index = np.repeat(np.take_along_axis(order, last, axis=1)[:, :, None], whole.shape[2], axis=2)
    return xp.take_along_axis(whole, beside(index, whole), axis=1)


def conv_parameters(channels: int, kernel_size: int, bias: bool = False) -> int:
    return channels * (kernel_size + bias)


def conv_flops(tokens: int, channels: int, kernel_size: int) -> int:
    return 2 * tokens * channels * kernel_size
