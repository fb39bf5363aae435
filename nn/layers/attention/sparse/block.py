"""Block-sparse attention: a fixed pattern of blocks of b tokens (Child et al. 2019; Zaheer et al. 2020).

Block I of queries looks at block J of keys, J ≤ I, if one of these holds:
    local     I − J < local_blocks
    global    J < global_blocks
    strided   J mod stride = stride − 1
    random    J is one of random_blocks drawn for I
and within them at the tokens up to itself.  Blocks are counted from a row's first token, also when that has
been dropped since.  Without order (causal=False) |I − J| counts, and the first
global_blocks look at everything.  Only these tiles are computed.  Where rows begin with padding, their blocks
do not lie alike: such calls compute everything, under a mask."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nn import ops
from nn.errors import InputError
from nn.layers.attention.causal import AttentionSettings, CausalSelfAttention
from nn.layers.attention.grouped import extended
from nn.layers.attention.positions import positions
from nn.layers.formulas import attention_core
from nn.layers.masks import newest
from nn.ops.merged import KeySet
from nn.ops.tiled import Tile
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class BlockSparseSettings(AttentionSettings):
    """Softmax attention over blocks that are near, first, at a stride, or drawn."""

    block_size: int = 64       # tokens per block
    local_blocks: int = 4      # nearest blocks looked at, the query's own included
    global_blocks: int = 1     # first blocks, which all look at
    stride: int = 0            # every stride-th block is looked at by all; 0 = none
    random_blocks: int = 0     # earlier blocks drawn for every block
    random_seed: int = 0       # of that draw

    fixed = ("backend",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("block_size", "local_blocks")
        for name in ("global_blocks", "stride", "random_blocks"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is negative")
        if self.window or self.sinks:
            raise InputError("window, sinks: block-sparse attention has none; local_blocks is its window")

    def looks_at(self, i: int, count: int) -> np.ndarray:
        """booleans [count]: the blocks that block i of `count` looks at"""
        j = np.arange(count)
        near = i - j if self.causal else np.abs(i - j)
        kept = (near < self.local_blocks) | (j < self.global_blocks)
        if self.stride:
            kept |= j % self.stride == self.stride - 1
        if self.random_blocks and i:
            kept[list(_drawn(self.random_seed, i, self.random_blocks))] = True
        if not self.causal:
            return kept | (i < self.global_blocks)
        return kept & (j <= i)

    def tiles(self, length: int, past: int = 0, dropped: int = 0) -> list[Tile]:
        """One per block of queries, `length` of them behind `past` tokens and `dropped` others, which are
        not among the keys any more"""
        size, first, end, tiles = self.block_size, dropped + past, dropped + past + length, []
        for i in range(first // size, -(-end // size)):
            kept = np.flatnonzero(self.looks_at(i, -(-end // size)))
            kept = kept[(kept + 1) * size > dropped]
            runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
            ranges = tuple((max(0, int(run[0]) * size - dropped), min(end, int(run[-1] + 1) * size) - dropped)
                           for run in runs)
            tiles.append(Tile(max(0, i * size - first), min(length, (i + 1) * size - first), ranges))
        return tiles

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        pairs = sum(tile.pairs(self.causal) for tile in self.tiles(length, past))
        core = attention_core(batch * self.num_heads, pairs, self.head_dim, self.head_dim)
        return super().flops(batch, length, past, mode) | {"core": core}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        grouped = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "block_size": 2}
        return {"local, global": cls.create(**grouped, local_blocks=1, global_blocks=1, qk_norm="head"),
                "strided": cls.create(**grouped, local_blocks=1, global_blocks=0, stride=2),
                "drawn": cls.create(**grouped, local_blocks=2, global_blocks=0, random_blocks=1),
                "both ways": cls.create(**grouped, local_blocks=1, causal=False)}


@lru_cache(maxsize=4096)
def _drawn(seed: int, i: int, count: int) -> tuple[int, ...]:
    """Up to `count` of the blocks before block i"""
    found = np.random.default_rng((seed, i)).choice(i, min(count, i), replace=False)
    return tuple(int(j) for j in found)


class BlockSparseAttention(CausalSelfAttention):
    """Grouped attention, tile by tile (nn/ops/tiled.py)."""

    Settings = BlockSparseSettings
    static_cache = False

    def attended(self, q: Tensor, k: Tensor, v: Tensor, state: Any, mask: Array | None,
                 mode: str | None) -> Tensor:
        s, length = self.settings, q.shape[2]
        if state is not None:
            k, v = extended(state, k, v, mask)
        past = k.shape[2] - length
        new = newest(mask, past + length)
        keep = np.ones((1, past + length), bool) if new is None else new
        first = 0 if state is None else np.maximum(state.offset - state.padding - keep.sum(axis=1), 0)
        dropout = self.attn_dropout if self.training and state is None else 0.0
        if mask is None and not (s.softcap or dropout) and np.size(first) == 1:
            tiles = s.tiles(length, past, int(np.reshape(first, ())))
            return ops.tiled_attention(q, k, v, tiles, scale=self.scale, causal=s.causal)
        pairs = self._pattern(first, keep, length)
        return self.over(q, [KeySet(k, v, causal=s.causal, mask=pairs)], cached=state is not None)

    def _pattern(self, first: Array | int, mask: Array, length: int) -> np.ndarray:
        """booleans [B,1,T,S]: the pairs looked at, of rows whose blocks begin behind their padding; first:
        tokens that were dropped, a number or one per row [B]"""
        block = positions(first, mask.shape[1], mask) // self.settings.block_size               # [B,S]
        own, row = np.unique(block[:, mask.shape[1] - length :], return_inverse=True)
        table = [self.settings.looks_at(int(i), int(block.max(initial=0)) + 1) for i in own]
        pairs = (np.stack(table)[row.reshape(-1, length)[:, :, None], block[:, None, :]] if length
                 else np.zeros((len(block), 0, mask.shape[1]), bool))
        return (pairs & mask[:, None, :])[:, None]
