"""Grouped-query attention (Ainslie et al. 2023): H query heads share G key/value heads.

G = H is multi-head, G = 1 multi-query attention.  Options: QK-norm, sliding window, biases."""

from typing import Any

import numpy as np

from nn import ops
from nn.backends import kernels
from nn.backends.array_api import on_device
from nn.cache import LayerCache, StaticLayerCache
from nn.dtypes import is_half
from nn.errors import InputError
from nn.layers.linear import Linear
from nn.layers.module import Module
from nn.layers.norm import RMSNorm
from nn.layers.rotary import Rotary
from nn.tensor import Array, Tensor


class GroupedAttention(Module):
    """o = W_o softmax(q kᵀ / √Dh) v with q, k turned by the rotary angle of their position."""

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int,
                 rotary: Rotary | None, *, qk_norm: bool = False, eps: float = 1e-6, bias: bool = False,
                 window: int = 0, std: float = 0.02, out_std: float | None = None,
                 dtype: Any = "float32") -> None:
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise InputError(f"num_heads: {num_heads} is not a multiple of num_kv_heads: {num_kv_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotary, self.window = rotary, window
        options: dict[str, Any] = {"bias": bias, "std": std, "dtype": dtype}
        self.q_proj = Linear(hidden_size, num_heads * head_dim, **options)
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, **options)
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, **options)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, **options | {"std": out_std or std})
        self.q_norm = RMSNorm(head_dim, eps, dtype=dtype) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps, dtype=dtype) if qk_norm else None

    def init_state(self, batch_size: int) -> LayerCache:
        return LayerCache()

    def forward(self, x: Tensor, *, state: LayerCache | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, LayerCache | None]:
        """x[B,T,D] -> y[B,T,D].  state: cache to continue (and extend).  mask: keep-mask [B,S] over all keys,
        cached ones included; padded positions are not counted.  Both modes compute the same here."""
        length = x.shape[1]
        q = self._heads(self.q_proj(x), self.q_norm)                                   # [B,H,T,Dh]
        k = self._heads(self.k_proj(x), self.k_norm)                                   # [B,G,T,Dh]
        v = self._heads(self.v_proj(x), None)                                          # [B,G,T,Dh]
        if isinstance(state, StaticLayerCache):
            return self._output(self._continued(state, q, k, v, mask)), state
        if self.rotary:
            device = x.data.device if on_device(x.data) else None
            cos, sin = self._angles(length, state, mask, x.dtype, device)
            q, k = (ops.rope(z, cos, sin, self.rotary.interleaved) for z in (q, k))
        if state is not None:
            k, v = self._extended(state, k, v, mask)                                   # [B,G,S,Dh]
        keep = None if mask is None else mask[:, None, None, :]
        return self._output(ops.attention(q, k, v, window=self.window, mask=keep)), state

    def _output(self, o: Tensor) -> Tensor:
        """[B,H,T,Dh] -> [B,T,D]"""
        batch, _, length, _ = o.shape
        return self.o_proj(o.permute(0, 2, 1, 3).reshape(batch, length, self.num_heads * self.head_dim))

    def _heads(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        """[B,T,n*Dh] -> [B,n,T,Dh], normalised per head before the rotation if asked (Qwen3)"""
        x = x.reshape(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim)
        return (norm(x) if norm else x).permute(0, 2, 1, 3)

    def _angles(self, length: int, state: LayerCache | None, mask: Array | None,
                dtype: Any, device: Any) -> tuple[Array, Array]:
        assert self.rotary is not None
        kind = np.float32 if is_half(dtype) else dtype
        first = state.offset - state.padding if state is not None else 0      # a number, or one per row [B]
        if mask is None and isinstance(first, int):
            if device is None:
                return self.rotary(first, length, kind)
            cos, sin = self.rotary.placed(device, first + length)
            return cos[first : first + length, :], sin[first : first + length, :]
        keep = np.ones((1, length), bool) if mask is None else mask[:, -length:]
        positions = np.reshape(first, (-1, 1)) + np.cumsum(keep, axis=1) - 1                        # [B,T]
        return self.rotary.at(np.maximum(positions, 0), kind)

    def _continued(self, state: StaticLayerCache, q: Tensor, k: Tensor, v: Tensor,
                   mask: Array | None) -> Tensor:
        """Attention behind what the cache holds; where that ends is read from the arrays' own memory, not
        known here."""
        if mask is not None:
            raise InputError("mask: a cache of fixed size takes no padding; decode such rows one by one")
        if self.rotary:
            cos, sin = state.angles(self.rotary)
            q, k = (Tensor(kernels.rope_at(z.data, cos, sin, state.positions,
                                           interleaved=self.rotary.interleaved)) for z in (q, k))
        state.store(k.data, v.data)
        o = kernels.decode_attention(q.data, state.k, state.v, state.lengths + q.shape[2],
                                     scale=self.head_dim**-0.5, window=self.window)
        return Tensor(o)

    def _extended(self, state: LayerCache, k: Tensor, v: Tensor, mask: Array | None) -> tuple[Tensor, Tensor]:
        """Keys and values of cached and new tokens, which the cache now holds too."""
        if k.requires_grad:
            raise RuntimeError("attention: a cache keeps no gradients; call with state= under no_grad()")
        if mask is not None:
            state.padding = state.padding + np.sum(~mask[:, -k.shape[2] :], axis=1)
        keys, values = state.append(k.data, v.data)
        return Tensor(keys), Tensor(values)
