"""Recursive memory core: a small matrix M [m,D] that every sequence reads through a summary of itself, and
that is nudged towards what was seen after each step.

    a = softmax(W_r c + b_r),    r = a M,    y = W_p [h; r] + b_p

The summary c_t is the mean of h_0 ... h_t ("causal"), or of h_0 ... h_min(t, P−1) ("prefix").  The mean of
the whole sequence ("mean", the published script's) shows every token the future: encoders only.

Writing has no gradient; how large M is, is told as the figure rmc/norm.  After a step of the optimizer, with
the summary c_b of each row's last token:

    w_b = softmax(W_w c_b + b_w),    ΔM_b = w_b ⊗ c_b,    Δ, w̄ = means over b
    M_i ← M_i + lr (Δ_i − w̄_i M_i)      "ema": rows stay among what was seen
    M ← M + lr Δ                        "add": may drift

    y, _ = rmc(h, update=True);  rmc.apply_update(rmc.delta.mean(0), lr=0.01)

With differentiable_write the memory is also written to within a sequence, with gradients: every row has a
memory of its own, M at first, into which the summary of the newest token is written behind every `segment`
tokens; the tokens after them read what was written.

A layer adds y to h, as any block's; in front of a model's layers y takes h's place (prelude of
nn/models/language_config.py)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import beside, namespace
from nn.dtypes import narrow, widen
from nn.errors import InputError
from nn.layers.auxiliary import collecting, emit_figure
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.masks import masked, newest
from nn.layers.module import Parameter
from nn.layers.precision import cast_to, widened
from nn.layers.protocol import Block, BlockSettings
from nn.names import check_name
from nn.state import State
from nn.tensor import Array, Tensor, no_grad

SUMMARIES = ("causal", "prefix", "mean")
WRITES = ("ema", "add")


@dataclass(frozen=True)
class RMCSettings(BlockSettings):
    """A memory matrix read through a summary of the sequence."""

    mem_size: int = 32               # rows of the memory
    summary: str = "causal"          # what stands for the sequence: causal, prefix or mean
    prefix: int = 0                  # tokens that a prefix summary is of
    allow_noncausal: bool = False    # required for the mean, which shows every token the future
    write: str = "ema"               # how the memory is written: ema or add
    anneal: float = 0.0              # the rate of writing step s is divided by 1 + anneal s
    memory_std: float = 0.01         # the memory starts as Normal(0, memory_std)
    differentiable_write: bool = False    # also write within a sequence, with gradients
    segment: int = 64                # tokens between such writes
    write_lr: float = 0.01           # rate of such writes

    def __post_init__(self) -> None:
        self._positive("hidden_size", "mem_size", "segment")
        check_name("summary", self.summary, SUMMARIES)
        check_name("write", self.write, WRITES)
        if self.summary == "mean" and not self.allow_noncausal:
            raise InputError("summary: 'mean' shows every token the future of its sequence; "
                             "say allow_noncausal=True, or choose causal")
        if (self.summary == "prefix") != (self.prefix > 0):
            raise InputError(f"prefix: {self.prefix} with summary {self.summary!r}; a prefix summary, and no "
                             "other, is of 1 or more tokens")
        if self.differentiable_write and not self.causal:
            raise InputError("differentiable_write: the mean of a whole sequence has no segments; choose "
                             "summary causal or prefix")

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return self.summary != "mean"

    def parameters(self, active: bool = False) -> dict[str, int]:
        width, slots = self.hidden_size, self.mem_size
        return {"memory": slots * width, "read": slots * (width + 1), "write": slots * (width + 1),
                "projection": width * (2 * width + 1)}

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        tokens, width = batch * length, self.hidden_size
        writes = (past + length) // self.segment - past // self.segment if self.differentiable_write else 0
        return {"read": projection(tokens, (width, self.mem_size), (self.mem_size, width)),
                "write": projection(batch * writes, (width, self.mem_size)),
                "projection": projection(tokens, (2 * width, width))}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {"": cls.create(hidden_size=8, mem_size=4),
                "prefix": cls.create(hidden_size=6, mem_size=3, summary="prefix", prefix=3),
                "mean": cls.create(hidden_size=6, mem_size=3, summary="mean", allow_noncausal=True),
                "written": cls.create(hidden_size=6, mem_size=3, differentiable_write=True, segment=3,
                                      write_lr=0.5)}


@dataclass
class RMCState(State):
    """What the summary is of, and, within an episode, a memory of each row's own."""

    total: Array                      # [B,D] sum of the tokens seen
    count: Array                      # [B] how many they are
    memory: Array | None = None       # [B,m,D]; None: the block's


