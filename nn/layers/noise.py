"""Where the random choices of training are drawn: a function of seed, step, micro-batch and module, so that a
step can be run again.

A module that draws has an attribute `noise`, a counter (nn.random.counter), and a class attribute
`noise_name`, the name of its stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nn.layers.module import Module
from nn.random import apart, counter


def noise_counters(model: Module, seed: int, step: int, micro: int) -> list[tuple[Any, np.ndarray]]:
    """Every module that draws, with its `noise` for a step's micro-batch: an int64[4] for the host or for the
    model's device.  Modules of one stream are told apart by their order."""
    seen: dict[str, int] = {}
    found = []
    for module in model.modules():
        if hasattr(module, "noise"):
            name = getattr(module, "noise_name", type(module).__name__)
            found.append((module, counter(seed, name, step, micro, seen.setdefault(name, 0))))
            seen[name] += 1
    return found


def drawing(model: Module) -> list[Any]:
    """Every module that draws"""
    return [module for module in model.modules() if hasattr(module, "noise")]


@contextmanager
def drawn_apart(modules: list[Any], index: int) -> Iterator[None]:
    """Within, these modules draw what belongs to part `index` of a call that runs them several times: a step
    of a recursion, a group of documents.  A counter that lies on a device stays as it is: recorded steps
    read it there."""
    before = [(module, module.noise) for module in modules]
    for module, place in before:
        if isinstance(place, np.ndarray):
            module.noise = apart(place, index)
    try:
        yield
    finally:
        for module, place in before:
            module.noise = place
