"""Engram: a table of n-grams, found by hashing token ids and gated by the hidden state (DeepSeek-AI 2026).

    e = the rows of all n-grams that end here, side by side                          n = 2 ... max_ngram
    s = ⟨RMSNorm(W_k e), RMSNorm(h)⟩ / √D,    α = σ(sign(s) √|s|),    v = α ⊙ W_v e
    y = v + SiLU(conv(RMSNorm(v)))               depthwise over time, dilated by max_ngram

With several streams each has its W_k and norms, and all share W_v.  Hashing is host work on integers: rows,
unlike everything else, do not depend on weights."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure, emit_loss
from nn.layers.conv import ShortConv, conv_flops
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.masks import masked, newest
from nn.layers.memory.hashing import HashTables, hash_tables
from nn.layers.module import Module, Parameter
from nn.layers.protocol import Block, BlockSettings
from nn.ops.gather import as_integers
from nn.ops.roots import signed_sqrt
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class EngramSettings(BlockSettings):
    """A hashed memory of n-grams."""

    vocab_size: int = 129_280                          # token ids
    engram_vocab_size: tuple[int, ...] = ()            # rows of the tables of order 2, 3, ...; () = 5 ids
    max_ngram: int = 3                                 # tokens in the longest n-gram
    n_embed_per_ngram: int = 512                       # width of what is stored for an order
    n_head_per_ngram: int = 8                          # tables an order is spread over
    kernel_size: int = 4                               # taps of the convolution
    dilation: int = 0                                  # tokens between its taps; 0 = max_ngram
    n_streams: int = 1                                 # residual streams; x is [B,T,n,D] if more than one
    pad_id: int = 2                                    # the id that stands before the first token
    seed: int = 0                                      # of the multipliers
    layer: int = 0                                     # which layer of the model
    layer_ids: tuple[int, ...] = ()                    # all layers with tables; () = every layer
    canonical: tuple[int, ...] = field(default=(), repr=False)   # canonical id of every token; () = itself
    norm_eps: float = 1e-6                             # of the norms of key and query
    conv_eps: float = 1e-5                             # of the norm before the convolution
    table_std: float = 0.02                            # the table starts as Normal(0, table_std)
    gate_coef: float = 0.0                             # penalty on the mean gate
    table_coef: float = 0.0                            # penalty on the squares of the rows looked up

    def __post_init__(self) -> None:
        self._positive("hidden_size", "vocab_size", "n_head_per_ngram", "kernel_size", "n_streams")
        if self.max_ngram < 2 or len(self.sizes) != self.max_ngram - 1 or min(self.sizes) < 1:
            raise InputError(f"engram_vocab_size: {list(self.sizes)}; one size of 1 or more for each order "
                             f"2 ... max_ngram = {self.max_ngram}")
        if self.n_embed_per_ngram < 1 or self.n_embed_per_ngram % self.n_head_per_ngram:
            raise InputError(f"n_embed_per_ngram: {self.n_embed_per_ngram} is not a multiple of "
                             f"n_head_per_ngram = {self.n_head_per_ngram}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise InputError(f"pad_id: {self.pad_id} is outside 0 ... {self.vocab_size - 1}")
        if self.canonical and (len(self.canonical) != self.vocab_size or min(self.canonical) < 0):
            raise InputError(f"canonical: {len(self.canonical)} ids, none negative, for "
                             f"vocab_size = {self.vocab_size} tokens")
        if self.layer_ids and self.layer not in self.layer_ids:
            raise InputError(f"layer_ids: {list(self.layer_ids)} do not name layer {self.layer}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the tables of each order, at least."""
        return tuple(self.engram_vocab_size) or (5 * self.vocab_size,) * (self.max_ngram - 1)

    @property
    def width(self) -> int:
        """De, of all that is looked up for a token."""
        return (self.max_ngram - 1) * self.n_embed_per_ngram

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return self.n_streams * self.hidden_size

    @cached_property
    def canonical_table(self) -> np.ndarray:
        """`canonical` as int64[V]"""
        return np.array(self.canonical, np.int64)

    @cached_property
    def tables(self) -> HashTables:
        """Multipliers and primes."""
        ids = max(self.canonical) + 1 if self.canonical else self.vocab_size
        layers = self.layer_ids or range(self.layer + 1)
        return hash_tables(self.layer, layers, self.sizes, self.n_head_per_ngram, ids, self.seed)

    def parameters(self, active: bool = False) -> dict[str, int]:
        rows = self.tables.heads if active else self.tables.rows
        return {"table": rows * (self.n_embed_per_ngram // self.n_head_per_ngram),
                "projections": (1 + self.n_streams) * self.hidden_size * (self.width + 1),
                "norms": 3 * self.channels, "conv": self.channels * self.kernel_size}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens = batch * length
        return {"projections": projection(tokens, *[(self.width, self.hidden_size)] * (1 + self.n_streams)),
                "conv": conv_flops(tokens, self.channels, self.kernel_size)}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        small = {"vocab_size": 11, "n_head_per_ngram": 2, "n_embed_per_ngram": 4}
        return {"": cls.create(hidden_size=8, engram_vocab_size=(11, 13), **small),
                "bigrams of canonical ids": cls.create(
                    hidden_size=6, max_ngram=2, kernel_size=2, dilation=1, pad_id=0, seed=3, layer=2,
                    layer_ids=(1, 2), engram_vocab_size=(5,), canonical=(0, 1, 2, 0, 1, 3, 3, 4, 5, 6, 2),
                    **small)}


@dataclass
class EngramState(State):
    """The newest tokens that n-grams and the convolution still reach."""

    ids: np.ndarray      # int64[B, max_ngram − 1], canonical; on the host
    tail: Array          # [B, (kernel_size − 1) · dilation, n·D], what the convolution took in


class StreamNorm(Module):
    """RMSNorm over the last axis with a weight of its own for every stream: weight [n,D]"""

    def __init__(self, streams: int, width: int, eps: float, dtype: Any) -> None:
        self.weight = Parameter((streams, width), fill=1.0, dtype=dtype, decay=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[...,n,D] -> [...,n,D]"""
        streams, width = self.weight.shape
        if streams == 1:
            return ops.rms_norm(x, self.weight.reshape(width), self.eps)
        ones = Tensor(namespace(x.data).ones((width,), dtype=self.weight.dtype))
        return ops.rms_norm(x, ones, self.eps) * self.weight


class Engram(Block):
    """table [rows,d_e], v_proj [D,De] + b, k_proj [n·D,De] + b, k_norm, q_norm, conv_norm [n,D],
    conv [n·D,K]"""

    Settings = EngramSettings
    needs = ("ids",)
    prenorm = False

    def __init__(self, settings: EngramSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        self.table = Parameter((s.tables.rows, s.n_embed_per_ngram // s.n_head_per_ngram), std=s.table_std,
                               dtype=dtype, decay=False)
        self.v_proj = Linear(s.width, s.hidden_size, bias=True, std=s.down_std, dtype=dtype)
        self.k_proj = Linear(s.width, s.channels, bias=True, std=s.init_std, dtype=dtype)
        self.k_norm, self.q_norm, self.conv_norm = (
            StreamNorm(s.n_streams, s.hidden_size, eps, dtype)
            for eps in (s.norm_eps, s.norm_eps, s.conv_eps))
        self.conv = ShortConv(s.channels, s.kernel_size, dilation=s.dilation or s.max_ngram, dtype=dtype)
        self.conv.weight = Parameter((s.channels, s.kernel_size), dtype=dtype)     # zeros: y = v at the start

    def init_state(self, batch_size: int) -> EngramState:
        s = self.settings
        ids = np.full((batch_size, s.max_ngram - 1), self._canonical(np.array(s.pad_id)), np.int64)
        return EngramState(ids, self.zeros(batch_size, self.conv.reach, s.channels))

    def forward(self, x: Tensor, *, state: EngramState | None = None, mask: Array | None = None,
                mode: str | None = None, ids: Array = None) -> tuple[Tensor, EngramState | None]:
        """x[B,T,D] or [B,T,n,D], ids[B,T] -> y, of the shape of x; see nn/layers/protocol.py"""
        s, (batch, length) = self.settings, x.shape[:2]
        shape = (batch, length, s.n_streams, s.hidden_size)
        before = state or self.init_state(batch)
        rows, newest_ids = self.lookup(ids, before.ids, mask)
        e = ops.take(self.table, rows).reshape(batch, length, s.width)
        gate = self._gate(e, x.reshape(*shape))                                               # [B,T,n,1]
        v = gate * self.v_proj(e).reshape(batch, length, 1, s.hidden_size)                    # [B,T,n,D]
        flat = masked(self.conv_norm(v).reshape(batch, length, s.channels), mask)
        mixed, tail = self.conv(flat, namespace(x.data).astype(before.tail, x.dtype))
        self._emit(gate, rows, mask)
        y = (v + mixed.reshape(*shape)).reshape(*x.shape)
        if state is None:
            return y, None
        return y, EngramState(newest_ids, namespace(tail).astype(tail, before.tail.dtype))

    def lookup(self, ids: Array, tail: np.ndarray,
               mask: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(rows [B,T,heads] of the table, the tail behind them); ids that a device has are read back"""
        ids = as_integers("ids", ids)
        host = ids.numpy() if hasattr(ids, "numpy") else np.asarray(ids)
        canonical, keep = self._canonical(host), newest(mask, host.shape[1])
        if keep is not None:
            keep = keep.numpy() if hasattr(keep, "numpy") else np.asarray(keep)
            canonical = np.where(keep, canonical, self._canonical(np.array(self.settings.pad_id)))
        whole = np.concatenate([tail, canonical], axis=1)
        return self.settings.tables.lookup(whole), whole[:, host.shape[1] :].copy()

    def _canonical(self, ids: np.ndarray) -> np.ndarray:
        """int64; negative ids, markers of padding, stay as they are"""
        ids = ids.astype(np.int64)
        if (ids >= self.settings.vocab_size).any():
            raise InputError(f"ids: {ids.max()} is outside 0 ... {self.settings.vocab_size - 1}")
        if not self.settings.canonical:
            return ids
        return np.where(ids < 0, ids, self.settings.canonical_table[np.maximum(ids, 0)])

    def _gate(self, e: Tensor, h: Tensor) -> Tensor:
        """α[B,T,n,1] of what was found, e[B,T,De], and the streams h[B,T,n,D]"""
        key = self.k_norm(self.k_proj(e).reshape(*h.shape))
        score = (key * self.q_norm(h)).sum(axis=-1, keepdims=True)
        return ops.sigmoid(signed_sqrt(score * (1.0 / math.sqrt(self.settings.hidden_size))))

    def _emit(self, gate: Tensor, rows: np.ndarray, mask: Array | None) -> None:
        """The mean gate, the share of lookups that found a row of their own, and the penalties"""
        s = self.settings
        if not collecting():
            return
        keep = newest(mask, gate.shape[1])
        count = gate.size if keep is None else max(1, int(keep.sum()) * s.n_streams)
        mean = masked(gate, mask).sum() * (1.0 / count)
        found = [len(np.unique(rows[..., j])) / max(1, rows[..., j].size) for j in range(rows.shape[-1])]
        emit_figure("engram/gate", mean.data)
        emit_figure("engram/distinct_rows", np.array(found))
        if s.gate_coef:
            emit_loss("engram/gate", mean * s.gate_coef)
        if s.table_coef:
            touched = ops.take(self.table, np.unique(rows))
            emit_loss("engram/table", (touched * touched).sum() * s.table_coef)


