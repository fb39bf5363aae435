"""AdamW, the sum of squares, embedding and scatter-add."""

from typing import Any

import numpy as np

from tests.conformance.cases.table import SHAPES, Draw, Table, label, table


@table("embedding")
def embedding(kernel: str) -> Table:
    for vocabulary, width, count in ((3, 4, 0), (1, 1, 1), (2, 3, 5), (9, 7, 40), (3, 1030, 6), (5, 0, 3)):
        yield label(vocabulary, width, count), lambda draw, s=(vocabulary, width, count): (
            (draw(s[0], s[1]), draw.integers(s[0], s[2])), {})
    yield "first-and-last", lambda draw: ((draw(4, 33), np.array([3, 0, 3, 0], np.int32)), {})


@table("scatter_add")
def scatter_add(kernel: str) -> Table:
    for count, width, rows in ((0, 3, 4), (1, 1, 1), (5, 3, 2), (40, 7, 9), (6, 1030, 3)):
        yield label(count, width, rows), lambda draw, s=(count, width, rows): (
            (draw(s[0], s[1]), draw.integers(s[2], s[0]), s[2]), {})
    yield "all-to-one-row", lambda draw: ((draw(300, 2), np.full(300, 1), 3), {})


@table("adamw")
def adamw(kernel: str) -> Table:
    def build(draw: Draw, shape: tuple[int, ...], **changes: float) -> Any:
        options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                   "weight_decay": 0.1, "step": 3, "grad_scale": 1.0}
        state = draw.wide(*shape), draw(*shape), draw.wide(*shape), draw.wide(*shape, low=0.0)
        return state, options | changes

    for shape in ((), (0,), (1,), (5,), (4, 6), (33, 65)):
        yield label(*shape), lambda draw, s=shape: build(draw, s)
    yield "first-step", lambda draw: build(draw, (4, 6), step=1)
    yield "late", lambda draw: build(draw, (4, 6), step=100000)
    yield "no-decay", lambda draw: build(draw, (5,), weight_decay=0.0)
    yield "scaled", lambda draw: build(draw, (5,), grad_scale=0.125)


@table("sum_of_squares")
def sum_of_squares(kernel: str) -> Table:
    for shape in SHAPES:
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})
    yield "many", lambda draw: ((draw(300, 257),), {})
    yield "squares-beyond-the-type", lambda draw: (
        (draw.like(np.array([3e4, 1.0, -2e4]) * (1e20 if draw.dtype != np.float16 else 1.0)),), {})
