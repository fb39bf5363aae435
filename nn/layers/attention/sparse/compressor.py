"""Summaries of l tokens every d tokens, of keys or of values, as native sparse attention has them.

    mean      Σ_i x_{cd+i} / l
    weights   Σ_i w_{g,i} (x_{cd+i} + e_i),  w [G,l], start 1/l
    linear    W_g [x_{cd} + e_0 | ... | x_{cd+l−1} + e_{l−1}],  W [G,l·dk,dk]

e [l,dk] tells the places within a block apart; values have none."""

from typing import Any

import numpy as np

from nn import ops
from nn.layers.attention.positions import at_columns
from nn.layers.module import Module, Parameter
from nn.tensor import Tensor

KINDS = ("mean", "weights", "linear")


class Compressor(Module):
    """weight (none for "mean"), position [l,dk] (keys only)"""

    def __init__(self, kind: str, size: int, groups: int, width: int, *, places: bool, std: float,
                 dtype: Any) -> None:
        self.kind, self.size = kind, size
        places = places and kind != "mean"
        self.position = Parameter((size, width), std=std, dtype=dtype, decay=False) if places else None
        if kind == "weights":
            self.weight = Parameter((groups, size), fill=1.0 / size, dtype=dtype, decay=False)
        if kind == "linear":
            self.weight = Parameter((groups, size * width, width), std=std, dtype=dtype)

    def forward(self, x: Tensor, first: np.ndarray) -> Tensor:
        """x[B,G,S,dk], of row b the blocks that begin at columns first[b], integers [B,m] -> [B,G,m,dk]"""
        batch, groups, length, width = x.shape
        column = np.clip(first[..., None] + np.arange(self.size), 0, length - 1)
        count = first.shape[1]
        blocks = at_columns(x, column.reshape(batch, count * self.size))
        blocks = blocks.reshape(batch, groups, count, self.size, width)
        if self.position is not None:
            blocks = blocks + self.position
        if self.kind == "mean":
            return ops.mean(blocks, axis=3)
        if self.kind == "weights":
            return ops.sum(blocks * self.weight[:, None, :, None], axis=3)
        return blocks.reshape(batch, groups, count, self.size * width) @ self.weight

    @staticmethod
    def parameters_of(kind: str, size: int, groups: int, width: int, places: bool) -> int:
        own = {"mean": 0, "weights": groups * size, "linear": groups * size * width * width}[kind]
        return own + (size * width if places and kind != "mean" else 0)

    @staticmethod
    def flops_of(kind: str, size: int, blocks: int, width: int) -> int:
        """Of `blocks` blocks, all heads' together"""
        return 2 * blocks * size * width * width if kind == "linear" else 0
