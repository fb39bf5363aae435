"""DeltaNet (Schlag et al. 2021; Yang et al. 2024): what is stored under a key is replaced, not added to.

    q, k = q / ‖q‖, k / ‖k‖ and v: SiLU of short convolutions,   β_t = σ(W_b x_t)
    S_t = S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ k_t)ᵀ,   y = W_o RMSNorm_head(S_tᵀ q_t / √Dk)"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside
from nn.layers.attention.linear.delta_core import delta_flops, gated_delta_rule
from nn.layers.attention.linear.heads import (
    HeadBlock,
    HeadSettings,
    LinearState,
    check_sizes,
    per_head,
    tokens_first,
)
from nn.layers.conv import conv_flops, conv_parameters
from nn.layers.formulas import projection
from nn.layers.gated_norm import GatedRMSNorm
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.norm import RMSNorm
from nn.layers.precision import widened
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class DeltaNetSettings(HeadSettings):
    """Linear attention that overwrites."""

    conv_size: int = 4                   # taps of the short convolution over q, k, v; 0: SiLU alone
    allow_neg_eigval: bool = False       # β up to 2: a value may be turned round, not only replaced
    use_gate: bool = False               # RMSNorm ⊙ SiLU(W_g x) on each head's result instead of RMSNorm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self)

    def parameters(self, active: bool = False) -> dict[str, int]:
        values = (2 + self.use_gate) * self.value_width
        return {"projections": self.hidden_size * (2 * self.key_width + values),
                "gates": self.hidden_size * self.num_heads,
                "conv": conv_parameters(2 * self.key_width + self.value_width, self.conv_size),
                "norms": self.head_widths[1]}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        keys, values, tokens = self.key_width, self.value_width, batch * length
        width = 2 * keys + (2 + self.use_gate) * values
        return {"projections": projection(tokens, (self.hidden_size, width)),
                "gates": projection(tokens, (self.hidden_size, self.num_heads)),
                "conv": conv_flops(tokens, 2 * keys + values, self.conv_size),
                "core": delta_flops(batch, self.num_heads, length, *self.head_widths, mode, self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "chunk_size": 4}
        return {"": cls.create(**small),
                "gated": cls.create(**small, use_gate=True, allow_neg_eigval=True, expand_v=2.0),
                "no-conv": cls.create(**small, conv_size=0, expand_k=2.0)}


class DeltaNet(HeadBlock):
    """q_proj, k_proj [H·Dk,D], v_proj [H·Dv,D], b_proj [H,D], conv1d, g_proj [H·Dv,D] if gated, norm [Dv],
    o_proj [D,H·Dv]; no biases"""

    Settings = DeltaNetSettings

    def __init__(self, settings: DeltaNetSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self._create_projections(s.conv_size, dtype)
        self.b_proj = Linear(s.hidden_size, s.num_heads, std=s.init_std, dtype=dtype)
        gate = Linear(s.hidden_size, s.value_width, std=s.init_std, dtype=dtype) if s.use_gate else None
        norm = GatedRMSNorm if s.use_gate else RMSNorm
        self.g_proj, self.norm = gate, norm(s.head_widths[1], s.norm_eps, dtype=dtype)

    def forward(self, x: Tensor, *, state: LinearState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, LinearState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        settings, before = self.settings, state or self.init_state(batch)
        x = masked(x, mask)
        (q, k, v), tail = self._queries_keys_values(x, before.tail)
        if self.conv1d is None:
            q, k, v = ops.silu(q), ops.silu(k), ops.silu(v)
        q, k = ops.l2_norm(q) * q.shape[-1] ** -0.5, ops.l2_norm(widened(k))
        beta = per_head(ops.sigmoid(self.b_proj(x)) * (1.0 + settings.allow_neg_eigval), mask)
        still = Tensor(beside(np.zeros(beta.shape, before.s.dtype), before.s))        # g = 0
        o, s = gated_delta_rule(q, k, v, still, beta, before.s, mode=mode, size=settings.chunk_size)
        o = tokens_first(o, x.dtype)                                                  # [B,T,H,Dv]
        o = self.norm(o) if self.g_proj is None else self.norm(o, self.g_proj(x).reshape(*o.shape))
        y = self.o_proj(o.reshape(batch, length, settings.value_width))
        return y, None if state is None else LinearState(s.data, tail)
