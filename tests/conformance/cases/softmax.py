"""Softmax and its logarithm."""

import numpy as np

from tests.conformance import naive
from tests.conformance.cases.table import Table, exact, label, table

ROWS = ((0,), (1,), (7,), (2, 0), (0, 5), (3, 1), (2, 3, 5), (4, 130))


@table("softmax", "log_softmax")
def normalised(kernel: str) -> Table:
    for shape in ROWS:
        yield label(*shape), lambda draw, s=shape: ((draw(*s, scale=3.0),), {})
    yield "masked", lambda draw: ((draw.like(np.array([[-np.inf, 1.0, 2.0], [0.5, -np.inf, -np.inf]])),), {})
    yield "all-masked", lambda draw: ((draw.like(np.array([[-np.inf, -np.inf], [1.0, 3.0]])),), {})
    yield "large", lambda draw: ((draw.like(np.array([[1e4, 1.0001e4, -1e4], [-3e4, -3e4, -3e4]])),), {})


@table("softmax_backward", "log_softmax_backward")
def normalised_backward(kernel: str) -> Table:
    forward = getattr(naive, kernel.removesuffix("_backward"))
    for shape in ROWS:
        yield label(*shape), lambda draw, s=shape: (
            (draw(*s), draw.like(forward(exact(draw(*s, scale=3.0))))), {})
    if kernel == "softmax_backward":
        masked = np.array([[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]])
        yield "all-masked", lambda draw: ((draw(2, 3), draw.like(masked)), {})
