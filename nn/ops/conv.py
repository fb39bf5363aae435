"""Depthwise causal convolution: every channel is filtered over time, the last tap meets the present."""

from typing import Any

from nn.backends import kernels
from nn.tensor import Array, Op, Tensor


class CausalConv(Op):
    """y_t = Σ_j w_j ⊙ x_{t − (K−1−j)δ},  x = what came before and then the inputs:

    dx_s = Σ_j w_j ⊙ dy_{s + (K−1−j)δ},  dw_j = Σ_{B,t} dy_t ⊙ x_{t − (K−1−j)δ}"""

    def forward(self, x: Array, weight: Array, *, dilation: int) -> Array:
        self.x, self.weight, self.dilation = x, weight, dilation
        steps = x.shape[1] - (weight.shape[1] - 1) * dilation
        return kernels.causal_conv(x, weight, steps, dilation=dilation)

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        batch, length, channels = results[0].shape
        return 2 * batch * length * channels * inputs[1].shape[1]

    def backward(self, dy: Array) -> Any:
        return kernels.causal_conv_backward(dy, self.x, self.weight, dilation=self.dilation)


def causal_conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """y[B,T,C] from x[B,(K−1)·dilation + T,C], which begins with what came before, and weight[C,K]."""
    if x.ndim != 3 or weight.ndim != 2 or x.shape[2] != weight.shape[0]:
        raise ValueError(f"causal_conv: x is [B,T,C] = {list(x.shape)}, weight [C,K] = {list(weight.shape)}")
    if weight.shape[1] < 1 or dilation < 1:
        raise ValueError(f"causal_conv: K = {weight.shape[1]} taps, dilation {dilation}; both are 1 or more")
    before = (weight.shape[1] - 1) * dilation
    if x.shape[1] < before:
        raise ValueError(f"causal_conv: x holds {x.shape[1]} positions; {before} precede the first result")
    return CausalConv.apply(x, weight, dilation=dilation)
