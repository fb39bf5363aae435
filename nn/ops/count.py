"""Counting the operations that a forward pass executes, to hold formulas against them.

    with count_flops() as count:
        model(ids)
    count.flops, count.by_operation, count.elements

flops: products, convolutions and scans, each operation saying its own share beside its forward (`Op.flops`):
a product of [m,k] and [k,n] is 2mnk, a causal attention core 2 (Dk + Dv) per query head and visible pair, a
depthwise convolution 2 per tap, a grouped product its rows.  What a kernel computes besides, to fill tiles or
above a diagonal, is not counted; zeros with which a layer fills up a chunk are, as they are multiplied.

elements: results of everything else (elementwise work, norms, softmax, reductions, gathers) but views.

Only forwards count: a backward costs twice the products of its forward.  The counter sees what goes through
the tape, also under no_grad(), not kernels called by themselves (decoding from a cache of fixed size)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nn.tape import state

VIEWS = "nn.ops.views"


@dataclass
class Count:
    """What was executed so far."""

    flops: int = 0                                                  # multiply-adds, 2 each
    elements: int = 0                                               # results of all other operations
    by_operation: dict[str, int] = field(default_factory=dict)      # flops by the operation's name

    def add(self, op: Any, inputs: list[Any], results: tuple[Any, ...], options: dict[str, Any]) -> None:
        if flops := op.flops(inputs, results, options):
            self.flops += flops
            self.by_operation[op.name] = self.by_operation.get(op.name, 0) + flops
        elif type(op).__module__ != VIEWS:
            self.elements += sum(math.prod(result.shape) for result in results)


@contextmanager
def count_flops() -> Iterator[Count]:
    """Count the operations of this thread inside the block; an inner block counts for itself alone."""
    before, state.count = state.count, Count()
    try:
        yield state.count
    finally:
        state.count = before


def visible_pairs(queries: int, keys: int, window: int = 0, causal: bool = True) -> int:
    """Pairs (query, key) that attention looks at; the queries are the last of the `keys` positions.
    window W > 0: a query sees W keys, itself included; if not causal, W − 1 later ones besides."""

    def below(shift: int) -> int:
        """Σ over the queries, at positions p: how many keys stand before p + shift"""
        return _clipped(keys - 1 + shift, keys) - _clipped(keys - queries - 1 + shift, keys)

    ends = below(1) if causal else below(window) if window else queries * keys
    return ends - (below(1 - window) if window else 0)


def _clipped(last: int, most: int) -> int:
    """Σ min(max(n, 0), most) over all n up to `last`"""

    def triangle(n: int) -> int:
        return max(0, n) * (max(0, n) + 1) // 2

    return triangle(last) - triangle(last - most)
