"""Where the random choices of training are drawn: a function of seed, step, micro-batch and module, so that a
step can be run again.

A module that draws has an attribute `noise`, a counter (nn.random.counter), and a class attribute
`noise_name`, the name of its stream."""

from typing import Any

import numpy as np

from nn.layers.module import Module
from nn.random import counter


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
