"""Cross attention (Vaswani et al. 2017): queries from the stream, keys and values from a context.

    y = W_o softmax(scale (W_q x)(W_k c)ᵀ) W_v c     over all of the context's tokens, without positions

The context's keys and values are formed once, in the first call with a state."""

from dataclasses import dataclass
from typing import Any

from nn.backends.array_api import beside
from nn.errors import InputError
from nn.layers.attention.causal import AttentionSettings
from nn.layers.attention.grouped import GroupedAttention, unrecorded
from nn.layers.formulas import attention_core, projection
from nn.layers.protocol import Block
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class CrossAttentionSettings(AttentionSettings):
    """Softmax attention over a context: an encoder's output, an image's patches."""

    rope_theta: float = 0.0      # 0: the context's tokens bring their positions along
    context_size: int = 0        # width of the context; 0 = hidden_size
    context_length: int = 512    # tokens of the context, for the formula of operations

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("context_length")
        object.__setattr__(self, "context_size", self.context_size or self.hidden_size)
        if self.context_size < 0:
            raise InputError(f"context_size: {self.context_size} is negative; 0 means hidden_size")
        for name in ("window", "rope_theta"):
            if getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)}; cross attention has no order, leave it 0")

    def parameters(self, active: bool = False) -> dict[str, int]:
        extra = 2 * self.widths[1] * (self.context_size - self.hidden_size)
        counts = super().parameters(active)
        return counts | {"projections": counts["projections"] + extra}

    def cache_size(self, tokens: int) -> int | None:
        return 2 * self.widths[1] * self.context_length * (tokens > 0)

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """Behind a past, the context's keys and values are there already."""
        heads, groups = self.widths
        wide, narrow = (self.hidden_size, heads), (self.context_size, groups)
        pairs = length * self.context_length
        return {"projections": projection(batch * length, wide, wide),
                "context": 0 if past else projection(batch * self.context_length, narrow, narrow),
                "core": attention_core(batch * self.num_heads, pairs, self.head_dim, self.head_dim)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        grouped = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "context_length": 5}
        return {"grouped": cls.create(**grouped),
                "biases, sinks": cls.create(**grouped, attn_bias=True, out_bias=True, sinks=True),
                "scale 1": cls.create(**grouped, scale=1.0), "qk-norm": cls.create(**grouped, qk_norm="head")}


@dataclass
class ContextState(State):
    """The context's keys and values, once they are known, and which of its tokens are none."""

    k: Array | None = None      # [B,G,S,Dh]
    v: Array | None = None      # [B,G,S,Dh]
    keep: Array | None = None   # booleans [B,S], False at the context's padding; None: it has none


class CrossAttention(GroupedAttention, Block):
    """q_proj [H·Dh,D], k_proj, v_proj [G·Dh,Dc], o_proj [D,H·Dh]"""

    Settings = CrossAttentionSettings
    needs = ("context",)
    takes = ("context_mask", "segment_ids")
    packing = "none"             # of which document a context is, is not said

    def __init__(self, settings: CrossAttentionSettings, dtype: Any = "float32") -> None:
        s = settings
        super().__init__(s.hidden_size, s.num_heads, s.num_kv_heads, s.head_dim, None, qk_norm=s.qk_norm,
                         eps=s.norm_eps, bias=s.attn_bias, out_bias=s.out_bias, sinks=s.sinks,
                         context_size=s.context_size, clip_qkv=s.clip_qkv, scale=s.scale, softcap=s.softcap,
                         attn_dropout=s.attn_dropout, std=s.init_std, out_std=s.down_std, dtype=dtype)
        self.settings, self.backend = settings, s.backend

    def init_state(self, batch_size: int) -> ContextState:
        return ContextState()

    def forward(self, x: Tensor, *, state: ContextState | None = None, mask: Array | None = None,
                mode: str | None = None, context: Tensor | None = None,
                context_mask: Array | None = None) -> tuple[Tensor, ContextState | None]:
        """x[B,T,D], context[B,S,Dc] -> y[B,T,D].  context_mask [B,S], False at its padding.  A state keeps
        what it needs of the context of its first call, the mask too; later ones may leave both out."""
        q = self.heads(self.q_proj(x), self.q_norm, self.qk_norm == "l2")
        if context_mask is None and state is not None and state.k is not None:
            context_mask = state.keep
        k, v = self._context(context, state, context_mask)
        keep = None if context_mask is None else context_mask[:, None, None, :]
        return self.output(self.core(q, k, v, keep, causal=False, cached=state is not None), x), state

    def _context(self, context: Tensor | None, state: ContextState | None,
                 keep: Array | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B,G,S,Dh], those of the state if it has them"""
        if state is not None and state.k is not None:
            like = self.k_proj.weight.data                       # a state that was loaded lies on the host
            return Tensor(beside(state.k, like)), Tensor(beside(state.v, like))
        if context is None:
            raise InputError("context: cross attention needs one, [B,S,D]; call with context=")
        k = self.heads(self.k_proj(context), self.k_norm, self.qk_norm == "l2")
        v = self.heads(self.v_proj(context))
        if state is not None:
            unrecorded(k)
            state.k, state.v, state.keep = k.data, v.data, None if keep is None else keep.copy()
        return k, v
