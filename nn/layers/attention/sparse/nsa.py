"""Native sparse attention (Yuan et al. 2025, arXiv 2502.11089): three looks at the past, weighed per head.

    compressed   summaries of l tokens every d, those that have ended: c d + l − 1 ≤ t
    selected     the tokens of n blocks of l' tokens, which the summaries call important (selection.py)
    window       the last w tokens
    y = W_o concat_h Σ_b σ(g_{b,h}) o^b_h,   g = W_g x  [3,H]

Keys are summarised unturned; a summary is turned by the position of its first token.  (rope_before_compress:
turned ones are summarised instead.)  Which blocks are looked at is the same for the heads of a group, and a
constant to gradients; importances are read back to the host.  All three share keys and values, or have
projections of their own (separate_kv, the paper's choice).

Chunk mode forms the selected look under a mask, a product of all queries with all keys; recurrent mode
gathers the chosen blocks and forms n l' pairs per query, whatever the past."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.cache import LayerCache
from nn.errors import InputError
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from nn.layers.attention.grouped import extended
from nn.layers.attention.positions import angles, at_columns, first_columns, kept, positions
from nn.layers.attention.sparse.compressor import KINDS, Compressor
from nn.layers.attention.sparse.selection import importance, select
from nn.layers.formulas import attention_core, projection, visible_pairs
from nn.layers.linear import Linear
from nn.layers.masks import newest
from nn.layers.mode import KernelMode, select_mode
from nn.layers.precision import cast_to, widened
from nn.names import check_name
from nn.state import State
from nn.tensor import Array, Tensor, no_grad

OWN = ("compress_k_proj", "compress_v_proj", "window_k_proj", "window_v_proj")
ROWS = 512      # queries whose selected look is formed together in chunk mode


@dataclass(frozen=True)
class NSASettings(AttentionSettings):
    """Softmax attention over summaries, over chosen blocks and over a window."""

    num_kv_heads: int = 1                  # key/value heads; each chooses its blocks
    compress_size: int = 32                # l: tokens per summary
    compress_stride: int = 16              # d: tokens from one summary to the next
    compressor: str = "linear"             # mean, weights or linear
    rope_before_compress: bool = False     # summarise keys that are turned already
    block_size: int = 64                   # l': tokens per block that is chosen
    selected_blocks: int = 16              # n: blocks chosen, the forced ones included
    initial_blocks: int = 1                # first blocks that are always chosen
    local_blocks: int = 2                  # last blocks that are always chosen, the query's own included
    separate_kv: bool = True               # summaries and window have keys and values of their own
    window: int = 512                      # w: keys that the window holds, the query's own included

    fixed = ("causal", "backend", "sinks", "softcap", "attn_dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("compress_size", "compress_stride", "block_size", "local_blocks", "window")
        check_name("compressor", self.compressor, KINDS)
        for name in ("compress_size", "block_size"):
            if getattr(self, name) % self.compress_stride:
                raise InputError(f"{name}: {getattr(self, name)} is not a multiple of compress_stride = "
                                 f"{self.compress_stride}")
        if self.compress_size > self.block_size:
            raise InputError(f"compress_size: {self.compress_size} is above block_size = {self.block_size}")
        if self.initial_blocks < 0 or self.selected_blocks < self.initial_blocks + self.local_blocks:
            raise InputError(f"selected_blocks: {self.selected_blocks} is below initial_blocks + "
                             f"local_blocks = {self.initial_blocks + self.local_blocks}")

    def summaries(self, tokens: Any) -> Any:
        """Of so many tokens (a number, or an array), how many summaries have ended"""
        return np.maximum(0, (tokens - self.compress_size) // self.compress_stride + 1)

    def gathers(self, length: int, mode: str | None) -> bool:
        """Whether the selected look gathers its keys"""
        return select_mode(length, mode=mode) == KernelMode.RECURRENT

    def parameters(self, active: bool = False) -> dict[str, int]:
        compressors = sum(Compressor.parameters_of(self.compressor, self.compress_size, self.num_kv_heads,
                                                   self.head_dim, places) for places in (True, False))
        counts, narrow = super().parameters(active), self.widths[1]
        own = 4 * narrow * (self.hidden_size + self.attn_bias) if self.separate_kv else 0
        return counts | {"projections": counts["projections"] + own, "compressors": compressors,
                         "gates": 3 * self.num_heads * self.hidden_size}

    def cache_size(self, tokens: int) -> int | None:
        summaries = max(0, (tokens - self.compress_size) // self.compress_stride + 1)
        near = min(tokens, self.window) if self.separate_kv else 0
        return 2 * self.widths[1] * (tokens + summaries + self.compress_size - 1 + near)

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """scores: of the summaries, once more, for the choice"""
        rows, dims, keys = batch * self.num_heads, (self.head_dim, self.head_dim), past + length
        ended = int(self.summaries(keys))
        new = (ended - int(self.summaries(past))) * batch * self.num_kv_heads
        blocks = min(self.selected_blocks, -(-keys // self.block_size))
        gathered, every = length * blocks * self.block_size, visible_pairs(length, keys)
        pairs = gathered if self.gathers(length, mode) else every
        summing = Compressor.flops_of(self.compressor, self.compress_size, new, self.head_dim)
        own = 4 * projection(batch * length, (self.hidden_size, self.widths[1])) if self.separate_kv else 0
        return {"projections": super().flops(batch, length, past, mode)["projections"] + own,
                "gates": projection(batch * length, (self.hidden_size, 3 * self.num_heads)),
                "compressors": 2 * summing,
                "compressed": attention_core(rows, length * ended, *dims),
                "scores": 2 * rows * length * ended * self.head_dim,
                "selected": attention_core(rows, pairs, *dims),
                "window": attention_core(rows, visible_pairs(length, keys, self.window), *dims)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "window": 3,
                 "block_size": 2, "selected_blocks": 3}
        own, small = small, small | {"separate_kv": False}
        return {"mean": cls.create(**small, compress_size=2, compress_stride=1, compressor="mean"),
                "weights": cls.create(**small | {"selected_blocks": 4}, compress_size=2, compress_stride=2,
                                      compressor="weights", qk_norm="head"),
                "linear": cls.create(**small | {"selected_blocks": 2}, compress_size=2, compress_stride=1,
                                     compressor="linear", initial_blocks=0, local_blocks=1,
                                     rope_before_compress=True),
                "separate": cls.create(**own, compress_size=2, compress_stride=1,
                                       attn_bias=True, out_bias=True)}


@dataclass
class NSAState(State):
    """All keys and values, the summaries that have ended, and the tokens of those that have not."""

    cache: LayerCache     # turned keys, and values
    k: Array              # [B,G,C,Dh] summaries of keys
    v: Array              # [B,G,C,Dh] of values
    tail_k: Array         # [B,G,l−1,Dh] the newest keys as they are summarised, zeros before the first
    tail_v: Array         # [B,G,l−1,Dh] and values
    near: LayerCache | None = None      # keys and values of the last w tokens, if the window has its own


class NativeSparseAttention(CausalSelfAttention):
    """GroupedAttention's projections, gate_proj [3·H,D], compress_k, compress_v; of their own
    {compress,window}_{k,v}_proj [G·Dh,D]"""

    Settings = NSASettings
    static_cache = False

    def __init__(self, settings: NSASettings, dtype: Any = "float32") -> None:
        super().__init__(settings, dtype)
        s, options = settings, {"std": settings.init_std, "dtype": dtype}
        self.gate_proj = Linear(s.hidden_size, 3 * s.num_heads, **options)
        self.compress_k, self.compress_v = (
            Compressor(s.compressor, s.compress_size, s.num_kv_heads, s.head_dim, places=places, **options)
            for places in (True, False))

        for name in OWN if s.separate_kv else ():
            setattr(self, name, Linear(s.hidden_size, s.widths[1], bias=s.attn_bias, **options))

    def init_state(self, batch_size: int) -> NSAState:
        s, like = self.settings, self.parameters()[0].data

        def empty(rows: int) -> Array:
            return namespace(like).zeros((batch_size, s.num_kv_heads, rows, s.head_dim), dtype=like.dtype)

        left = s.compress_size - 1
        near = LayerCache() if s.separate_kv else None
        return NSAState(LayerCache(), empty(0), empty(0), empty(left), empty(left), near)

    def forward(self, x: Tensor, *, state: NSAState | None = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, NSAState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py"""
        length, cache = x.shape[1], state.cache if state is not None else None
        if not length:
            return x, state
        seen = self.first_position(cache)                                  # a number, or one per row
        q, k, v = self.projected(x)
        (raw, raw_v), (near, near_v) = (self._own(look, x, k, v) for look in ("compress", "window"))
        if self.rotary:
            cos, sin = angles(self.rotary, x, seen, length, mask)
            turn = partial(ops.rope, cos=cos, sin=sin, interleaved=self.rotary.interleaved)
            q, k = turn(q), turn(k)
            near = turn(near) if self.settings.separate_kv else near
            raw = turn(raw) if self.settings.rope_before_compress else raw
        before, at = np.reshape(seen, (-1, 1)), positions(seen, length, mask)            # [B,1] [B,T]
        if cache is not None:
            k, v = extended(cache, k, v, mask)                                           # [B,G,S,Dh]
        keep = newest(mask, k.shape[2])
        summaries = self._summaries(raw, raw_v, before, keep, k.shape[2], state)
        if not self.settings.separate_kv:
            near, near_v = k, v
        looks = [*self._far_and_selected(q, k, v, summaries, at, keep, mode),
                 self._window(q, near, near_v, state, mask)]
        return self.output(self._weighed(looks, x), x), state

    def _own(self, look: str, x: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,G,T,Dh] of one look, not yet turned: k and v if it has none of its own"""
        if not self.settings.separate_kv:
            return k, v
        project_k, project_v = (getattr(self, f"{look}_{name}_proj") for name in "kv")
        return self.heads(project_k(x), self.k_norm, self.qk_norm == "l2"), self.heads(project_v(x))

    def _window(self, q: Tensor, k: Tensor, v: Tensor, state: NSAState | None, mask: Array | None) -> Tensor:
        """o[B,H,T,Dh] of the last w tokens"""
        if state is not None and state.near is not None:
            k, v = extended(state.near, k, v, mask)
        o = ops.attention(q, k, v, scale=self.scale, window=self.window, mask=kept(mask, k.shape[2]))
        if state is not None and state.near is not None:
            state.near.trim(self.window)
        return o

    def _weighed(self, looks: list[Tensor | None], x: Tensor) -> Tensor:
        """Σ_b σ(g_b) o^b [B,H,T,Dh]; a look without keys is None"""
        logits = ops.linear(widened(x), widened(self.gate_proj.weight))           # float32 for half precision
        gates = ops.sigmoid(logits).reshape(*x.shape[:2], 3, self.num_heads).permute(2, 0, 3, 1)
        terms = [widened(look) * gates[i][..., None] for i, look in enumerate(looks) if look is not None]
        return cast_to(sum(terms[1:], start=terms[0]), x.dtype)

    def _far_and_selected(self, q: Tensor, k: Tensor, v: Tensor, summaries: tuple[Tensor, Tensor] | None,
                          at: np.ndarray, keep: Array | None, mode: str | None) -> list[Tensor | None]:
        """o[B,H,T,Dh] of the summaries (None before the first), and of the blocks that they choose"""
        far, scores = None, None
        if summaries is not None:
            ended = self.settings.summaries(at + 1)[..., None]                           # [B,T,1]
            seen = (np.arange(summaries[0].shape[2]) < ended)[:, None]                   # [B,1,T,C]
            far = ops.attention(q, *summaries, scale=self.scale, causal=False, mask=seen)
            scores = self._probabilities(q, summaries[0], seen)
        chosen = self._chosen(scores, at, (q.shape[0], self.num_kv_heads), k.shape[2])
        if keep is not None:                                    # every row from its first token on
            column = np.minimum(np.arange(k.shape[2]) + first_columns(keep)[:, None], k.shape[2] - 1)
            k, v = at_columns(k, column), at_columns(v, column)
        select_from = self._gathered if self.settings.gathers(q.shape[2], mode) else self._masked
        return [far, select_from(q, k, v, chosen, at, keep is None)]

    # ---- summaries ----

    def _summaries(self, k: Tensor, v: Tensor, before: np.ndarray, keep: Array | None, total: int,
                   state: NSAState | None) -> tuple[Tensor, Tensor] | None:
        """Of all tokens so far, keys and values [B,G,C,Dh]; None before the first has ended.  C is that of a
        row without padding; others have not ended all of them."""
        s, (batch, _, length, _) = self.settings, k.shape
        done = s.summaries(np.broadcast_to(before, (batch, 1)))                          # [B,1]
        ended, held = int(s.summaries(total)), 0 if state is None else int(state.k.shape[2])
        if state is not None:
            xp = namespace(k.data)
            k, v = (Tensor(xp.concat([tail, new.data], axis=2))
                    for tail, new in ((state.tail_k, k), (state.tail_v, v)))
            rest = k.shape[2] - (s.compress_size - 1)
            state.tail_k, state.tail_v = (xp.asarray(z.data[:, :, rest:, :], copy=True) for z in (k, v))
        count = ended - held if keep is None else length // s.compress_stride + 1
        if ended == 0 or (count == 0 and held):
            return (Tensor(state.k), Tensor(state.v)) if state is not None and held else None
        index = done + np.arange(count)                                                  # [B,m]
        start = 0 if keep is None else first_columns(keep)[:, None]
        first = start + index * s.compress_stride - (total - k.shape[2])
        new = self._turned(self.compress_k(k, first), index), self.compress_v(v, first)
        if state is None:
            return new[0][:, :, :ended], new[1][:, :, :ended]
        state.k, state.v = (self._placed(old, each, done, ended)
                            for old, each in zip((state.k, state.v), new, strict=True))
        return Tensor(state.k), Tensor(state.v)

    def _turned(self, summaries: Tensor, index: np.ndarray) -> Tensor:
        """By the positions of their first tokens"""
        if self.rotary is None or self.settings.rope_before_compress:
            return summaries
        kind = np.float64 if summaries.dtype == np.float64 else np.float32
        cos, sin = self.rotary.at(index * self.settings.compress_stride, kind)
        return ops.rope(summaries, cos, sin, self.rotary.interleaved)

    @staticmethod
    def _placed(old: Array, new: Tensor, done: np.ndarray, ended: int) -> Array:
        """[B,G,ended,Dh]: of every row, the old ones up to `done`, the new ones behind"""
        held, count = int(old.shape[2]), new.shape[2]
        slots = np.arange(ended)
        source = np.where(slots < done, slots, np.minimum(held + slots - done, held + count - 1))
        both = Tensor(namespace(old).concat([old, new.data], axis=2))
        return at_columns(both, np.maximum(source, 0)).data

    # ---- selection ----

    def _probabilities(self, q: Tensor, summaries: Tensor, seen: np.ndarray) -> np.ndarray:
        """[B,G,T,C] of the summaries, summed over the heads of a group"""
        batch, heads, length, width = q.shape
        groups, count = summaries.shape[1:3]
        with no_grad():
            rows = Tensor(q.data).reshape(batch, groups, heads // groups * length, width)
            scores = (rows @ ops.transpose(Tensor(summaries.data))).numpy()
        scores = scores.reshape(batch, groups, heads // groups, length, count)
        scores = scores.astype(np.float64 if scores.dtype == np.float64 else np.float32) * self.scale
        scores = np.where(seen[:, :, None], scores, -np.inf)
        most = scores.max(axis=-1, keepdims=True)
        p = np.exp(scores - np.where(np.isfinite(most), most, 0.0))
        return (p / np.maximum(p.sum(axis=-1, keepdims=True), np.finfo(p.dtype).tiny)).sum(axis=2)

    def _chosen(self, p: np.ndarray | None, at: np.ndarray, rows: tuple[int, int], keys: int) -> np.ndarray:
        """integers [B,G,T,n] of blocks, −1 behind the last"""
        s, length = self.settings, at.shape[1]
        count = -(-keys // s.block_size)
        scores = (np.zeros((*rows, length, count)) if p is None
                  else importance(p, count, s.compress_size, s.compress_stride, s.block_size))
        return select(scores, at, s.block_size, s.selected_blocks, s.initial_blocks, s.local_blocks)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, chosen: np.ndarray, at: np.ndarray,
                causal: bool) -> Tensor:
        """o[B,H,T,Dh] over all keys, those of blocks that are not chosen hidden"""
        parts, size, (length, keys) = [], self.settings.block_size, (q.shape[2], k.shape[2])
        count, share = -(-keys // size), q.shape[1] // k.shape[1]
        for start in range(0, length, ROWS):
            end = min(length, start + ROWS)
            seen = keys - length + end if causal else keys
            rows = chosen[:, :, start:end, :]
            picked = np.zeros((*rows.shape[:3], count + 1), bool)                        # the last for −1
            np.put_along_axis(picked, rows, True, axis=-1)
            mask = np.repeat(picked[..., :count], size, axis=-1)[..., :seen]
            mask &= np.arange(seen) <= at[:, None, start:end, None]
            parts.append(ops.attention(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], scale=self.scale,
                                       causal=causal, mask=np.repeat(mask, share, axis=1)))
        return parts[0] if len(parts) == 1 else ops.concat(parts, axis=2)

    def _gathered(self, q: Tensor, k: Tensor, v: Tensor, chosen: np.ndarray, at: np.ndarray,
                  causal: bool) -> Tensor:
        """o[B,H,T,Dh] over the keys of the chosen blocks alone, gathered for every query"""
        size, (batch, heads, length, width) = self.settings.block_size, q.shape
        groups, keys = k.shape[1:3]
        token = (chosen[..., None] * size + np.arange(size))
        token = token.reshape(*chosen.shape[:3], chosen.shape[3] * size)                       # [B,G,T,m]
        mask = (token >= 0) & (token <= at[:, None, :, None])
        mask &= np.repeat(chosen >= 0, size, axis=-1)
        row = np.arange(batch * groups).reshape(batch, groups, 1, 1) * keys
        index = (row + np.clip(token, 0, keys - 1)).transpose(0, 2, 1, 3)                      # [B,T,G,m]

        def picked(z: Tensor) -> Tensor:
            each = ops.take(z.reshape(batch * groups * keys, width), index)
            return each.reshape(batch * length, groups, index.shape[3], width)

        mask = mask.transpose(0, 2, 1, 3).reshape(batch * length, groups, 1, index.shape[3])
        mask = np.repeat(mask, heads // groups, axis=1)
        rows = q.permute(0, 2, 1, 3).reshape(batch * length, heads, 1, width)
        o = ops.attention(rows, picked(k), picked(v), scale=self.scale, causal=False, mask=mask)
        return o.reshape(batch, length, heads, width).permute(0, 2, 1, 3)
