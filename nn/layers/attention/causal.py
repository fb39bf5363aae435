"""Causal self-attention as a block: multi-head, grouped or multi-query."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from nn.errors import InputError
from nn.layers.attention.grouped import BACKENDS, QK_NORMS, GroupedAttention
from nn.layers.attention.kv_cache import KVCache
from nn.layers.formulas import attention_core, projection, visible_pairs
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import RopeScaling, Rotary
from nn.names import check_name
from nn.tensor import Array, Tensor

AT_ZERO = {"num_kv_heads": "num_heads", "head_dim": "hidden_size / num_heads", "window": "all keys",
           "clip_qkv": "none", "softcap": "none", "scale": "that of head_dim", "norm_eps": "none",
           "rope_theta": "no positions"}


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
    attn_bias: bool = False            # biases on the projections of queries, keys and values
    out_bias: bool = False             # a bias on the projection of the results
    scale: float = 0.0                 # of the scores; 0 = 1/√head_dim (√head_dim with qk_norm l2)
    softcap: float = 0.0               # scores u become c tanh(u / c), c this (Gemma 2: 50); 0 = not
    attn_dropout: float = 0.0          # share of the probabilities that training leaves out
    norm_eps: float = 1e-6             # of qk_norm
    rope_theta: float = 10000.0        # base of the rotary frequencies; 0 = no positions
    partial_rotary_factor: float = 1.0   # part of the channels that is turned, the first ones
    rope_interleaved: bool = False     # rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)   # stretching to longer contexts
    max_seq_len: int = 2048            # planned context, for rope_scaling
    causal: bool = True                # false: an encoder's, in which tokens see later ones, too
    backend: str = "auto"              # manual: all scores at once; sdpa, auto: by a fused kernel

    fixed: ClassVar[tuple[str, ...]] = ()    # settings that a subclass has no choice of

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "max_seq_len")
        for name, meaning in AT_ZERO.items():
            if not getattr(self, name) >= 0:
                raise InputError(f"{type(self).__name__}.{name}: {getattr(self, name)} is not 0 or more; "
                                 f"0 means {meaning}")
        if isinstance(self.qk_norm, bool):
            object.__setattr__(self, "qk_norm", "head" if self.qk_norm else "none")
        check_name("qk_norm", self.qk_norm, QK_NORMS)
        check_name("backend", self.backend, BACKENDS)
        for name in self.fixed:
            if getattr(self, name) != getattr(AttentionSettings, name):
                raise InputError(f"{name}: {getattr(self, name)}; {type(self).__name__} gives no choice of "
                                 f"it, leave it {getattr(AttentionSettings, name)}")
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise InputError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads = "
                                 f"{self.num_heads}; change one of them or set head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads: {self.num_kv_heads} does not divide "
                             f"num_heads = {self.num_heads}")
        if not 0.0 <= self.attn_dropout < 1.0:
            raise InputError(f"attn_dropout: {self.attn_dropout} is not in [0, 1)")
        if not 0.0 < self.partial_rotary_factor <= 1.0:
            raise InputError(f"partial_rotary_factor: {self.partial_rotary_factor} is not in (0, 1]")

    @property
    def widths(self) -> tuple[int, int]:
        """Of all query heads together, of all key heads together."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

    def parameters(self, active: bool = False) -> dict[str, int]:
        heads, groups = self.widths
        biases = self.attn_bias * (heads + 2 * groups) + self.out_bias * self.hidden_size
        norms = {"head": 2 * self.head_dim, "full": heads + groups}.get(self.qk_norm, 0)
        return {"projections": 2 * self.hidden_size * (heads + groups) + biases, "norms": norms,
                "sinks": self.num_heads if self.sinks else 0}

    def cache_size(self, tokens: int) -> int | None:
        return 2 * self.widths[1] * tokens

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        heads, groups = self.widths
        wide, narrow = (self.hidden_size, heads), (self.hidden_size, groups)
        pairs = visible_pairs(length, past + length, self.window, self.causal)
        return {"projections": projection(batch * length, wide, narrow, narrow, wide),
                "core": attention_core(batch * self.num_heads, pairs, self.head_dim, self.head_dim)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        grouped = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
        return {"grouped": cls.create(**grouped),
                "multi-query": cls.create(hidden_size=8, num_heads=2, num_kv_heads=1, attn_bias=True,
                                          out_bias=True, scale=0.3),
                "softcap": cls.create(**grouped, softcap=1.5, attn_dropout=0.2, attn_bias=True),
                "qk-norm": cls.create(**grouped, qk_norm="head", rope_interleaved=True),
                "full qk-norm": cls.create(**grouped, qk_norm="full", partial_rotary_factor=0.5),
                "l2, sinks, window": cls.create(**grouped, qk_norm="l2", sinks=True, window=4),
                "both ways": cls.create(**grouped, causal=False),
                "manual": cls.create(**grouped, backend="manual", sinks=True, window=4)}


class CausalSelfAttention(GroupedAttention, Block):
    """Grouped-query attention with rotary positions and a growing cache (nn/layers/attention/grouped.py)."""

    Settings = AttentionSettings
    static_cache = True

    def __init__(self, settings: AttentionSettings, dtype: Any = "float32") -> None:
        s = settings
        turned = round(s.head_dim * s.partial_rotary_factor)
        rotary = shared_rotary(turned, s.rope_theta, s.rope_scaling, s.max_seq_len, s.rope_interleaved)
        super().__init__(s.hidden_size, s.num_heads, s.num_kv_heads, s.head_dim, rotary, qk_norm=s.qk_norm,
                         eps=s.norm_eps, bias=s.attn_bias, out_bias=s.out_bias, window=s.window,
                         sinks=s.sinks, clip_qkv=s.clip_qkv, scale=s.scale, softcap=s.softcap,
                         attn_dropout=s.attn_dropout, std=s.init_std, out_std=s.down_std, dtype=dtype)
        self.settings, self.causal, self.backend = settings, s.causal, s.backend
        self.kept: list[tuple[Array, Array]] | None = None     # while a list, calls leave their (k, v) in it

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.num_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads."""
        return self.num_kv_heads

    @property
    def n_rep(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def init_state(self, batch_size: int) -> Any:
        return KVCache() if self.causal else None

    def core(self, q: Tensor, k: Tensor, v: Tensor, keep: Array | None, causal: bool, *,
             cached: bool) -> Tensor:
        if self.kept is not None:
            self.kept.append((k.data, v.data))
        return super().core(q, k, v, keep, causal, cached=cached)


@lru_cache(maxsize=32)
def shared_rotary(dim: int, theta: float, scaling: RopeScaling, length: int,
                  interleaved: bool) -> Rotary | None:
    """One for all layers that turn alike: the tables are large."""
    return Rotary(dim, theta, scaling, length, interleaved) if theta else None
