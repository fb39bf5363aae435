"""Norms of rows."""

from typing import Any

import numpy as np

from tests.conformance import naive
from tests.conformance.cases.table import Arguments, Draw, Table, exact, label, table

NORMS = ((0, 4), (1, 1), (2, 1), (3, 5), (7, 33), (65, 130), (2, 4104))


@table("rms_norm", "layer_norm")
def norm(kernel: str) -> Table:
    extra = 1 if kernel == "rms_norm" else 2
    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: (
            (draw(r, d), *(draw(d) for _ in range(extra)), 1e-6), {})
    yield "zero-row", lambda draw: ((draw.like(np.array([[0.0] * 4, [1.0, 2.0, -1.0, 0.5]])),
                                     *(draw(4) for _ in range(extra)), 1e-5), {})
    yield "large", lambda draw: ((draw(3, 8, scale=3000.0), *(draw(8) for _ in range(extra)), 1e-6), {})
    if kernel == "layer_norm":
        yield "offset", lambda draw: ((draw.like(100.0 + exact(draw(4, 16))), draw(16), draw(16), 1e-5), {})


@table("rms_norm_residual")
def norm_of_sum(kernel: str) -> Table:
    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: (
            (draw(r, d), draw(r, d, scale=3.0), draw(d), 1e-6), {})
    yield "cancelling", lambda draw: ((draw.like(np.array([[1.0, -2.0, 3.0]])),
                                       draw.like(np.array([[-1.0, 2.0, 0.5]])), draw(3), 1e-5), {})


@table("rms_norm_backward", "layer_norm_backward")
def norm_backward(kernel: str) -> Table:
    rms = kernel == "rms_norm_backward"

    def build(draw: Draw, rows: int, width: int, around: bool = False) -> tuple[Arguments, dict[str, Any]]:
        x, weight = draw(rows, width), draw(width)
        if rms:
            statistics = naive.rms_norm(exact(x), exact(weight), 1e-6)[1:]
        else:
            statistics = naive.layer_norm(exact(x), exact(weight), np.zeros(width), 1e-5)[1:]
        options = {"dresidual": draw(rows, width, scale=2.0) if around else None} if rms else {}
        return (draw(rows, width), x, weight, *map(draw.statistic, statistics)), options

    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: build(draw, r, d)
        if rms:
            yield f"{label(rows, width)}-around", lambda draw, r=rows, d=width: build(draw, r, d, True)
