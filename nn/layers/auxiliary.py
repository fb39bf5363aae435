"""Losses and figures besides a layer's output (balance loss, expert load), on their way to the model.

A layer emits; whoever opened `collect()` receives.  With no collector nothing is kept: inference is free."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class Later:
    """A figure that is formed of an array when it is read: a recorded step writes the array anew."""

    function: Callable[[Array], Array]
    array: Array

    def now(self) -> Array:
        return self.function(self.array)


@dataclass(frozen=True)
class Stacked:
    """Figures of one name, one per layer, stacked [layers, ...] when they are read."""

    values: list[Any]                    # arrays or Later

    @property
    def arrays(self) -> list[Array]:
        """What they are formed of"""
        return [value.array if isinstance(value, Later) else value for value in self.values]

    def now(self) -> np.ndarray:
        return np.stack([value.now() if isinstance(value, Later) else value for value in self.values])


@dataclass
class Auxiliary:
    """What the layers emitted, in the order of the layers."""

    losses: list[tuple[str, Tensor]] = field(default_factory=list)     # already weighted scalars
    figures: list[tuple[str, Any]] = field(default_factory=list)       # arrays without gradient, or Later

    def totals(self) -> dict[str, Tensor]:
        """Losses of the same name, added up over the layers."""
        sums: dict[str, Tensor] = {}
        for name, loss in self.losses:
            sums[name] = sums[name] + loss if name in sums else loss
        return sums


class _Open(threading.local):
    collector: Auxiliary | None = None
    deferred = False


_open = _Open()


@contextmanager
def collect() -> Iterator[Auxiliary]:
    """Receive everything emitted inside the block (an inner collect() takes its share away)."""
    before, _open.collector = _open.collector, Auxiliary()
    try:
        yield _open.collector
    finally:
        _open.collector = before


def later() -> bool:
    """Whether figures are formed when they are read"""
    return _open.deferred


@contextmanager
def figures_later() -> Iterator[None]:
    """Inside the block figures of a loss are `Stacked`, formed when they are read."""
    before, _open.deferred = _open.deferred, True
    try:
        yield
    finally:
        _open.deferred = before


def collecting() -> bool:
    """Whether anybody receives: work that only serves emitting can be left out otherwise."""
    return _open.collector is not None


def emit_loss(name: str, loss: Tensor) -> None:
    if _open.collector is not None:
        _open.collector.losses.append((name, loss))


def emit_figure(name: str, value: Array) -> None:
    if _open.collector is not None:
        _open.collector.figures.append((name, value))


def emit_formed(name: str, function: Callable[[Array], Array], array: Array) -> None:
    """The figure function(array)"""
    if _open.collector is not None:
        later = Later(function, array)
        _open.collector.figures.append((name, later if _open.deferred else later.now()))
