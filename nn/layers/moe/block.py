"""The mixture of experts as a block."""

from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.layers.feed_forward import FeedForward
from nn.layers.linear import Linear
from nn.layers.moe.experts import Experts
from nn.layers.moe.general import GeneralRouter
from nn.layers.moe.layer import MoELayer
from nn.layers.moe.settings import ExpertSettings, RouterSettings
from nn.layers.protocol import Block
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class MixtureSettings(RouterSettings):
    """num_experts feed-forwards, of which each token visits top_k, and perhaps shared ones.

    Mixtral: as it is.  Qwen3-MoE: num_experts 128, top_k 8.  OLMoE: renormalize False.  Qwen2-MoE: the same,
    shared_intermediate_size, shared_gate.  Qwen3-Next: these two.  Switch: top_k 1, renormalize False, else
    the router's weight is always 1 and has no slope.  DeepSeek-V3: score sigmoid, routed_scale 2.5, n_group
    8, topk_group 4, bias_update_rate 0.001, num_shared_experts 1, balance sequence, balance_coef 1e-4."""

    @classmethod
    def examples(cls) -> dict[str, Any]:
        def of(hidden_size: int = 6, **options: Any) -> MixtureSettings:
            small = {"hidden_size": hidden_size, "intermediate_size": 4, "num_experts": 4}
            return cls.create(**small | options)

        def even(**options: Any) -> MixtureSettings:
            return of(num_experts=6, top_k=2, **options)

        return {
            "": of(8, intermediate_size=6),
            "top-1": of(intermediate_size=5, num_experts=3, top_k=1, renormalize=False),
            "softmax-post": of(score="softmax_post", renormalize=False, routed_scale=1.5),
            "sigmoid": of(score="sigmoid", routed_scale=2.5),
            "sigmoid-raw": of(score="sigmoid", top_k=3, renormalize=False),
            "sqrtsoftplus": of(score="sqrtsoftplus", routed_scale=1.5),
            "softmax-bias": of(selection_bias=True, renormalize=False),
            "groups-max": even(n_group=3, topk_group=2, renormalize=False),
            "groups-share": even(n_group=2, topk_group=1, group_rule="share"),
            "deepseek": even(score="sigmoid", routed_scale=2.5, n_group=3, topk_group=2,
                             bias_update_rate=1e-3, num_shared_experts=2, balance="sequence"),
            "qwen-next": of(shared_intermediate_size=5, shared_gate=True),
            "mlp": of(activation="gelu", num_shared_experts=1),
            "relu-all": of(activation="relu", num_experts=3, top_k=3),
            "noisy": of(noisy_topk=True, balance={"importance": 0.1, "load": 0.1}),
        }


class ExpertBlock(Block):
    """What blocks of experts have in common: those that every token visits.

    shared_experts: a feed-forward; shared_expert_gate [1,D]: multiplies its result by σ(x · gate)"""

    settings: ExpertSettings

    def _create_shared(self, dtype: Any) -> None:
        s = self.settings
        if s.shared_width:
            self.shared_experts = FeedForward(s.hidden_size, s.shared_width, s.activation, std=s.init_std,
                                              down_std=s.down_std, dtype=dtype)
        if s.shared_gate:
            self.shared_expert_gate = Linear(s.hidden_size, 1, std=s.init_std, dtype=dtype)

    def _with_shared(self, y: Tensor, x: Tensor) -> Tensor:
        """y and what the shared experts make of x, both [B,T,D]"""
        if not self.settings.shared_width:
            return y
        shared = self.shared_experts(x)
        if self.settings.shared_gate:
            shared = ops.sigmoid(self.shared_expert_gate(x)) * shared
        return y + shared

    def _experts(self, dtype: Any) -> Experts:
        s = self.settings
        return Experts(s.num_experts, s.hidden_size, s.intermediate_size, s.activation, std=s.init_std,
                       down_std=s.down_std, dtype=dtype)


class Mixture(ExpertBlock):
    """A router and its experts (nn/layers/moe/layer.py); no token sees another, so there is no state."""

    Settings = MixtureSettings
    packing = "tokens"

    def __init__(self, settings: MixtureSettings, dtype: Any = "float32") -> None:
        self.settings = settings
        self.moe = MoELayer(GeneralRouter(settings, dtype), self._experts(dtype))
        self._create_shared(dtype)

    def forward(self, x: Tensor, *, state: None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, None]:
        """[B,T,D] -> [B,T,D]"""
        return self._with_shared(self.moe(x, mask), x), None
