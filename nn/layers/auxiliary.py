"""Losses and figures besides a layer's output (balance loss, expert load), on their way to the model.

A layer emits; whoever opened `collect()` receives.  With no collector nothing is kept: inference is free."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nn.tensor import Array, Tensor


@dataclass
class Auxiliary:
    """What the layers emitted, in the order of the layers."""

    losses: list[tuple[str, Tensor]] = field(default_factory=list)     # already weighted scalars
    figures: list[tuple[str, Array]] = field(default_factory=list)     # arrays without gradient

    def totals(self) -> dict[str, Tensor]:
        """Losses of the same name, added up over the layers."""
        sums: dict[str, Tensor] = {}
        for name, loss in self.losses:
            sums[name] = sums[name] + loss if name in sums else loss
        return sums


class _Open(threading.local):
    collector: Auxiliary | None = None


_open = _Open()


@contextmanager
def collect() -> Iterator[Auxiliary]:
    """Receive everything emitted inside the block (an inner collect() takes its share away)."""
    before, _open.collector = _open.collector, Auxiliary()
    try:
        yield _open.collector
    finally:
        _open.collector = before


def collecting() -> bool:
    """Whether anybody receives: work that only serves emitting can be left out otherwise."""
    return _open.collector is not None


def emit_loss(name: str, loss: Tensor) -> None:
    if _open.collector is not None:
        _open.collector.losses.append((name, loss))


def emit_figure(name: str, value: Array) -> None:
    if _open.collector is not None:
        _open.collector.figures.append((name, value))
