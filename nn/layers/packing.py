"""Packed rows: documents one behind the other in a row, none of which sees another.

    y, _ = block(x, segment_ids=ids)     x [B,T,D], ids integers [B,T]: of which document a token is, 0: none

The tokens of a document get what they get in a row of their own: positions begin at 0, states, caches and
convolutions are empty, n-grams and means begin anew.  So they are computed, too: documents are taken out of
their rows into batches, those of a similar length together (less than twice as long as one another, so that
less than half of a batch is filling), and put back.  Nothing at all is computed between two documents, which
under a mask over the row would be computed and thrown away."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.masks import newest
from nn.layers.module import Module
from nn.layers.noise import drawing, drawn_apart
from nn.ops.gather import as_integers
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class Group:
    """Documents of a similar length."""

    index: np.ndarray       # integers [n,L]: their tokens among the B·T of all rows; the first as filling
    inside: np.ndarray      # booleans [n,L], False for filling


class Documents:
    """Where the documents of segment_ids [B,T] lie.  InputError unless they are integers of 0 or more, and
    the tokens of a document stand together."""

    def __init__(self, segment_ids: Any) -> None:
        ids = as_integers("segment_ids", segment_ids)
        ids = ids.numpy() if hasattr(ids, "numpy") else np.asarray(ids)
        if ids.ndim != 2 or (ids < 0).any():
            raise InputError(f"segment_ids: shape {list(ids.shape)}; give integers [B,T], the number of each "
                             "token's document, 0 for none")
        self.shape = ids.shape
        first, length = _runs(ids)
        self.padded = int(length.sum()) < ids.size
        self.groups = list(_grouped(first, length))
        self.place = np.full(ids.size, sum(group.index.size for group in self.groups))
        start = 0
        for group in self.groups:
            self.place[group.index[group.inside]] = start + np.flatnonzero(group.inside)
            start += group.index.size

    @property
    def whole_rows(self) -> bool:
        """Whether every row is one document"""
        return not self.padded and all(group.index.shape == self.shape for group in self.groups)

    def mask(self, mask: Array | None) -> Array | None:
        """booleans [B,T]: tokens of documents that the mask keeps, too; None: all"""
        keep = newest(mask, self.shape[1])
        if not self.padded:
            return keep
        inside = (self.place < sum(group.index.size for group in self.groups)).reshape(self.shape)
        return inside if keep is None else inside & keep

    def positions(self, mask: Array | None = None) -> np.ndarray:
        """integers [B,T]: how many tokens of its document stand before each; 0 where there is none"""
        keep = newest(mask, self.shape[1])
        kept = None if keep is None else np.asarray(keep).reshape(-1)
        found = np.zeros(self.place.size, np.int64)
        for group in self.groups:
            counted = group.inside if kept is None else group.inside & kept[group.index]
            found[group.index[group.inside]] = np.maximum(np.cumsum(counted, axis=1) - 1, 0)[group.inside]
        return found.reshape(self.shape)


def segment_ids_of(cu_seqlens: Any) -> np.ndarray:
    """integers [1,N] from integers [n+1]: where each of n sequences begins among N tokens, the first at 0,
    and their end, as nn.layers.padding has it.  Sequences without tokens are none."""
    edges = np.asarray(cu_seqlens)
    if edges.ndim != 1 or len(edges) < 1 or edges[0] != 0 or (np.diff(edges) < 0).any():
        raise InputError(f"cu_seqlens: {edges.tolist()}; give where sequences begin, 0 first, and their end")
    return np.repeat(np.arange(1, len(edges)), np.diff(edges))[None]


def _runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """integers [n], [n]: the first token and the number of tokens of every document"""
    new = np.ones(ids.shape, bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    first = np.flatnonzero(new)
    length = np.diff(first, append=ids.size)
    number = ids.reshape(-1)[first]
    first, length, number = (x[number > 0] for x in (first, length, number))
    rows = first // max(1, ids.shape[1])
    named = np.stack([rows, number], axis=1)
    found, count = np.unique(named, axis=0, return_counts=True)
    if (count > 1).any():
        row, again = found[count > 1][0]
        raise InputError(f"segment_ids: row {row} comes back to document {again}; the tokens of a document "
                         "stand together")
    return first, length


def _grouped(first: np.ndarray, length: np.ndarray) -> Iterator[Group]:
    """Lengths 1, 2, 3 ... 4, 5 ... 8, and so on"""
    size = np.ceil(np.log2(np.maximum(length, 1))).astype(int)
    for each in np.unique(size):
        start, count = first[size == each, None], length[size == each, None]
        step = np.arange(int(count.max()))
        inside = step < count
        yield Group(np.where(inside, start + step, start), inside)


def by_document(block: Module, function: Callable[..., tuple[Tensor, Any]], x: Tensor, documents: Documents,
                mask: Array | None = None, ids: Array | None = None, **options: Any) -> Tensor:
    """y of x[B,T,...]: function(x, mask=, ids=, **options), the block's call, on the documents; zeros where
    there is none.  Each group draws random numbers of its own."""
    if tuple(x.shape[:2]) != documents.shape:
        raise InputError(f"segment_ids: shape {list(documents.shape)}; expected [B,T] = {list(x.shape[:2])}")
    keep = newest(mask, x.shape[1])
    more = {} if ids is None else {"ids": ids}
    if documents.whole_rows:
        return function(x, mask=keep, **more, **options)[0]
    rows = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    tokens = sum(int(group.inside.sum()) for group in documents.groups)
    parts, emitted, drawn = [], [], drawing(block)
    for i, group in enumerate(documents.groups):
        given = {name: _picked(values, group.index) for name, values in more.items()}
        with drawn_apart(drawn, i):
            part, own = _emitting(function, ops.take(rows, group.index), mask=_mask(keep, group), **given,
                                  **options)
        parts.append(part.reshape(group.index.size, *part.shape[2:]))
        emitted.append((float(group.inside.sum()) / tokens, own))
    _emit_means(emitted)
    if documents.padded:
        parts.append(Tensor(namespace(x.data).zeros((1, *x.shape[2:]), dtype=x.dtype)))
    return ops.take(ops.concat(parts, axis=0), documents.place.reshape(documents.shape))


def _picked(values: Array, index: np.ndarray) -> Array:
    """values[B,T] of the tokens index[n,L]"""
    flat = values.reshape(-1)
    return namespace(flat).take(flat, beside(index.reshape(-1), flat), axis=0).reshape(index.shape)


def _mask(keep: Array | None, group: Group) -> np.ndarray | None:
    """booleans [n,L]: tokens that are not filling, nor padding within their documents"""
    if keep is None:
        return None if group.inside.all() else group.inside
    keep = keep.numpy() if hasattr(keep, "numpy") else np.asarray(keep)
    return np.asarray(group.inside & keep.reshape(-1)[group.index])


def _emitting(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Tensor, auxiliary.Auxiliary]:
    """(y, what the function emitted)"""
    if not auxiliary.collecting():
        return function(*args, **options)[0], auxiliary.Auxiliary()
    with auxiliary.collect() as own:
        return function(*args, **options)[0], own


def _emit_means(emitted: list[tuple[float, auxiliary.Auxiliary]]) -> None:
    """What groups emitted is emitted once: means over tokens, as of one call"""
    for each in zip(*(own.losses for _, own in emitted), strict=True):
        weighted = [loss * share for (_, loss), (share, _) in zip(each, emitted, strict=True)]
        auxiliary.emit_loss(each[0][0], sum(weighted[1:], start=weighted[0]))
    for figures in zip(*(own.figures for _, own in emitted), strict=True):
        shares = (share for share, _ in emitted)
        auxiliary.emit_figure(figures[0][0], sum(value * share for (_, value), share
                                                 in zip(figures, shares, strict=True)))
