"""Dropout as a layer: on while training, drawn from a counter (nn/ops/dropout.py, nn/layers/noise.py)."""

from nn import ops
from nn.errors import InputError
from nn.layers.module import Module
from nn.random import counter
from nn.tensor import Array, Tensor


class Dropout(Module):
    """y = x ⊙ M / (1 − p) in training, x in evaluation"""

    noise_name = "dropout"

    def __init__(self, p: float) -> None:
        if not 0.0 <= p < 1.0:
            raise InputError(f"dropout: {p} is not in [0, 1)")
        self.p = p
        self.noise: Array = counter(0, self.noise_name)      # where M is drawn

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.noise) if self.training else x
