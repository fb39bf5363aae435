"""Grouped-query attention (Ainslie et al. 2023): H query heads share G key/value heads.

G = H is multi-head, G = 1 multi-query attention.  Options: QK-norm, sliding window, biases, sinks.

Other attention layers are this one with a step of their own: `projected` (what queries, keys and values are
made of), `attended` (which keys a query sees, and what is kept of them), `output` (what becomes of o)."""

from typing import Any

from nn import ops
from nn.backends import kernels
from nn.backends.array_api import namespace, on_device
from nn.cache import LayerCache, StaticLayerCache
from nn.errors import InputError
from nn.layers.attention.core import attend
from nn.layers.attention.positions import angles, kept, left_out
from nn.layers.linear import Linear
from nn.layers.module import Module, Parameter
from nn.layers.norm import RMSNorm
from nn.layers.rotary import Rotary
from nn.names import check_name
from nn.ops.merged import KeySet
from nn.random import counter
from nn.tensor import Array, Tensor

QK_NORMS = ("none", "head", "full", "l2")
BACKENDS = ("auto", "sdpa", "manual")


class GroupedAttention(Module):
    """o = W_o softmax(q kᵀ / √Dh) v with q, k turned by the rotary angle of their position.

    qk_norm: "head" (True), RMSNorm of every head by itself, one weight for all (Qwen3); "full", RMSNorm of
    all heads together (OLMoE); "l2", every head scaled to length 1, and the scores by √Dh, not 1/√Dh: what
    "head" gives without weights.  All before the rotation.
    sinks: a learned logit per query head takes part in every softmax and adds nothing (gpt-oss).
    clip_qkv: queries, keys and values are cut to −c ... c, behind a norm of all heads, before one per head.
    context_size: width of what keys and values are made of, if not of x.
    scale: of the scores, instead of the root of Dh.  softcap: scores u become c tanh(u / c) (Gemma 2).
    attn_dropout: share of the probabilities that training leaves out; not behind a cache.
    out_bias: of o_proj, if not as the others.
    causal: whether a token sees no later one.  backend: "manual" forms all scores at once, which takes T·S
    memory; "sdpa" and "auto" do so only for softcap and dropout."""

    causal = True
    backend = "auto"
    sink_tokens = 0            # first tokens that a window leaves visible
    noise_name = "attn_dropout"
    qkv_proj: Any = None       # all three in one product (nn/packed)

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int,
                 rotary: Rotary | None, *, qk_norm: str | bool = False, eps: float = 1e-6, bias: bool = False,
                 out_bias: bool | None = None, window: int = 0, sinks: bool = False, clip_qkv: float = 0.0,
                 context_size: int = 0, scale: float = 0.0, softcap: float = 0.0, attn_dropout: float = 0.0,
                 std: float = 0.02, out_std: float | None = None, dtype: Any = "float32") -> None:
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise InputError(f"num_heads: {num_heads} is not a multiple of num_kv_heads: {num_kv_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotary, self.window, self.eps, self.clip = rotary, window, eps, clip_qkv
        self.qk_norm = qk_norm if isinstance(qk_norm, str) else "head" if qk_norm else "none"
        check_name("qk_norm", self.qk_norm, QK_NORMS)
        self.scale = scale or (head_dim**0.5 if self.qk_norm == "l2" else head_dim**-0.5)
        self.softcap, self.attn_dropout = softcap, attn_dropout
        if attn_dropout:
            self.noise: Array = counter(0, self.noise_name)      # where it is drawn
        options: dict[str, Any] = {"bias": bias, "std": std, "dtype": dtype}
        self.q_proj = Linear(hidden_size, num_heads * head_dim, **options)
        self.k_proj = Linear(context_size or hidden_size, num_kv_heads * head_dim, **options)
        self.v_proj = Linear(context_size or hidden_size, num_kv_heads * head_dim, **options)
        written = {"std": out_std or std, "bias": bias if out_bias is None else out_bias}
        self.o_proj = Linear(num_heads * head_dim, hidden_size, **options | written)
        widths = {"head": (1, 1), "full": (num_heads, num_kv_heads)}.get(self.qk_norm)
        self.q_norm = RMSNorm(widths[0] * head_dim, eps, dtype=dtype) if widths else None
        self.k_norm = RMSNorm(widths[1] * head_dim, eps, dtype=dtype) if widths else None
        self.sinks = Parameter((num_heads,), dtype=dtype, decay=False) if sinks else None

    def init_state(self, batch_size: int) -> Any:
        return LayerCache()

    def forward(self, x: Tensor, *, state: Any = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, Any]:
        """x[B,T,D] -> y[B,T,D].  state: cache to continue (and extend).  mask: keep-mask [B,S] over all keys,
        cached ones included; padded positions are not counted.  Both modes compute the same here."""
        q, k, v = self.projected(x)
        if isinstance(state, StaticLayerCache):
            return self.output(self._continued(state, q, k, v, mask), x), state
        if self.rotary:
            cos, sin = angles(self.rotary, x, self.first_position(state), x.shape[1], mask)
            q, k = (ops.rope(z, cos, sin, self.rotary.interleaved) for z in (q, k))
        return self.output(self.attended(q, k, v, state, mask, mode), x), state

    def first_position(self, state: Any) -> Array | int:
        """Of the next token: a number, or one per row [B]"""
        return 0 if state is None else state.offset - state.padding

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q[B,H,T,Dh], k[B,G,T,Dh], v[B,G,T,Dh], not yet turned"""
        q, k, v = self.projections(x)
        return (self.heads(q, self.q_norm, self.qk_norm == "l2"),
                self.heads(k, self.k_norm, self.qk_norm == "l2"), self.heads(v))

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,T,H*Dh], [B,T,G*Dh], [B,T,G*Dh]"""
        if self.qkv_proj is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        qkv, a, b = self.qkv_proj(x), self.num_heads, self.num_heads + self.num_kv_heads
        return (qkv[:, :, : a * self.head_dim], qkv[:, :, a * self.head_dim : b * self.head_dim],
                qkv[:, :, b * self.head_dim :])

    def attended(self, q: Tensor, k: Tensor, v: Tensor, state: Any, mask: Array | None,
                 mode: str | None) -> Tensor:
        """o[B,H,T,Dh] of turned queries and keys; the state is extended."""
        if state is not None:
            k, v = extended(state, k, v, mask)                                             # [B,G,S,Dh]
        return self.core(q, k, v, kept(mask, k.shape[2]), self.causal, cached=state is not None)

    def core(self, q: Tensor, k: Tensor, v: Tensor, keep: Array | None, causal: bool, *,
             cached: bool) -> Tensor:
        """o[B,H,T,Dh] of q[B,H,T,Dh] over k, v [B,G,S,Dh]; keep: booleans that broadcast to [B,H,T,S]"""
        return self.over(q, [KeySet(k, v, causal=causal, window=self.window, mask=keep)], cached=cached)

    def over(self, q: Tensor, sets: list[KeySet], *, cached: bool) -> Tensor:
        """o[B,H,T,Dh] over sets of keys; behind a cache nothing is dropped"""
        dropout = self.attn_dropout if self.training and not cached else 0.0
        return attend(q, sets, scale=self.scale, sinks=self.sinks, softcap=self.softcap, dropout=dropout,
                      noise=self.noise if dropout else None, dense=self.backend == "manual")

    def output(self, o: Tensor, x: Tensor) -> Tensor:
        """[B,H,T,Dh] -> [B,T,D]"""
        return self.o_proj(self.joined(o))

    def joined(self, o: Tensor) -> Tensor:
        """[B,H,T,Dh] -> [B,T,H*Dh]"""
        batch, _, length, _ = o.shape
        return o.permute(0, 2, 1, 3).reshape(batch, length, self.num_heads * self.head_dim)

    def heads(self, x: Tensor, norm: RMSNorm | None = None, unit: bool = False) -> Tensor:
        """[B,T,n*Dh] -> [B,n,T,Dh], normalised as a whole or per head if asked, or every head of length 1"""
        if norm and self.qk_norm == "full":
            x, norm = norm(x), None
        x = ops.clip(x, -self.clip, self.clip) if self.clip else x
        x = x.reshape(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim)
        x = ops.l2_norm(x, self.eps) if unit else norm(x) if norm else x
        return x.permute(0, 2, 1, 3)

    def _continued(self, state: StaticLayerCache, q: Tensor, k: Tensor, v: Tensor,
                   mask: Array | None) -> Tensor:
        """Attention behind what the cache holds; where that ends is read from the arrays' own memory, not
        known here."""
        if mask is not None:
            raise InputError("mask: a cache of fixed size takes no padding; decode such rows one by one")
        if not self.causal:
            raise InputError("cache: attention both ways has none; it reads whole sequences")
        if self.rotary:
            cos, sin = state.angles(self.rotary)
            q, k = (Tensor(kernels.rope_at(z.data, cos, sin, state.positions,
                                           interleaved=self.rotary.interleaved)) for z in (q, k))
        state.pinned = self.sink_tokens
        state.store(k.data, v.data)
        held = state.lengths_with(q.shape[2])
        if self.sinks is None and not (self.sink_tokens or self.softcap or self.backend == "manual"):
            if state.empty and q.shape[2] > 1 and not on_device(q.data):     # a prompt: nothing before it
                return self.core(q, k, v, None, True, cached=True)
            o = kernels.decode_attention(q.data, state.k, state.v, held, scale=self.scale, window=self.window)
            return Tensor(o)
        keys = KeySet(Tensor(state.k), Tensor(state.v), causal=False, mask=self._held(held, q, state.k))
        return self.over(q, [keys], cached=True)

    def _held(self, lengths: Array, q: Tensor, k: Array) -> Array:
        """booleans [B,1,T,S]: the keys of a cache of fixed size that its newest tokens see"""
        xp, length = namespace(k), q.shape[2]
        position = lengths[:, None, None] - length + xp.arange(length)[None, :, None]          # [B,T,1]
        key = xp.arange(k.shape[2])[None, None, :]
        seen = key <= position
        if self.window:
            seen = seen & ((key > position - self.window) | (key < self.sink_tokens))
        return seen[:, None, :, :]


def extended(state: LayerCache, k: Tensor, v: Tensor, mask: Array | None) -> tuple[Tensor, Tensor]:
    """Keys and values of cached and new tokens, which the cache now holds too."""
    unrecorded(k)
    state.padding = state.padding + left_out(mask, k.shape[2])
    keys, values = state.append(k.data, v.data)
    return Tensor(keys), Tensor(values)


def unrecorded(k: Tensor) -> None:
    """RuntimeError if gradients would be lost in a cache."""
    if k.requires_grad:
        raise RuntimeError("attention: a cache keeps no gradients; call with state= under no_grad()")
