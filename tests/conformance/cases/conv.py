"""Causal convolutions."""

from typing import Any

from tests.conformance.cases.table import Arguments, Draw, Table, label, table


@table("causal_conv", "causal_conv_backward")
def convolutions(kernel: str) -> Table:
    for batch, steps, channels, taps, dilation in ((2, 5, 3, 4, 1), (1, 4, 2, 3, 2), (1, 1, 1, 1, 1),
                                                   (0, 3, 2, 2, 1), (2, 0, 2, 3, 1), (3, 21, 67, 4, 1),
                                                   (2, 30, 33, 3, 5)):
        def build(draw: Draw, b: int = batch, t: int = steps, c: int = channels, k: int = taps,
                  d: int = dilation) -> tuple[Arguments, dict[str, Any]]:
            x, weight = draw(b, t + (k - 1) * d, c), draw(c, k)
            last = (x, weight, t) if kernel == "causal_conv" else (draw(b, t, c), x, weight)
            return last, {"dilation": d}

        yield label(batch, steps, channels, taps, dilation), build
