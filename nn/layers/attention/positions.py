"""Where tokens stand in their rows, padding not counted: their rotary angles, and picking them."""

from functools import lru_cache

import numpy as np

from nn import ops
from nn.backends.array_api import on_device
from nn.dtypes import is_half
from nn.layers.masks import newest
from nn.layers.rotary import Rotary
from nn.tensor import Array, Tensor


def angles(rotary: Rotary, x: Tensor, first: Array | int, length: int,
           mask: Array | None) -> tuple[Array, Array]:
    """cos, sin [T,d/2] (or [B,1,T,d/2]) for `length` tokens behind `first` others, a number or one per row
    [B], in the precision of x and where x is."""
    kind = np.float32 if is_half(x.dtype) else x.dtype
    if mask is None and isinstance(first, int):
        if not on_device(x.data):
            return rotary(first, length, kind)
        cos, sin = rotary.placed(x.data.device, first + length)
        return cos[first : first + length, :], sin[first : first + length, :]
    return rotary.at(positions(first, length, mask), kind)


def positions(first: Array | int, length: int, mask: Array | None) -> np.ndarray:
    """integers [B,T] ([1,T] where all rows are alike): tokens of the row before each; 0 at padding"""
    if mask is None and isinstance(first, int):
        return _counted(first, length)
    keep = newest(mask, length)
    keep = np.ones((1, length), bool) if keep is None else keep
    return np.maximum(np.reshape(first, (-1, 1)) + np.cumsum(keep, axis=1) - 1, 0)


@lru_cache(maxsize=32)
def _counted(first: int, length: int) -> np.ndarray:
    """first ... first + length − 1 as [1,T], read-only: each step of a training finds the same array"""
    found = np.maximum(np.arange(first, first + length)[None], 0)
    found.flags.writeable = False
    return found


def kept(mask: Array | None, keys: int) -> Array | None:
    """[B,1,1,S] of the newest keys: what ops.attention takes"""
    newer = newest(mask, keys)
    return None if newer is None else newer[:, None, None, :]


def left_out(mask: Array | None, length: int) -> Array | int:
    """How many of the `length` newest tokens are padding: [B], or 0 without a mask"""
    keep = newest(mask, length)
    return 0 if keep is None else (~keep).sum(axis=1)


def first_columns(keep: Array) -> np.ndarray:
    """integers [B], the column of each row's first token in keep[B,S]; S where there is none"""
    return np.where(keep.any(axis=1), keep.argmax(axis=1), keep.shape[1])


def at_columns(x: Tensor, column: np.ndarray) -> Tensor:
    """[B,G,S,D] -> [B,G,n,D]: of row b the columns column[b], integers [B,n]"""
    batch, groups, length, width = x.shape
    rows = x.permute(0, 2, 1, 3).reshape(batch * length, groups, width)
    return ops.take(rows, column + length * np.arange(batch)[:, None]).permute(0, 2, 1, 3)
