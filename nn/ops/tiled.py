"""Softmax attention of blocks of queries, each over blocks of keys of its own."""

from dataclasses import dataclass
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen
from nn.ops.attention import _check
from nn.ops.count import visible_pairs
from nn.tensor import Array, Op, Tensor


@dataclass(frozen=True)
class Tile:
    """Queries start ... end − 1, and the ranges of keys that they look at, in ascending order."""

    start: int
    end: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def keys(self) -> int:
        return sum(end - start for start, end in self.ranges)

    def pairs(self, causal: bool) -> int:
        """(query, key) pairs looked at"""
        return visible_pairs(self.end - self.start, self.keys, causal=causal)


class TiledAttention(Op):
    """Rows of one tile are attention over its keys alone, O_I = softmax(scale Q_I K_Iᵀ) V_I, so is their
    backward: dQ_I as in Attention; dK and dV of a key are sums over the tiles that look at it, added in the
    tiles' order.  Keys of no tile are neither read nor given a gradient."""

    def forward(self, q: Array, k: Array, v: Array, *, scale: float, causal: bool,
                tiles: list[Tile]) -> Array:
        self.q, self.k, self.v, self.tiles = q, k, v, tiles
        self.options = {"scale": scale, "causal": causal}
        xp, parts = namespace(q), [kernels.attention(*self._of(tile), **self.options) for tile in tiles]
        self.sums = [lse for _, lse in parts]
        self.o = (xp.concat([o for o, _ in parts], axis=2) if parts
                  else xp.zeros((*q.shape[:3], v.shape[3]), dtype=q.dtype))
        return self.o

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        q, _, v = (x.shape for x in inputs)
        return 2 * q[0] * q[1] * sum(t.pairs(options["causal"]) for t in self.tiles) * (q[3] + v[3])

    def backward(self, do: Array) -> Any:
        xp, dqs = namespace(do), []
        dk, dv = (xp.zeros(x.shape, dtype=widen(x[:0, ...]).dtype) for x in (self.k, self.v))
        for tile, lse in zip(self.tiles, self.sums, strict=True):
            rows = slice(tile.start, tile.end)
            dq, dk_tile, dv_tile = kernels.attention_backward(
                do[:, :, rows, :], *self._of(tile), self.o[:, :, rows, :], lse, **self.options)
            dqs.append(dq)
            at = 0
            for start, end in tile.ranges:
                for sums, part in ((dk, dk_tile), (dv, dv_tile)):
                    piece = part[:, :, at : at + end - start, :]
                    sums[:, :, start:end, :] = sums[:, :, start:end, :] + widen(piece)
                at += end - start
        dq = xp.concat(dqs, axis=2) if dqs else xp.zeros_like(self.q)
        return dq, narrow(dk, self.k.dtype), narrow(dv, self.v.dtype)

    def _of(self, tile: Tile) -> tuple[Array, Array, Array]:
        """Its queries, keys and values"""
        xp = namespace(self.q)
        k, v = (xp.concat([x[:, :, start:end, :] for start, end in tile.ranges], axis=2)
                if len(tile.ranges) > 1 else x[:, :, tile.ranges[0][0] : tile.ranges[0][1], :]
                for x in (self.k, self.v))
        return self.q[:, :, tile.start : tile.end, :], k, v


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, tiles: list[Tile], *, scale: float | None = None,
                    causal: bool = True) -> Tensor:
    """q[B,H,T,Dk], k[B,G,S,Dk], v[B,G,S,Dv] -> [B,H,T,Dv], query by query within the keys of its tile.

    The tiles' queries are 0 ... T − 1 without gaps.  causal: a tile's last query stands at its last key,
    those before it one key earlier each; its other keys all precede them.  scale: Dk^−½ unless given."""
    _check(q, k, v)
    edges = [0, *(tile.end for tile in tiles)]
    if [tile.start for tile in tiles] != edges[:-1] or edges[-1] != q.shape[2]:
        raise ValueError(f"tiled_attention: tiles begin at {[tile.start for tile in tiles]} and end at "
                         f"{edges[1:]}; they must follow each other from 0 to T = {q.shape[2]}")
    for tile in tiles:
        if not tile.ranges or any(not 0 <= start < end <= k.shape[2] for start, end in tile.ranges):
            raise ValueError(f"tiled_attention: ranges {tile.ranges} of keys; they must not be empty and lie "
                             f"within 0 ... S = {k.shape[2]}")
    return TiledAttention.apply(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, causal=causal,
                                tiles=tiles)
