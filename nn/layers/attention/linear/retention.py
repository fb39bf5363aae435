"""Retention (Sun et al. 2023, RetNet): a state that every head forgets at a rate of its own.

    S_t = γ_h S_{t−1} + k_t v_tᵀ,  γ_h = 1 − 2^(−5−h),  q and k turned by rotary angles
    y = W_o (RMSNorm_head(S_tᵀ q_t / √Dk) ⊙ SiLU(W_g x))"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside
from nn.errors import InputError
from nn.layers.attention.linear.decayed import decayed_attention, decayed_flops
from nn.layers.chunks import CHUNK
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.masks import masked, newest
from nn.layers.norm import RMSNorm
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import Rotary
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class RetentionSettings(BlockSettings):
    """Linear attention with a fixed decay per head."""

    num_heads: int = 8             # heads, each with its decay
    expand_k: float = 1.0          # width of all keys / hidden_size
    expand_v: float = 2.0          # width of all values / hidden_size
    rope_theta: float = 10000.0    # base of the rotary frequencies
    norm_eps: float = 1e-5         # of the norm on each head's result
    chunk_size: int = CHUNK        # tokens handled together in chunk mode

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "chunk_size")
        for name, width in (("expand_k", self.key_width), ("expand_v", self.value_width)):
            if width < 1 or width % self.num_heads:
                raise InputError(f"{name}: {getattr(self, name)} x hidden_size = {width} is not a multiple "
                                 f"of num_heads = {self.num_heads}")

    @property
    def key_width(self) -> int:
        """Of all heads together."""
        return round(self.hidden_size * self.expand_k)

    @property
    def value_width(self) -> int:
        """Of all heads together."""
        return round(self.hidden_size * self.expand_v)

    def parameters(self, active: bool = False) -> dict[str, int]:
        return {"projections": self.hidden_size * (2 * self.key_width + 3 * self.value_width),
                "norms": self.value_width // self.num_heads}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        keys, values = (self.hidden_size, self.key_width), (self.hidden_size, self.value_width)
        widths = self.key_width // self.num_heads, self.value_width // self.num_heads
        return {"projections": projection(batch * length, keys, keys, values, values, values),
                "core": decayed_flops(batch, self.num_heads, length, *widths, mode, self.chunk_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, num_heads=2, chunk_size=4)}


@dataclass
class RetentionState(State):
    """What is left of the tokens seen."""

    s: Array             # [B,H,Dk,Dv]
    offset: int = 0      # tokens seen: the position of the next one


class Retention(Block):
    """q_proj, k_proj [H·Dk,D], v_proj, g_proj [H·Dv,D], o_proj [D,H·Dv], norm [Dv]; no biases"""

    Settings = RetentionSettings

    def __init__(self, settings: RetentionSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        options: dict[str, Any] = {"std": s.init_std, "dtype": dtype}
        self.q_proj = Linear(s.hidden_size, s.key_width, **options)
        self.k_proj = Linear(s.hidden_size, s.key_width, **options)
        self.v_proj = Linear(s.hidden_size, s.value_width, **options)
        self.g_proj = Linear(s.hidden_size, s.value_width, **options)
        self.norm = RMSNorm(s.value_width // s.num_heads, s.norm_eps, dtype=dtype)
        self.o_proj = Linear(s.value_width, s.hidden_size, **options | {"std": s.down_std})
        self.rotary = Rotary(s.key_width // s.num_heads, s.rope_theta)
        self.log_decay = np.log1p(-(2.0 ** (-5.0 - np.arange(s.num_heads))))       # ln γ [H]

    def init_state(self, batch_size: int) -> RetentionState:
        s = self.settings
        return RetentionState(self.zeros(batch_size, s.num_heads, s.key_width // s.num_heads,
                                         s.value_width // s.num_heads))

    def forward(self, x: Tensor, *, state: RetentionState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, RetentionState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        batch, length, _ = x.shape
        before = state or self.init_state(batch)
        x = masked(x, mask)                                     # no biases: k = v = 0 at padding
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))   # [B,H,T,...]
        cos, sin = (beside(table, x.data) for table in self.rotary(before.offset, length, before.s.dtype))
        q, k = ops.rope(q, cos, sin) * q.shape[-1] ** -0.5, ops.rope(k, cos, sin)
        g = self._log_decays(batch, length, mask, before.s)
        o, s = decayed_attention(q, k, v, g, before.s, mode=mode, size=self.settings.chunk_size)
        o = o if o.dtype == x.dtype else o.cast(x.dtype)
        o = self.norm(o.permute(0, 2, 1, 3)).reshape(batch, length, self.settings.value_width)
        y = self.o_proj(o * ops.silu(self.g_proj(x)))
        return y, None if state is None else RetentionState(s.data, before.offset + length)

    def _heads(self, x: Tensor) -> Tensor:
        """[B,T,H·d] -> [B,H,T,d]"""
        heads = self.settings.num_heads
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).permute(0, 2, 1, 3)

    def _log_decays(self, batch: int, length: int, mask: Array | None, like: Array) -> Tensor:
        """g[B,H,T]: ln γ, and 0 at padding"""
        g = np.broadcast_to(self.log_decay[:, None].astype(like.dtype), (batch, len(self.log_decay), length))
        keep = newest(mask, length)
        return Tensor(beside(g if keep is None else g * keep[:, None, :], like))
