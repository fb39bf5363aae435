"""Causal self-attention as a block: multi-head, grouped or multi-query."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nn.errors import InputError
from nn.layers.attention.grouped import QK_NORMS, GroupedAttention
from nn.layers.formulas import attention_core, projection, visible_pairs
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import RopeScaling, Rotary
from nn.names import check_name


@dataclass(frozen=True)
class AttentionSettings(BlockSettings):
    """Softmax attention over all earlier tokens, or over a window of them."""

    num_heads: int = 4                 # query heads
    num_kv_heads: int = 0              # key/value heads; 0 = num_heads, 1 = multi-query attention
    head_dim: int = 0                  # channels per head; 0 = hidden_size / num_heads
    window: int = 0                    # keys a query sees, itself included; 0 = all
    sinks: bool = False                # a learned logit per head in every softmax, of value 0 (gpt-oss)
    qk_norm: str = "none"              # none; RMSNorm per head (Qwen3) or full (OLMoE); l2: heads of length 1
    clip_qkv: float = 0.0              # queries, keys and values are cut to −c ... c (OLMoE); 0 = not
    bias: bool = False                 # biases on the projections
    norm_eps: float = 1e-6             # of qk_norm
    rope_theta: float = 10000.0        # base of the rotary frequencies; 0 = no positions
    partial_rotary_factor: float = 1.0   # part of the channels that is turned, the first ones
    rope_interleaved: bool = False     # rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # stretching to longer contexts
    max_seq_len: int = 2048            # planned context, for rope_scaling

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "max_seq_len")
        if isinstance(self.qk_norm, bool):
            object.__setattr__(self, "qk_norm", "head" if self.qk_norm else "none")
        check_name("qk_norm", self.qk_norm, QK_NORMS)
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise InputError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads = "
                                 f"{self.num_heads}; change one of them or set head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads: {self.num_kv_heads} does not divide "
                             f"num_heads = {self.num_heads}")
        for name in ("window", "clip_qkv"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is negative; 0 means none")
        if not 0.0 < self.partial_rotary_factor <= 1.0:
            raise InputError(f"partial_rotary_factor: {self.partial_rotary_factor} is not in (0, 1]")

    @property
    def widths(self) -> tuple[int, int]:
        """Of all query heads together, of all key heads together."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

    def parameters(self, active: bool = False) -> dict[str, int]:
        heads, groups = self.widths
        biases = heads + 2 * groups + self.hidden_size if self.bias else 0
        norms = {"head": 2 * self.head_dim, "full": heads + groups}.get(self.qk_norm, 0)
        return {"projections": 2 * self.hidden_size * (heads + groups) + biases, "norms": norms,
                "sinks": self.num_heads if self.sinks else 0}

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
                "qk-norm": cls.create(**grouped, qk_norm="head", rope_interleaved=True),
                "full qk-norm": cls.create(**grouped, qk_norm="full", partial_rotary_factor=0.5),
                "l2, sinks, window": cls.create(**grouped, qk_norm="l2", sinks=True, window=4)}


class CausalSelfAttention(GroupedAttention, Block):
    """Grouped-query attention with rotary positions and a growing cache (nn/layers/attention/grouped.py)."""

    Settings = AttentionSettings

    def __init__(self, settings: AttentionSettings, dtype: Any = "float32") -> None:
        s = settings
        turned = round(s.head_dim * s.partial_rotary_factor)
        rotary = shared_rotary(turned, s.rope_theta, s.rope_scaling, s.max_seq_len, s.rope_interleaved)
        super().__init__(s.hidden_size, s.num_heads, s.num_kv_heads, s.head_dim, rotary, qk_norm=s.qk_norm,
                         eps=s.norm_eps, bias=s.bias, window=s.window, sinks=s.sinks, clip_qkv=s.clip_qkv,
                         std=s.init_std, out_std=s.down_std, dtype=dtype)
        self.settings = settings


@lru_cache(maxsize=32)
def shared_rotary(dim: int, theta: float, scaling: RopeScaling, length: int,
                  interleaved: bool) -> Rotary | None:
    """One for all layers that turn alike: the tables are large."""
    return Rotary(dim, theta, scaling, length, interleaved) if theta else None
