"""Retention (Sun et al. 2023, RetNet): a state that every head forgets at a rate of its own.

    S_t = γ_h S_{t−1} + k_t v_tᵀ,  γ_h = 1 − 2^(−5−h),  q and k turned by rotary angles
    y = W_o (RMSNorm_head(S_tᵀ q_t / √Dk) ⊙ SiLU(W_g x))"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside
from nn.layers.attention.linear.decayed import decayed_attention, decayed_flops
from nn.layers.attention.linear.heads import HeadBlock, HeadSettings, tokens_first
from nn.layers.attention.positions import angles, left_out
from nn.layers.formulas import projection
from nn.layers.gated_norm import GatedRMSNorm
from nn.layers.linear import Linear
from nn.layers.masks import masked, newest
from nn.layers.precision import cast_to
from nn.layers.rotary import Rotary
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class RetentionSettings(HeadSettings):
    """Linear attention with a fixed decay per head."""

    num_heads: int = 8             # heads, each with its decay
    expand_v: float = 2.0          # width of all values / hidden_size
    rope_theta: float = 10000.0    # base of the rotary frequencies

    def parameters(self, active: bool = False) -> dict[str, int]:
        return {"projections": self.hidden_size * (2 * self.key_width + 3 * self.value_width),
                "norms": self.head_widths[1]}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        width = 2 * self.key_width + 3 * self.value_width
        return {"projections": projection(batch * length, (self.hidden_size, width)),
                "core": decayed_flops(batch, self.num_heads, length, *self.head_widths, mode,
                                      self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, num_heads=2, chunk_size=4)}


@dataclass
class RetentionState(State):
    """What is left of the tokens seen."""

    s: Array             # [B,H,Dk,Dv]
    padding: Array       # integers [B], on the host: how many of the tokens were padding
    offset: int = 0      # tokens seen

    def seen(self) -> Array | int:
        """Tokens that were not padding, the position of the next: a number, or one per row [B]"""
        return self.offset - self.padding if self.padding.any() else self.offset


class Retention(HeadBlock):
    """q_proj, k_proj [H·Dk,D], v_proj, g_proj [H·Dv,D], o_proj [D,H·Dv], norm [Dv]; no biases"""

    Settings = RetentionSettings

    def __init__(self, settings: RetentionSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self._create_projections(dtype=dtype)
        self.g_proj = Linear(s.hidden_size, s.value_width, std=s.init_std, dtype=dtype)
        self.norm = GatedRMSNorm(s.head_widths[1], s.norm_eps, dtype=dtype)
        self.rotary = Rotary(s.head_widths[0], s.rope_theta)
        self.log_decay = np.log1p(-(2.0 ** (-5.0 - np.arange(s.num_heads))))       # ln γ [H]

    def init_state(self, batch_size: int) -> RetentionState:
        s = self.settings
        return RetentionState(self.zeros(batch_size, s.num_heads, *s.head_widths),
                              np.zeros(batch_size, np.int64))

    def forward(self, x: Tensor, *, state: RetentionState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, RetentionState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        before = state or self.init_state(batch)
        x = masked(x, mask)                                     # no biases: k = v = 0 at padding
        (q, k, v), _ = self._queries_keys_values(x)                                   # [B,H,T,...]
        tables = angles(self.rotary, x, before.seen(), length, mask)
        cos, sin = (beside(table, x.data) for table in tables)
        q, k = ops.rope(q, cos, sin) * q.shape[-1] ** -0.5, ops.rope(k, cos, sin)
        g, v = self._log_decays(batch, length, mask, before.s), cast_to(v, before.s.dtype)
        o, s = decayed_attention(q, k, v, g, before.s, mode=mode, size=self.settings.chunk_size)
        o = tokens_first(o)                                           # [B,T,H,Dv], wide: sums of many tokens
        o = self.norm(o, self.g_proj(x).reshape(*o.shape))
        y = self.o_proj(o.reshape(batch, length, self.settings.value_width))
        if state is None:
            return y, None
        padding = before.padding + left_out(mask, length)
        return y, RetentionState(s.data, padding, before.offset + length)

    def _log_decays(self, batch: int, length: int, mask: Array | None, like: Array) -> Tensor:
        """g[B,H,T]: ln γ, and 0 at padding"""
        g = np.broadcast_to(self.log_decay[:, None].astype(like.dtype), (batch, len(self.log_decay), length))
        keep = newest(mask, length)
        return Tensor(beside(g if keep is None else g * keep[:, None, :], like))
