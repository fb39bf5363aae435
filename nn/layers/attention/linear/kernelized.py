"""Linear attention (Katharopoulos et al. 2020): softmax's exponential replaced by a product of features.

    S_t = S_{t−1} + φ(k_t) v_tᵀ,   o_t = S_tᵀ φ(q_t) / √Dk,   y = W_o RMSNorm_head(o)
or, with a normaliser instead of the norm, weights that sum to 1:
    z_t = z_{t−1} + φ(k_t),        o_t = S_tᵀ φ(q_t) / (⟨φ(q_t), z_t⟩ + ε √Dk)"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.layers.attention.linear.decayed import decayed_attention, decayed_flops
from nn.layers.attention.linear.heads import HeadBlock, HeadSettings, LinearState, tokens_first
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.norm import RMSNorm
from nn.layers.precision import cast_to
from nn.names import check_name
from nn.tensor import Array, Tensor

FEATURES = {"identity": lambda x: x, "relu": ops.relu, "elu1": ops.elu_plus_one, "softmax": ops.softmax}
FEATURE_MAPS = (*FEATURES, "hadamard")
EPS = 1e-10      # added to the normaliser


@dataclass(frozen=True)
class LinearAttentionSettings(HeadSettings):
    """Linear attention without decay."""

    feature_map: str = "elu1"      # φ: identity, relu, elu1 (elu + 1), softmax over a head's width, hadamard
                                   #   (W1 x ⊙ W2 x, learned, one pair for queries and one for keys)
    normalize: bool = False        # divide by the sum of weights instead of norming each head

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("feature_map", self.feature_map, FEATURE_MAPS)

    def parameters(self, active: bool = False) -> dict[str, int]:
        keys, values = self.head_widths
        return {"projections": 2 * self.hidden_size * (self.key_width + self.value_width),
                "features": 4 * keys * keys if self.feature_map == "hadamard" else 0,
                "norms": 0 if self.normalize else values}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        (keys, values), tokens = self.head_widths, batch * length
        in_and_out = [(self.hidden_size, self.key_width), (self.hidden_size, self.value_width)] * 2
        maps = [(keys, keys)] * 4 if self.feature_map == "hadamard" else []
        return {"projections": projection(tokens, *in_and_out),
                "features": projection(tokens * self.num_heads, *maps),
                "core": decayed_flops(batch, self.num_heads, length, keys, values + self.normalize, mode,
                                      self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "chunk_size": 4}
        return {"": cls.create(**small), "normalized": cls.create(**small, normalize=True),
                **{name: cls.create(**small, feature_map=name) for name in FEATURE_MAPS if name != "elu1"},
                "normalized-softmax": cls.create(**small, feature_map="softmax", normalize=True)}


class LinearAttention(HeadBlock):
    """q_proj, k_proj [H·Dk,D], v_proj [H·Dv,D], o_proj [D,H·Dv], norm [Dv] unless normalised; hadamard: q_map
    and k_map, two [Dk,Dk] each; no biases"""

    Settings = LinearAttentionSettings

    def __init__(self, settings: LinearAttentionSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        keys, values = s.head_widths
        self._create_projections(dtype=dtype)
        self.norm = None if s.normalize else RMSNorm(values, s.norm_eps, dtype=dtype)
        if s.feature_map == "hadamard":
            self.q_map = [Linear(keys, keys, std=keys**-0.5, dtype=dtype) for _ in range(2)]
            self.k_map = [Linear(keys, keys, std=keys**-0.5, dtype=dtype) for _ in range(2)]

    def init_state(self, batch_size: int) -> LinearState:
        """s [B,H,Dk,Dv]; normalised, z is its last column, [B,H,Dk,Dv+1]"""
        s = self.settings
        keys, values = s.head_widths
        return LinearState(self.zeros(batch_size, s.num_heads, keys, values + s.normalize))

    def forward(self, x: Tensor, *, state: LinearState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, LinearState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        settings, before = self.settings, state or self.init_state(batch)
        (q, k, v), _ = self._queries_keys_values(masked(x, mask))
        q = self._features(q, "q_map") * q.shape[-1] ** -0.5
        k = self._features(k, "k_map").permute(0, 2, 1, 3)                            # [B,T,H,Dk]
        k = masked(k, mask).permute(0, 2, 1, 3)                                       # as φ(0) may be 1
        v = cast_to(v, before.s.dtype)        # sums that nothing decays outgrow what half precision holds
        if settings.normalize:
            ones = namespace(v.data).ones((*v.shape[:3], 1), dtype=v.dtype)
            v = ops.concat([v, Tensor(ones)], axis=-1)
        still = Tensor(beside(np.zeros((batch, settings.num_heads, length), before.s.dtype), before.s))
        o, s = decayed_attention(q, k, v, still, before.s, mode=mode, size=settings.chunk_size)
        if settings.normalize:
            o = o[..., :-1] / (o[..., -1:] + EPS)
        if self.norm is not None:
            o = ops.rms_norm(o, cast_to(self.norm.weight, o.dtype), settings.norm_eps)
        o = tokens_first(o, x.dtype)                                                  # [B,T,H,Dv]
        y = self.o_proj(o.reshape(batch, length, settings.value_width))
        return y, None if state is None else LinearState(s.data)

    def _features(self, x: Tensor, learned: str) -> Tensor:
        """φ(x), [B,H,T,Dk]"""
        if self.settings.feature_map != "hadamard":
            return FEATURES[self.settings.feature_map](x)
        first, second = getattr(self, learned)
        return first(x) * second(x)
