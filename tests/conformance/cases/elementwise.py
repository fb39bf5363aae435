"""Sums, products, casts, copies, sums of columns."""

import numpy as np

from tests.conformance.cases.table import EXTREMES, SHAPES, Table, label, table


@table("add", "mul", "accumulate")
def pairs(kernel: str) -> Table:
    for shape in (*SHAPES, (3, 70000)):
        yield label(*shape), lambda draw, s=shape: (
            (draw.wide(*s) if kernel == "accumulate" else draw(*s), draw(*s)), {})


@table("add_row", "mul_row")
def rows_with_a_row(kernel: str) -> Table:
    for shape in ((1,), (0, 3), (3, 0), (2, 5), (2, 1, 16), (4, 3, 33), (300, 259)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s), draw(s[-1])), {})


@table("scale")
def scaled(kernel: str) -> Table:
    for shape in SHAPES:
        for factor in (-1.0, 0.3, 3):
            yield f"{label(*shape)}-{factor}", lambda draw, s=shape, f=factor: ((draw(*s), f), {})


@table("widen", "to_bfloat16")
def casts(kernel: str) -> Table:
    for shape in (*SHAPES, (3, 70000)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s, scale=100.0),), {})
    ties = 1.0 + np.arange(-8, 8) / 256.0 + 2.0 ** -np.arange(6.0, 22.0)
    special = np.concatenate([ties, -ties, EXTREMES, [np.inf, -np.inf, np.nan, 2.0**-130, -(2.0**-133)]])
    yield "ties", lambda draw: ((draw.like(special),), {})


@table("contiguous")
def copies(kernel: str) -> Table:
    for shape in ((1, 1, 1, 1), (2, 3, 5, 7), (0, 2, 3, 4), (2, 1, 3, 0), (3, 17, 2, 64)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})
        yield f"{label(*shape)}-permuted", lambda draw, s=shape: (
            (np.transpose(draw(s[0], s[2], s[1], s[3]), (0, 2, 1, 3)),), {})


@table("column_sum")
def sums_of_columns(kernel: str) -> Table:
    for shape in ((0, 4), (1, 1), (3, 5), (7, 33), (130, 65), (1025, 19), (5, 0), (20000, 2)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})
