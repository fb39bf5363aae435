"""Causal self-attention as a block: multi-head, grouped or multi-query, with a window if wanted."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nn.errors import InputError
from nn.layers.attention.grouped import GroupedAttention
from nn.layers.formulas import attention_core, projection, visible_pairs
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import RopeScaling, Rotary


@dataclass(frozen=True)
class AttentionSettings(BlockSettings):
    """Softmax attention over all earlier tokens, or over a window of them."""

    num_heads: int = 4                 # query heads
    num_kv_heads: int = 0              # key/value heads; 0 = num_heads, 1 = multi-query attention
    head_dim: int = 0                  # channels per head; 0 = hidden_size / num_heads
    window: int = 0                    # keys a query sees, itself included; 0 = all
    qk_norm: bool = False              # RMSNorm on each query and key head (Qwen3)
    bias: bool = False                 # biases on the projections
    norm_eps: float = 1e-6             # of qk_norm
    rope_theta: float = 10000.0        # base of the rotary frequencies; 0 = no positions
    rope_interleaved: bool = False     # rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # stretching to longer contexts
    max_seq_len: int = 2048            # planned context, for rope_scaling

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "max_seq_len")
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise InputError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads = "
                                 f"{self.num_heads}; change one of them or set head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads: {self.num_kv_heads} does not divide "
                             f"num_heads = {self.num_heads}")
        if self.window < 0:
            raise InputError(f"window: {self.window} is negative; 0 means no window")

    @property
    def widths(self) -> tuple[int, int]:
        """Of all query heads together, of all key heads together."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

    def parameters(self, active: bool = False) -> dict[str, int]:
        heads, groups = self.widths
        biases = heads + 2 * groups + self.hidden_size if self.bias else 0
        return {"projections": 2 * self.hidden_size * (heads + groups) + biases,
                "norms": 2 * self.head_dim if self.qk_norm else 0}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        heads, groups = self.widths
        wide, narrow = (self.hidden_size, heads), (self.hidden_size, groups)
        pairs = visible_pairs(length, past + length, self.window)
        return {"projections": projection(batch * length, wide, narrow, narrow, wide),
                "core": attention_core(batch * self.num_heads, pairs, self.head_dim, self.head_dim)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        grouped = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
        return {"grouped": cls.create(**grouped),
                "multi-query": cls.create(hidden_size=8, num_heads=2, num_kv_heads=1, bias=True),
                "qk-norm": cls.create(**grouped, qk_norm=True, rope_interleaved=True)}


@dataclass(frozen=True)
class SlidingAttentionSettings(AttentionSettings):
    """Softmax attention over a window."""

    window: int = 1024      # keys a query sees, itself included

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"window 3": cls.create(hidden_size=8, num_heads=2, num_kv_heads=1, window=3),
                "window 1": cls.create(hidden_size=8, num_heads=2, window=1, rope_theta=0.0)}


class CausalSelfAttention(GroupedAttention, Block):
    """Grouped-query attention with rotary positions and a growing cache (nn/layers/attention/grouped.py)."""

    Settings = AttentionSettings

    def __init__(self, settings: AttentionSettings, dtype: Any = "float32") -> None:
        s = settings
        rotary = _rotary(s.head_dim, s.rope_theta, s.rope_scaling, s.max_seq_len, s.rope_interleaved)
        super().__init__(s.hidden_size, s.num_heads, s.num_kv_heads, s.head_dim, rotary, qk_norm=s.qk_norm,
                         eps=s.norm_eps, bias=s.bias, window=s.window, std=s.init_std, out_std=s.down_std,
                         dtype=dtype)
        self.settings = settings


class SlidingWindowAttention(CausalSelfAttention):
    """The same over a window (Mistral)."""

    Settings = SlidingAttentionSettings


@lru_cache(maxsize=32)
def _rotary(dim: int, theta: float, scaling: RopeScaling, length: int, interleaved: bool) -> Rotary | None:
    """One for all layers that turn alike: the tables are large."""
    return Rotary(dim, theta, scaling, length, interleaved) if theta else None
