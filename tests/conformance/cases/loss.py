"""Losses."""

from typing import Any

import numpy as np

from tests.conformance import naive
from tests.conformance.cases.table import Draw, Table, exact, label, table

LOSS_OPTIONS = {"": {}, "smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 0.01},
                "softcap": {"softcap": 5.0}, "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}}
LOSS_SHAPES = ((0, 3), (1, 1), (3, 1), (7, 11), (5, 130))


def _targets(draw: Draw, rows: int, vocabulary: int, ignored: int, ignore_index: int = -100) -> np.ndarray:
    targets = draw.integers(vocabulary, rows)
    targets[:ignored] = ignore_index
    return targets


@table("cross_entropy", "cross_entropy_backward")
def cross_entropy(kernel: str) -> Table:
    def build(draw: Draw, rows: int, vocabulary: int, ignored: int, options: dict[str, Any],
              scale: float = 2.0) -> Any:
        logits = draw(rows, vocabulary, scale=scale)
        targets = _targets(draw, rows, vocabulary, ignored, options.get("ignore_index", -100))
        if kernel == "cross_entropy":
            return (logits, targets), options
        lse = draw.statistic(naive.cross_entropy(exact(logits), targets, **options)[1])
        return (draw.wide(rows), logits, targets, lse), options

    for rows, vocabulary in LOSS_SHAPES:
        yield label(rows, vocabulary), lambda draw, r=rows, v=vocabulary: build(draw, r, v, 0, {})
    for name, options in LOSS_OPTIONS.items():
        yield f"ignored-{name}", lambda draw, o=options: build(draw, 7, 11, 2, o)
    yield "all-ignored", lambda draw: build(draw, 3, 4, 3, {})
    yield "other-ignore-index", lambda draw: build(draw, 5, 6, 2, {"ignore_index": -1})
    yield "large", lambda draw: build(draw, 4, 9, 0, {}, scale=1000.0)


@table("linear_cross_entropy")
def linear_cross_entropy(kernel: str) -> Table:
    def build(draw: Draw, rows: int, width: int, vocabulary: int, ignored: int,
              options: dict[str, Any]) -> Any:
        targets = _targets(draw, rows, vocabulary, ignored)
        return (draw(rows, width), draw(vocabulary, width, scale=0.5), targets), options

    for sizes in ((0, 3, 4), (1, 1, 1), (7, 5, 11), (33, 8, 65)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s, 0, {"gradient": True})
    for name, options in LOSS_OPTIONS.items():
        yield f"ignored-{name}", lambda draw, o=options: build(draw, 7, 5, 11, 2, {"gradient": True} | o)
    yield "all-ignored", lambda draw: build(draw, 3, 2, 4, 3, {"gradient": True})
    yield "loss-only", lambda draw: build(draw, 7, 5, 11, 1, {"gradient": False})
    yield "loss-only-capped", lambda draw: build(draw, 7, 5, 11, 1, {"gradient": False, "softcap": 2.0})
    yield "scaled", lambda draw: build(draw, 7, 33, 130, 1, {"gradient": True, "scale": 0.125})
