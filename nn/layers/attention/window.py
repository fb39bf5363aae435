"""Attention over a window (Mistral; Jiang et al. 2023), and over a row's first tokens besides (StreamingLLM;
Xiao et al. 2023), with a cache that does not grow.

A query at position p sees key j if p − W < j ≤ p, or j < S0.  Keys stay turned by their own positions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from nn.layers.attention.grouped import unrecorded
from nn.layers.attention.positions import at_columns, kept, left_out, positions
from nn.layers.formulas import attention_core
from nn.layers.masks import newest
from nn.ops.merged import KeySet
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class SlidingAttentionSettings(AttentionSettings):
    """Softmax attention over a window, and over the first tokens if wanted."""

    window: int = 1024      # keys a query sees, itself included
    sink_tokens: int = 0    # first tokens of a row that every query sees besides, at most `window`

    fixed = ("causal", "backend")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("window")
        if not 0 <= self.sink_tokens <= self.window:
            raise InputError(f"sink_tokens: {self.sink_tokens} is not in 0 ... window = {self.window}")

    def cache_size(self, tokens: int) -> int | None:
        return None                                  # a ring, and the first tokens

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        looked = length * self.sink_tokens if past + length > self.window else 0
        more = attention_core(batch * self.num_heads, looked, self.head_dim, self.head_dim)
        return super().flops(batch, length, past, mode) | {"sink_tokens": more}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"window 3": cls.create(hidden_size=8, num_heads=2, num_kv_heads=1, window=3),
                "window 1": cls.create(hidden_size=8, num_heads=2, window=1, rope_theta=0.0),
                "first tokens": cls.create(hidden_size=8, num_heads=2, num_kv_heads=1, window=3,
                                           sink_tokens=2),
                "sinks": cls.create(hidden_size=8, num_heads=4, num_kv_heads=2, window=4, sink_tokens=1,
                                    sinks=True, qk_norm="head")}


@dataclass
class RingCache(State):
    """Keys and values of the last W tokens, token t in slot t mod W, and of a row's first S0 tokens."""

    k: Array                    # [B,G,W,Dh]
    v: Array                    # [B,G,W,Dh]
    first_k: Array              # [B,G,S0,Dh]
    first_v: Array              # [B,G,S0,Dh]
    padding: Array              # integers [B], on the host: how many of the tokens were padding
    offset: int = 0             # tokens seen

    def seen(self) -> Array | int:
        """Tokens that were not padding: a number, or one per row [B]"""
        return self.offset - self.padding if self.padding.any() else self.offset

    @property
    def held(self) -> int:
        """Slots in use"""
        return min(self.offset, int(self.k.shape[2]))

    def in_order(self, ring: Array) -> Array:
        """[B,G,held,Dh], the oldest first"""
        size = int(ring.shape[2])
        start = self.offset % size if self.offset > size else 0
        if not start:
            return ring[:, :, : self.held, :]
        return namespace(ring).concat([ring[:, :, start:, :], ring[:, :, :start, :]], axis=2)

    def write(self, k: Array, v: Array) -> None:
        """Tokens k, v [B,G,T,Dh] take the places of the oldest."""
        size, length = int(self.k.shape[2]), int(k.shape[2])
        count = min(length, size)
        slot = (self.offset + length - count) % size
        for ring, new in ((self.k, k), (self.v, v)):
            fit, skipped = min(count, size - slot), length - count
            ring[:, :, slot : slot + fit, :] = new[:, :, skipped : skipped + fit, :]
            if fit < count:
                ring[:, :, : count - fit, :] = new[:, :, skipped + fit :, :]
        self.offset += length


class SlidingWindowAttention(CausalSelfAttention):
    """Grouped attention over a window, its softmax merged with that over the first tokens."""

    Settings = SlidingAttentionSettings

    def __init__(self, settings: SlidingAttentionSettings, dtype: Any = "float32") -> None:
        super().__init__(settings, dtype)
        self.sink_tokens = settings.sink_tokens

    def init_state(self, batch_size: int) -> RingCache:
        s, like = self.settings, self.parameters()[0].data

        def empty(slots: int) -> Array:
            return namespace(like).zeros((batch_size, s.num_kv_heads, slots, s.head_dim), dtype=like.dtype)

        return RingCache(empty(s.window), empty(s.window), empty(s.sink_tokens), empty(s.sink_tokens),
                         np.zeros(batch_size, np.int64))

    def first_position(self, state: RingCache | None) -> Array | int:
        return state.seen() if state else 0

    def attended(self, q: Tensor, k: Tensor, v: Tensor, state: RingCache | None, mask: Array | None,
                 mode: str | None) -> Tensor:
        length, past = q.shape[2], state.offset if state else 0
        at = positions(state.seen() if state else 0, length, mask)                              # [B,T]
        looked = past + length > self.window                     # else the window holds the first tokens
        wanted = self.settings.sink_tokens and (state is not None or looked)
        firsts = self._first_tokens(k, v, at, state, mask) if wanted else None
        sets = [self._window(k, v, state, mask)]
        if firsts and looked:
            seen = np.arange(self.settings.sink_tokens) <= at[..., None] - self.window          # [B,T,S0]
            sets.append(KeySet(*firsts, causal=False, mask=seen[:, None]))
        return self.over(q, sets, cached=state is not None)

    def _window(self, k: Tensor, v: Tensor, state: RingCache | None, mask: Array | None) -> KeySet:
        """The tokens of the window, which the cache holds from now on"""
        if state is None:
            return KeySet(k, v, window=self.window, mask=kept(mask, k.shape[2]))
        unrecorded(k)
        length = k.shape[2]
        state.padding = state.padding + left_out(mask, length)
        if length == 1:                                              # any order of slots is as good
            state.write(k.data, v.data)
            keep = kept(mask, state.held)
            if keep is not None:
                keep = keep[..., (np.arange(state.held) - state.offset) % state.held]
            held_k, held_v = (Tensor(ring[:, :, : state.held, :]) for ring in (state.k, state.v))
            return KeySet(held_k, held_v, causal=False, mask=keep)
        xp = namespace(k.data)
        keys = xp.concat([state.in_order(state.k), k.data], axis=2)
        values = xp.concat([state.in_order(state.v), v.data], axis=2)
        state.write(k.data, v.data)
        return KeySet(Tensor(keys), Tensor(values), window=self.window, mask=kept(mask, keys.shape[2]))

    def _first_tokens(self, k: Tensor, v: Tensor, at: np.ndarray, state: RingCache | None,
                      mask: Array | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B,G,S0,Dh] of each row's first tokens, of old and new ones; undefined (but finite)
        where a row has fewer"""
        count, length = self.settings.sink_tokens, k.shape[2]
        if state is not None and not length:
            return Tensor(state.first_k), Tensor(state.first_v)
        keep = newest(mask, length)
        alone = keep is None and at.shape[0] == 1
        new = (at[:, None, :] == np.arange(count)[:, None]) & (True if keep is None else keep[:, None, :])
        if state is None and alone and length >= count:
            return k[:, :, :count], v[:, :, :count]
        column = np.broadcast_to(new.argmax(axis=2), (k.shape[0], count))                       # [B,S0]
        k, v = at_columns(k, column), at_columns(v, column)
        if state is not None:
            found = beside(new.any(axis=2)[:, None, :, None], k.data)                           # [B,1,S0,1]
            xp = namespace(k.data)
            state.first_k = xp.where(found, k.data, state.first_k)
            state.first_v = xp.where(found, v.data, state.first_v)
            k, v = Tensor(state.first_k), Tensor(state.first_v)
        return k, v
