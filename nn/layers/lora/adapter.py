"""The correction of one weight, γ B A, and what it is told."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.dtypes import Shape
from nn.errors import InputError
from nn.layers.dropout import Dropout
from nn.layers.initial import uniform
from nn.layers.module import Module, Parameter
from nn.tensor import Tensor


@dataclass(frozen=True)
class LoRASettings:
    """What is corrected, and how far."""

    r: int = 8                   # rank of the correction
    alpha: float = 16.0          # its size: it is multiplied by alpha / r
    dropout: float = 0.0         # share of the inputs that training hides from the adapters
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")   # layers: last names, paths, shell patterns
    rslora: bool = False         # multiply by alpha / sqrt(r) instead
    gaussian: bool = False       # A starts as Normal(0, 1 / r), not Uniform(±1 / sqrt(in))
    train_also: tuple[str, ...] = ()   # parameters that are trained as they are, such as "*norm*"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"r: {self.r} is not positive; without a correction, leave LoRA out")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout: {self.dropout} is not in [0, 1)")
        if not self.targets:
            raise InputError("targets: empty; name layers, such as q_proj")

    @property
    def scaling(self) -> float:
        """γ"""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)


class Adapter(Module):
    """γ B A beside a weight [..., out, in]: lora_A [..., r, in], lora_B [..., out, r]"""

    def __init__(self, shape: Shape, settings: LoRASettings, dtype: Any) -> None:
        *lead, out_features, in_features = shape
        s = self.settings = settings
        start = {"std": 1.0 / s.r} if s.gaussian else {"draw": uniform(in_features**-0.5)}
        self.lora_A = Parameter((*lead, s.r, in_features), dtype=dtype, **start)
        self.lora_B = Parameter((*lead, out_features, s.r), dtype=dtype)
        self.dropout = Dropout(s.dropout)
        self.dropout.noise_name = "lora_dropout"       # the model's own are drawn as without adapters
        self.enabled, self.merged = True, False

    def _children(self) -> Iterator[tuple[str, Module | Parameter]]:
        """None while merged: the weights hold the correction, and a file of them is not to hold it twice"""
        return iter(()) if self.merged else super()._children()

    @property
    def active(self) -> bool:
        """Whether it adds to what the layer computes."""
        return self.enabled and not self.merged

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return ops.linear(ops.linear(self.dropout(x), self.lora_A) * self.settings.scaling, self.lora_B)

    def delta(self) -> Tensor:
        """γ B A, of the weight's shape.  InputError while it would have to be random."""
        if self.training and self.settings.dropout:
            raise InputError("dropout: this layer reads the weight itself, where inputs cannot be hidden; "
                             "set dropout to 0 or take it out of targets")
        return (self.lora_B @ self.lora_A) * self.settings.scaling
