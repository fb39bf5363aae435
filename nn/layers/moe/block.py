"""The mixture of experts as a block."""

from dataclasses import dataclass
from typing import Any

from nn.errors import InputError
from nn.layers.formulas import projection
from nn.layers.moe.capacity import POLICIES
from nn.layers.moe.experts import Experts
from nn.layers.moe.layer import MoELayer
from nn.layers.moe.router import Router
from nn.layers.protocol import Block, BlockSettings
from nn.names import check_name
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class MixtureSettings(BlockSettings):
    """num_experts SwiGLU feed-forwards, of which each token visits top_k."""

    intermediate_size: int = 256       # width of one expert
    num_experts: int = 8               # routed experts
    top_k: int = 2                     # experts each token visits
    renormalize: bool = True           # weights of the selected experts are divided by their sum
    router_jitter: float = 0.0         # while training, router inputs times U(1 - e, 1 + e)
    balance_coef: float = 0.01         # weight of the load-balance loss
    router_z_coef: float = 0.001       # weight of the router's z-loss
    capacity_factor: float = 0.0       # in training, most assignments per expert over the mean; 0 = no limit
    drop_policy: str = "probs"         # who stays when capacity is short: probs, position or slot

    def __post_init__(self) -> None:
        self._positive("hidden_size", "intermediate_size", "num_experts")
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(f"top_k: {self.top_k} is not between 1 and num_experts = {self.num_experts}")
        check_name("drop_policy", self.drop_policy, POLICIES)

    def parameters(self, active: bool = False) -> dict[str, int]:
        experts = self.top_k if active else self.num_experts
        return {"router": self.num_experts * self.hidden_size,
                "experts": experts * 3 * self.hidden_size * self.intermediate_size}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens = batch * length
        return {"router": projection(tokens, (self.hidden_size, self.num_experts)),
                "experts": projection(tokens * self.top_k, *[(self.hidden_size, self.intermediate_size)] * 3)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, intermediate_size=6, num_experts=4, top_k=2),
                "top-1": cls.create(hidden_size=6, intermediate_size=5, num_experts=3, top_k=1,
                                    renormalize=False)}


class Mixture(Block):
    """A router and its experts (nn/layers/moe/layer.py); no token sees another, so there is no state."""

    Settings = MixtureSettings

    def __init__(self, settings: MixtureSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        router = Router(s.hidden_size, s.num_experts, s.top_k, renormalize=s.renormalize,
                        jitter=s.router_jitter, balance_coef=s.balance_coef, z_coef=s.router_z_coef,
                        capacity_factor=s.capacity_factor, drop_policy=s.drop_policy, std=s.init_std,
                        dtype=dtype)
        experts = Experts(s.num_experts, s.hidden_size, s.intermediate_size, std=s.init_std,
                          down_std=s.down_std, dtype=dtype)
        self.moe = MoELayer(router, experts)

    def forward(self, x: Tensor, *, state: None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, None]:
        """[B,T,D] -> [B,T,D]"""
        return self.moe(x), None
