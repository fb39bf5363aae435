"""Rotary position embedding."""

from typing import Any

import numpy as np

from tests.conformance.cases.table import Draw, Table, label, table


@table("rope")
def rotary(kernel: str) -> Table:
    shapes = {"2x3x5x8": (2, 3, 5, 8, 4), "partial": (2, 3, 5, 8, 2), "one-position": (1, 4, 1, 6, 3),
              "empty": (2, 1, 0, 4, 2), "no-batch": (0, 2, 3, 4, 2), "smallest": (1, 1, 1, 2, 1),
              "long": (1, 2, 130, 10, 5)}

    def build(draw: Draw, sizes: tuple[int, ...], per_row: bool, options: dict[str, Any]) -> Any:
        batch, heads, length, width, half = sizes
        angles = draw.random.uniform(-7.0, 7.0, (batch, 1, length, half) if per_row else (length, half))
        tables = draw.statistic(np.cos(angles)), draw.statistic(np.sin(angles))
        return (draw(batch, heads, length, width), *tables), options

    for name, sizes in shapes.items():
        for interleaved in (False, True):
            for inverse in (False, True):
                options = {"interleaved": interleaved, "inverse": inverse}
                suffix = ("-interleaved" if interleaved else "") + ("-inverse" if inverse else "")
                yield name + suffix, lambda draw, s=sizes, o=options: build(draw, s, False, o)
    yield "per-row-positions", lambda draw: build(
        draw, shapes["2x3x5x8"], True, {"interleaved": False, "inverse": False})


@table("rope_at")
def rotary_at(kernel: str) -> Table:
    def build(draw: Draw, batch: int, heads: int, length: int, width: int, half: int,
              interleaved: bool) -> Any:
        angles = draw.random.uniform(-7.0, 7.0, (20, half))
        tables = draw.statistic(np.cos(angles)), draw.statistic(np.sin(angles))
        positions = draw.integers(20 - length, batch).astype(np.int32)
        return (draw(batch, heads, length, width), *tables, positions), {"interleaved": interleaved}

    for sizes in ((2, 3, 1, 8, 4), (3, 2, 5, 8, 2), (1, 1, 1, 2, 1), (0, 1, 1, 4, 2)):
        for interleaved in (False, True):
            yield label(*sizes) + "-interleaved" * interleaved, lambda draw, s=sizes, i=interleaved: (
                build(draw, *s, i))
