"""Selective scans."""

from typing import Any

from tests.conformance.cases.table import Arguments, Draw, Table, label, table


@table("selective_scan", "selective_scan_backward")
def scans(kernel: str) -> Table:
    for batch, length, channels, states, parts in ((2, 5, 3, 4, 2), (1, 1, 1, 1, 1), (3, 1, 70, 16, 1),
                                                   (0, 2, 3, 4, 1), (2, 0, 3, 4, 1), (1, 3, 2, 0, 2),
                                                   (1, 2, 0, 3, 1), (1, 2, 65, 3, 4), (2, 19, 131, 17, 3)):
        def build(draw: Draw, b: int = batch, t: int = length, c: int = channels, n: int = states,
                  p: int = parts) -> tuple[Arguments, dict[str, Any]]:
            given = (draw(b, t, c), draw.wide(b, t, c, low=0.0, high=1.5),
                     draw.wide(c, n, low=-3.0, high=0.0), draw(b, t, n), draw(b, t, n), draw.wide(c))
            if kernel == "selective_scan":
                return (*given, draw.wide(b, c, n), p), {"keep": n != 16}
            return (draw(b, t, c), draw.wide(b, c, n), *given, draw.wide(b, p, n, c)), {}

        yield label(batch, length, channels, states, parts), build
