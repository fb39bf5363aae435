"""What a router decided, and what it decided it by: what balance losses and figures are made of."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nn.backends import kernels
from nn.backends.array_api import beside, namespace
from nn.layers.masks import newest
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class Routing:
    """N tokens' choices: weights[N,K] (differentiable) and experts[N,K]; expert E means dropped."""

    weights: Tensor
    experts: Array


@dataclass(frozen=True)
class Rows:
    """Where a router's N = B·T rows stand."""

    batch: int                   # sequences, B
    length: int                  # tokens of each, T
    by_time: bool = False        # rows are ordered by time, then by sequence; else by sequence, then by time
    keep: Array | None = None    # booleans [N], False for padding, beside the rows; None: no padding

    @classmethod
    def of(cls, x: Tensor, mask: Array | None, by_time: bool) -> "Rows":
        """Those of x[B,T,D], padded as nn/layers/protocol.py says."""
        batch, length, _ = x.shape
        keep = newest(mask, length)
        if keep is not None:
            keep = beside(keep, x.data)
            keep = keep.T.reshape(-1) if by_time else keep.reshape(-1)
        return cls(batch, length, by_time, keep)

    def in_sequences(self, x: Tensor) -> Tensor:
        """[N,E] -> [B,T,E]"""
        if self.by_time:
            return x.reshape(self.length, self.batch, x.shape[-1]).permute(1, 0, 2)
        return x.reshape(self.batch, self.length, x.shape[-1])


@dataclass(frozen=True)
class Decision:
    """One pass of a router over N tokens."""

    rows: Rows
    logits: Tensor                 # [N,E] without the noise of noisy top-k
    noisy: Tensor                  # [N,E] with it; `logits` themselves without noise
    spread: Tensor | None          # [N,E] standard deviation of that noise
    probs: Tensor                  # [N,E] scores over all experts, which add up to 1
    weights: Tensor                # [N,K] gates, before anything is dropped
    experts: Array                 # [N,K] before anything is dropped
    seen: Array | None = None      # [E] pairs counted in earlier micro-batches of the step

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, E)"""
        return (*self.experts.shape, self.probs.shape[-1])

    @cached_property
    def kept(self) -> Array | None:
        """[N,1] 1 for tokens, 0 for padding; None: no padding"""
        keep = self.rows.keep
        return None if keep is None else namespace(keep).astype(keep, self.probs.dtype)[:, None]

    @cached_property
    def tokens(self) -> Any:
        """How many are no padding, at least 1: a number, or an array [] where there is a mask"""
        if self.kept is None:
            return max(1, self.shape[0])
        return namespace(self.kept).clip(namespace(self.kept).sum(self.kept), 1.0, None)

    @cached_property
    def chosen(self) -> Array:
        """[N,E] 1 where the token goes to the expert, 0 elsewhere and at padding"""
        xp = namespace(self.experts)
        hits = self.experts[:, :, None] == xp.arange(self.shape[2])                            # [N,K,E]
        chosen = xp.sum(xp.astype(hits, self.probs.dtype), axis=1)
        return chosen if self.kept is None else chosen * self.kept

    @cached_property
    def counts(self) -> Array:
        """[E] pairs of each expert"""
        return counted(self.experts, self.shape[2], self.kept, self.probs.dtype)

    def masked(self, x: Tensor) -> Tensor:
        """[N,...] with zeros at padding"""
        return x if self.kept is None else x * Tensor(self.kept.reshape(-1, *[1] * (x.ndim - 1)))

    def mean(self, x: Tensor) -> Tensor:
        """Over the tokens: [N,...] -> [...]"""
        return self.masked(x).sum(axis=0) / self.tokens


def counted(experts: Array, num_experts: int, kept: Array | None, dtype: Any) -> Array:
    """[E] how often each expert stands in experts[N,K] (padding, where kept[N,1] is 0, left out)"""
    xp, (tokens, top_k) = namespace(experts), experts.shape
    ones = xp.ones((tokens, top_k), dtype=dtype)
    weights = (ones if kept is None else ones * kept).reshape(-1, 1)
    return kernels.scatter_add(weights, xp.reshape(experts, (-1,)), num_experts)[:, 0]
