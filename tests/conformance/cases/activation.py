"""Activations."""

import numpy as np

from tests.conformance.cases.table import EXTREMES, SHAPES, Table, label, table


@table("silu", "silu_backward", "gelu", "gelu_backward", "gelu_tanh", "gelu_tanh_backward",
       "swiglu", "swiglu_backward")
def activation(kernel: str) -> Table:
    count = {"silu": 1, "gelu": 1, "gelu_tanh": 1, "swiglu_backward": 3}.get(kernel, 2)
    for shape in SHAPES:
        yield label(*shape), lambda draw, s=shape: (tuple(draw(*s, scale=2.0) for _ in range(count)), {})
    # dy and up are ones, so that nothing overflows that the function itself does not
    place = {1: 0, 2: 0 if kernel == "swiglu" else 1, 3: 1}[count]
    values = [np.array(EXTREMES) if i == place else np.ones(len(EXTREMES)) for i in range(count)]
    yield "extremes", lambda draw: (tuple(map(draw.like, values)), {})


@table("swiglu_packed", "swiglu_packed_backward")
def packed(kernel: str) -> Table:
    for rows, width in ((0, 3), (1, 1), (3, 5), (7, 32), (4, 0)):
        yield label(rows, width), lambda draw, r=rows, f=width: (
            (draw(r, 2 * f, scale=2.0),) if kernel == "swiglu_packed" else (draw(r, f), draw(r, 2 * f)), {})
