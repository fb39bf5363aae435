"""Padded batches [B,T,...] to packed tokens [N,...] and back.

    indices, cu_seqlens = compute_unpadded_indices(mask)      # of booleans [B,T], True for tokens
    y = pad(layer(unpad(x, indices)), indices, batch, length)"""

from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.tensor import Array, Tensor


def compute_unpadded_indices(mask: Array) -> tuple[np.ndarray, np.ndarray]:
    """(indices int64 [N] of the tokens among the B·T places, row by row; cu_seqlens int32 [B+1], where each
    row's tokens begin among the N, and their end)"""
    keep = np.asarray(mask.numpy() if hasattr(mask, "numpy") else mask).astype(bool)
    if keep.ndim != 2:
        raise InputError(f"mask: shape {list(keep.shape)}; expected [batch, length]")
    ends = np.cumsum(np.sum(keep, axis=1))
    return np.flatnonzero(keep), np.concatenate([[0], ends]).astype(np.int32)


def unpad(x: Any, indices: np.ndarray) -> Any:
    """The tokens of x[B,T,...] one behind the other, [N,...]; a tensor's gradient goes back to its places.
    InputError unless the indices are places of x, each at most once."""
    if x.ndim < 2:
        raise InputError(f"unpad: shape {list(x.shape)}; expected [batch, length, ...]")
    _check(indices, x.shape[0] * x.shape[1])
    return _rows(_reshaped(x, (x.shape[0] * x.shape[1], *x.shape[2:])), indices)


def pad(x: Any, indices: np.ndarray, batch: int, length: int) -> Any:
    """The tokens x[N,...] at their places in [batch,length,...], zeros elsewhere; InputError as for unpad"""
    _check(indices, batch * length)
    if x.shape[0] != len(indices):
        raise InputError(f"pad: {x.shape[0]} tokens, {len(indices)} indices into {batch} x {length} places")
    source = np.zeros(batch * length, np.int64)                  # 0 is the row of zeros
    source[indices] = np.arange(1, len(indices) + 1)
    blank = namespace(_array(x)).zeros((1, *x.shape[1:]), dtype=x.dtype)
    whole = (ops.concat([Tensor(blank), x]) if isinstance(x, Tensor)
             else namespace(x).concat([blank, x], axis=0))
    return _reshaped(_rows(whole, source), (batch, length, *x.shape[1:]))


def _check(indices: np.ndarray, places: int) -> None:
    """InputError unless they are integers [N], different ones below `places`"""
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InputError(f"indices: {indices.dtype} {list(indices.shape)}; expected integers [N], as "
                         "compute_unpadded_indices gives them")
    if indices.size and not 0 <= np.min(indices) <= np.max(indices) < places:
        raise InputError(f"indices: {np.min(indices)} ... {np.max(indices)} are not all among the {places} "
                         "places of the batch")
    if len(np.unique(indices)) < len(indices):
        raise InputError("indices: a place comes twice, one of its tokens would be lost")


def _array(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else x


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return ops.reshape(x, shape) if isinstance(x, Tensor) else namespace(x).reshape(x, shape)


def _rows(x: Any, index: np.ndarray) -> Any:
    index = beside(index, _array(x))
    return ops.take(x, index) if isinstance(x, Tensor) else namespace(x).take(x, index, axis=0)
