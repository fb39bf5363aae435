"""Linear layers and experts with adapters, made of those without."""

from typing import Any

from nn import ops
from nn.errors import InputError
from nn.layers.linear import Linear
from nn.layers.lora.adapter import Adapter, LoRASettings
from nn.layers.module import Parameter
from nn.layers.moe import Experts
from nn.tensor import Tensor

EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class LoRALinear(Linear):
    """A linear layer with an adapter, made of one without: the same parameters under the same names.

    `weight` is what the layer multiplies by, correction included, for layers that read it themselves;
    `frozen_weight` is the parameter."""

    def __init__(self, base: Linear, settings: LoRASettings) -> None:
        vars(self).update(vars(base))
        self.adapter = Adapter(self.frozen_weight.shape, settings, self.frozen_weight.dtype)

    @property
    def frozen_weight(self) -> Parameter:
        return vars(self)["weight"]

    @property
    def weight(self) -> Any:                                                      # type: ignore[override]
        frozen = self.frozen_weight
        return frozen + self.adapter.delta() if self.adapter.active else frozen

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        y = ops.linear(x, self.frozen_weight, self.bias)
        return y + self.adapter(x) if self.adapter.active else y

    def adapters(self) -> list[tuple[str, Adapter, Parameter]]:
        """(name of the weight in this layer, its adapter, the weight)"""
        return [("", self.adapter, self.frozen_weight)]


def _corrected(name: str) -> property:
    """A weight of the experts as they multiply by it"""

    def weight(self: "LoRAExperts") -> Tensor:
        if name not in vars(self):
            raise AttributeError(f"{self.kind} experts have no {name}")
        frozen, adapter = vars(self)[name], vars(self).get(f"{name}_adapter")
        return frozen + adapter.delta() if adapter and adapter.active else frozen

    return property(weight)


class LoRAExperts(Experts):
    """Experts some of whose weights have adapters, made of Experts without.

    W + γ B A is formed in every forward: r·in·out operations for each expert, less than r (in + out) for each
    of its rows once there are more than in·out / (in + out) of them.  Merge the adapters to generate."""

    gate_up_proj, up_proj, down_proj = map(_corrected, EXPERT_WEIGHTS)

    def __init__(self, base: Experts, weights: list[str], settings: LoRASettings) -> None:
        if settings.dropout:
            raise InputError("dropout: experts read their weights themselves, where inputs cannot be hidden; "
                             "set dropout to 0 or take the experts out of targets")
        vars(self).update(vars(base))
        for name in weights:
            frozen = vars(self)[name]
            setattr(self, f"{name}_adapter", Adapter(frozen.shape, settings, frozen.dtype))

    def adapters(self) -> list[tuple[str, Adapter, Parameter]]:
        """(name of the weight in this layer, its adapter, the weight)"""
        own = vars(self)
        return [(name, own[f"{name}_adapter"], own[name]) for name in EXPERT_WEIGHTS
                if f"{name}_adapter" in own]
