"""Matrix products."""

from tests.conformance.cases.table import Table, label, table


@table("matmul")
def matrices(kernel: str) -> Table:
    for lead in ((), (3,), (2, 3)):
        for i, j, o in ((5, 7, 3), (1, 1, 1), (17, 33, 65), (0, 3, 4), (4, 0, 3)):
            yield label(*lead, i, j, o), lambda draw, n=lead, s=(i, j, o): (
                (draw(*n, s[0], s[1]), draw(*n, s[1], s[2])), {})
    yield "aligned", lambda draw: ((draw(64, 64), draw(64, 64)), {})


LINEARS = ((0, 3, 4), (1, 1, 1), (5, 7, 3), (2, 64, 40), (33, 65, 17), (64, 32, 64), (3, 4, 0))


@table("linear", "linear_backward")
def linear_map(kernel: str) -> Table:
    for rows, inputs, outputs in LINEARS:
        name, sizes = label(rows, inputs, outputs), (rows, inputs, outputs)
        if kernel == "linear_backward":
            yield name, lambda draw, s=sizes: ((draw(s[0], s[2]), draw(s[0], s[1]), draw(s[2], s[1])), {})
            continue
        yield name, lambda draw, s=sizes: ((draw(s[0], s[1]), draw(s[2], s[1])), {"bias": None})
        yield f"{name}-bias", lambda draw, s=sizes: (
            (draw(s[0], s[1]), draw(s[2], s[1])), {"bias": draw(s[2])})
