"""GLA, gated linear attention (Yang et al. 2023): every channel of the keys is forgotten at a rate of its
own, which depends on the token.

    g_t = log σ(W₂ W₁ x_t + b) / 16,   S_t = diag(e^{g_t}) S_{t−1} + k_t v_tᵀ
    y = W_o (RMSNorm_head(S_tᵀ q_t / √Dk) ⊙ SiLU(W_g x))"""

from dataclasses import dataclass
from typing import Any

from nn.errors import InputError
from nn.layers.attention.linear.gla_core import gated_linear_attention, gla_flops
from nn.layers.attention.linear.heads import (
    HeadBlock,
    HeadSettings,
    LinearState,
    check_sizes,
    split_heads,
    tokens_first,
)
from nn.layers.conv import conv_flops, conv_parameters
from nn.layers.formulas import projection
from nn.layers.gated_norm import GatedRMSNorm
from nn.layers.gating import low_rank_project, normalize_gate_logits
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.precision import cast_to
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class GLASettings(HeadSettings):
    """Linear attention with a decay per channel that depends on the token."""

    expand_k: float = 0.5                # width of all keys / hidden_size
    gate_low_rank: int = 16              # rank of the projection that makes the decays
    gate_normalizer: float = 16.0        # log σ is divided by it: decays start near 1
    clamp_min: float | None = None       # lower bound of the logarithms of the decays; None: none
    conv_size: int = 0                   # taps of a short convolution over q, k, v with SiLU; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("gate_low_rank")
        check_sizes(self)
        if self.gate_normalizer <= 0.0 or (self.clamp_min is not None and self.clamp_min > 0.0):
            raise InputError(f"GLASettings: gate_normalizer {self.gate_normalizer} is positive and clamp_min "
                             f"{self.clamp_min} not: decays must not grow")

    def parameters(self, active: bool = False) -> dict[str, int]:
        gate = self.gate_low_rank * (self.hidden_size + self.key_width) + self.key_width
        return {"projections": self.hidden_size * (2 * self.key_width + 3 * self.value_width),
                "gates": gate,
                "conv": conv_parameters(2 * self.key_width + self.value_width, self.conv_size),
                "norms": self.head_widths[1]}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        keys, values, tokens = self.key_width, self.value_width, batch * length
        return {"projections": projection(tokens, (self.hidden_size, 2 * keys + 3 * values)),
                "gates": projection(tokens, (self.hidden_size, self.gate_low_rank),
                                    (self.gate_low_rank, keys)),
                "conv": conv_flops(tokens, 2 * keys + values, self.conv_size),
                "core": gla_flops(batch, self.num_heads, length, *self.head_widths, mode, self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "gate_low_rank": 3, "chunk_size": 4}
        return {"": cls.create(**small, gate_normalizer=2.0),
                "conv": cls.create(**small, conv_size=3, expand_k=1.0, expand_v=2.0),
                "clamped": cls.create(**small, gate_normalizer=0.5, clamp_min=-1.0)}


class GLA(HeadBlock):
    """q_proj, k_proj [H·Dk,D], v_proj, g_proj [H·Dv,D], gk_proj: [R,D] and [H·Dk,R] with a bias, o_proj
    [D,H·Dv], norm [Dv], conv1d; no other biases"""

    Settings = GLASettings

    def __init__(self, settings: GLASettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        options: dict[str, Any] = {"std": s.init_std, "dtype": dtype}
        self._create_projections(s.conv_size, dtype)
        self.g_proj = Linear(s.hidden_size, s.value_width, **options)
        self.gk_proj = [Linear(s.hidden_size, s.gate_low_rank, **options),
                        Linear(s.gate_low_rank, s.key_width, bias=True, **options)]
        self.norm = GatedRMSNorm(s.head_widths[1], s.norm_eps, dtype=dtype)

    def forward(self, x: Tensor, *, state: LinearState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, LinearState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        settings, before = self.settings, state or self.init_state(batch)
        x = masked(x, mask)                                      # k = v = 0 at padding
        (q, k, v), tail = self._queries_keys_values(x, before.tail)
        q, v = q * q.shape[-1] ** -0.5, cast_to(v, before.s.dtype)
        o, s = gated_linear_attention(q, k, v, self._log_decays(x, mask, before.s), before.s, mode=mode,
                                      size=settings.chunk_size)
        o = tokens_first(o)                                           # [B,T,H,Dv], wide: sums of many tokens
        o = self.norm(o, self.g_proj(x).reshape(*o.shape))
        y = self.o_proj(o.reshape(batch, length, settings.value_width))
        return y, None if state is None else LinearState(s.data, tail)

    def _log_decays(self, x: Tensor, mask: Array | None, like: Array) -> Tensor:
        """g[B,H,T,Dk], 0 at padding"""
        s, (narrow, wide) = self.settings, self.gk_proj
        logits = cast_to(low_rank_project(x, lambda z: wide(narrow(z)), activation=None), like.dtype)
        g = normalize_gate_logits(logits, normalizer=s.gate_normalizer,
                                  clip_range=None if s.clamp_min is None else (s.clamp_min, 0.0))
        return split_heads(masked(g, mask), s.num_heads)