class RMC(Block):
    """memory [m,D], read [m,D] + b, write_weight [m,D], write_bias [m], proj [D,2D] + b"""

    Settings = RMCSettings

    def __init__(self, settings: RMCSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        width, slots = s.hidden_size, s.mem_size
        self.memory = Parameter((slots, width), std=s.memory_std, dtype=dtype, decay=False)
        self.read = Linear(width, slots, bias=True, std=s.init_std, dtype=dtype)
        self.write_weight = Parameter((slots, width), std=s.init_std, dtype=dtype)
        self.write_bias = Parameter((slots,), dtype=dtype, decay=False)
        self.proj = Linear(2 * width, width, bias=True, std=s.down_std, dtype=dtype)
        self.detached = () if s.differentiable_write else ("write_weight", "write_bias")    # type: ignore[misc]
        self.update = False                   # whether calls that do not say keep their write
        self.delta: Array | None = None       # ΔM [B,m,D] of the newest call with update=True
        self.weights: Array | None = None     # w [B,m] of the newest call with update=True

    def init_state(self, batch_size: int) -> RMCState | None:
        if not self.settings.causal:
            return None
        return RMCState(self.zeros(batch_size, self.settings.hidden_size), self.zeros(batch_size))

    def forward(self, x: Tensor, *, state: RMCState | None = None, mask: Array | None = None,
                mode: str | None = None, update: bool | None = None) -> tuple[Tensor, RMCState | None]:
        """x[B,T,D] -> y[B,T,D]; see nn/layers/protocol.py.  update: keep the write, in `delta`; None: as
        `self.update` says"""
        if state is not None and not self.settings.causal:
            raise InputError("rmc: the mean of a whole sequence cannot be continued; state must be None")
        before = state or RMCState(self.zeros(x.shape[0], x.shape[2]), self.zeros(x.shape[0]))
        summary, places, after = self._summary(x, before, mask)
        writes = self.update if update is None else update
        self.delta, self.weights = self._write(after) if writes else (None, self.weights)
        weights = ops.softmax(ops.linear(summary, self.read.weight, self.read.bias))                 # [B,T,m]
        memory = self.memory if before.memory is None else Tensor(before.memory)
        if collecting():
            emit_figure("rmc/norm", (widened(memory.detach()) ** 2).sum().sqrt().data)
        if self.settings.differentiable_write and x.shape[1]:
            r, memory = self._read_and_write(weights, summary, memory, before, places)
            after.memory = before.memory if memory is self.memory else memory.data
        else:
            r = weights @ memory
        return self.proj(ops.concat([x, cast_to(r, x.dtype)], axis=-1)), None if state is None else after

    def _summary(self, x: Tensor, before: RMCState, mask: Array | None) -> tuple[Tensor, Array, RMCState]:
        """(c[B,T,D], tokens of the row up to each [B,T], the state behind x)"""
        xp, like, length = namespace(x.data), before.total, x.shape[1]
        wide = masked(cast_to(x, like.dtype), mask)
        keep = newest(mask, length)
        seen = (xp.ones(x.shape[:2], dtype=like.dtype) if keep is None
                else xp.astype(beside(keep, like), like.dtype))
        places = before.count[:, None] + xp.cumulative_sum(seen, axis=1)                  # [B,T], from 1
        if self.settings.prefix:
            inside = places <= self.settings.prefix
            wide = ops.where(inside[..., None], wide, 0.0)
        sums = ops.cumsum(wide, axis=1) + before.total[:, None, :]
        after = before if not length else RMCState(
            xp.asarray(sums.data[:, -1, :], copy=True), xp.asarray(places[:, -1], copy=True), before.memory)
        counts = places
        if not self.settings.causal:
            sums, counts = ops.broadcast_to(sums[:, -1:, :], sums.shape), places[:, -1:]
        most = self.settings.prefix or None
        return sums / xp.clip(counts, 1.0, most)[..., None], places, after

    # ---- writing within a sequence, with gradients ----

    def _read_and_write(self, weights: Tensor, summary: Tensor, memory: Tensor, before: RMCState,
                        places: Array) -> tuple[Tensor, Tensor]:
        """(r[B,T,D], the rows' memories behind the newest token [B,m,D], or M where nothing was written)"""
        size, first, places = self.settings.segment, _host(before.count), _host(places)       # [B] [B,T]
        segment = (places - 1) // size - first[:, None] // size       # counted within this call; -1: padding
        fresh = np.diff(places, axis=1, prepend=first[:, None]) > 0                           # not padding
        alike = bool(np.all(segment == segment[:1])) and segment.min() == 0
        reads = []
        for i in range(max(0, int(segment.max())) + 1):
            inside = segment == i
            if alike:
                reads.append(weights[:, np.flatnonzero(inside[0])[0] : np.flatnonzero(inside[0])[-1] + 1]
                             @ memory)
            else:
                reads.append(ops.where(beside(inside[..., None], weights.data), weights, 0.0) @ memory)
            memory = self._written(memory, summary, inside & fresh & (places % size == 0))
        return (ops.concat(reads, axis=1) if alike else sum(reads[1:], start=reads[0])), memory

    def _written(self, memory: Tensor, summary: Tensor, closing: np.ndarray) -> Tensor:
        """The memories [B,m,D] after the writes of the summaries where closing[B,T], once per row or never"""
        closed = np.any(closing, axis=1, keepdims=True)
        if not closed.any():
            return memory
        like = summary.data
        c = ops.where(beside(closing[..., None], like), summary, 0.0).sum(axis=1)                    # [B,D]
        w = ops.softmax(ops.linear(c, self.write_weight, self.write_bias))[:, :, None]               # [B,m,1]
        new = w * c[:, None, :] - (w * memory if self.settings.write == "ema" else 0.0)
        return memory + ops.where(beside(closed[:, :, None], like), new, 0.0) * self.settings.write_lr

    # ---- writing between steps ----

    def _write(self, state: RMCState) -> tuple[Array, Array]:
        """(ΔM[B,m,D], w[B,m]) of the summaries c[B,D] that rows have come to; zeros of rows without tokens"""
        xp, most = namespace(state.total), self.settings.prefix or None
        c = state.total / xp.clip(state.count, 1.0, most)[:, None]
        with no_grad():
            w = ops.softmax(ops.linear(Tensor(c), self.write_weight, self.write_bias)).data
        w = w * xp.astype(state.count > 0, w.dtype)[:, None]
        return w[:, :, None] * c[:, None, :], w

    def rate(self, lr: float, step: int = 0) -> float:
        """The annealed rate of a write."""
        return lr / (1.0 + self.settings.anneal * step)

    def apply_update(self, delta: Array, lr: float = 0.01, step: int = 0, *,
                     weights: Array | None = None) -> None:
        """Write Δ[m,D], or ΔM[B,m,D], whose mean over the rows is taken, into the memory.  "ema" also needs
        w[B,m] or w̄[m], which are those of the newest call with update=True unless given.  Slots are written
        each by itself.  step: what the rate is annealed by."""
        xp, slots = namespace(delta), self.settings.mem_size
        if tuple(delta.shape[-2:]) != self.memory.shape or delta.ndim not in (2, 3):
            raise InputError(f"delta: shape {list(delta.shape)}; expected [{slots}, "
                             f"{self.settings.hidden_size}], or [batch, ...] of these")
        mean = xp.mean(delta, axis=0) if delta.ndim == 3 else delta
        old, rate = widen(self.memory.data), self.rate(lr, step)
        if self.settings.write == "ema":
            w = self.weights if weights is None else weights
            if w is None:
                raise InputError("weights: an ema write needs the weights w that delta was formed with; call "
                                 "the block with update=True before, or give weights=")
            mean = mean - (xp.mean(w, axis=0) if w.ndim == 2 else w)[:, None] * old
        self.memory.data = narrow(old + rate * mean, self.memory.dtype)

    def reset(self) -> None:
        """The memory as it was before training: drawn again from the same numbers."""
        fresh = Parameter(self.memory.shape, std=self.settings.memory_std, dtype=self.memory.dtype)
        fresh.key = self.memory.key
        self.memory.load(fresh.numpy())

    # ---- episodes: a memory of each row's own, which nothing outside its state sees ----

    def open_episode(self, state: RMCState) -> RMCState:
        """The state with a copy of the memory for each row; also what resets an episode."""
        xp, memory = namespace(state.total), widen(self.memory.data)
        shape = (state.total.shape[0], *self.memory.shape)
        state.memory = xp.asarray(xp.broadcast_to(memory, shape), copy=True)
        return state

    def write_episode(self, state: RMCState, lr: float = 0.01) -> RMCState:
        """Write the summary of the tokens seen into the rows' own memories."""
        if state.memory is None:
            raise InputError("state: no episode is open; call open_episode(state)")
        delta, w = self._write(state)
        kept = w[:, :, None] * state.memory if self.settings.write == "ema" else 0.0
        state.memory = state.memory + lr * (delta - kept)
        return state


def _host(array: Array) -> np.ndarray:
    """Whole numbers kept as floats"""
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array).astype(np.int64)
