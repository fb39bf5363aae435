"""The largest of rows, and the next token."""

from typing import Any

import numpy as np

from tests.conformance.cases.table import Arguments, Draw, Table, exact, label, table


@table("top_k")
def largest_of_rows(kernel: str) -> Table:
    for rows, width, k in ((1, 1, 1), (2, 5, 5), (3, 33, 4), (2, 1000, 50), (1, 700, 699), (0, 4, 2)):
        yield label(rows, width, k), lambda draw, s=(rows, width), k=k: ((draw(*s), k), {})
        yield f"{label(rows, width, k)}-ties", lambda draw, s=(rows, width), k=k: (
            (draw.like(np.round(exact(draw(*s)) * 2.0)), k), {})
    yield "descending", lambda draw: ((draw.like(np.arange(300.0, 0.0, -1.0)[None] / 16.0), 7), {})
    yield "ascending", lambda draw: ((draw.like(np.arange(600.0)[None] / 16.0), 7), {})


@table("next_token")
def tokens(kernel: str) -> Table:
    hows = ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5},
            {"temperature": 1.5, "top_p": 0.8}, {"temperature": 0.9, "min_p": 0.1}, {"temperature": 1e-45},
            {"temperature": 2.0, "top_k": 30, "top_p": 0.5, "min_p": 0.01},
            {"temperature": 100.0, "top_p": 0.999999})
    for rows, width in ((0, 3), (1, 1), (3, 5), (4, 67), (2, 4099)):
        for i, how in enumerate(hows):
            for coarse in (0.0, 1.0):               # whole numbers: many ties
                def build(draw: Draw, s: tuple[int, int] = (rows, width), how: Any = how,
                          coarse: float = coarse) -> tuple[Arguments, dict[str, Any]]:
                    z = exact(draw(*s, scale=3.0))
                    counters = np.stack([draw.integers(2**62, s[0]) * 2 - 2**62, draw.integers(2**32, s[0]),
                                         draw.integers(2**32, s[0])], axis=1)
                    return (draw.like(np.round(z) if coarse else z), counters), how

                yield f"{label(rows, width)}-{i}{'-ties' * bool(coarse)}", build
    for i, odd in enumerate((np.nan, np.inf, -np.inf)):
        for hot in (0.0, 1.0):
            yield f"odd-{i}-{hot:g}", lambda draw, odd=odd, hot=hot: (
                (draw.like(np.where(np.arange(4 * 41).reshape(4, 41) % (40 if odd > 0 else 2) == 7 % 2, odd,
                                    exact(draw(4, 41)))), np.arange(12).reshape(4, 3)), {"temperature": hot})
    yield "none", lambda draw: ((draw.like(np.full((2, 37), -np.inf)), np.ones((2, 3), np.int64)), {})
