"""Packed weights of every format."""

from typing import Any

import numpy as np

from nn.packed import Format, PackedWeight
from tests.conformance.cases.table import Draw, Table, label, table

# rows, inputs, outputs
PACKED = {"f32": ((0, 3, 4), (1, 1, 1), (1, 5, 40), (2, 64, 33), (5, 7, 16), (21, 66, 50), (3, 4, 0)),
          "bf16": ((0, 3, 4), (1, 1, 1), (1, 5, 40), (2, 64, 33), (5, 7, 16), (37, 66, 50), (3, 4, 0)),
          "q8_0": ((0, 32, 4), (1, 64, 40), (3, 96, 33), (21, 64, 16), (70, 32, 50), (3, 32, 0)),
          "q4_0": ((0, 32, 4), (1, 64, 40), (3, 96, 33), (21, 64, 16), (70, 32, 50), (3, 32, 0))}
WIDE = (1, 96, 250)           # of one row: all panels that are read together, and some behind them


def _packed(draw: Draw, form: str, *shape: int, gated: bool = False) -> np.ndarray:
    weight = draw.random.standard_normal(shape).astype(np.float32)
    return PackedWeight.pack(weight, form, gated=gated).data.copy()


@table("packed_linear", "packed_swiglu")
def packed_weights(kernel: str) -> Table:
    def build(draw: Draw, form: str, rows: int, inputs: int, outputs: int, more: bool) -> Any:
        if kernel == "packed_swiglu":
            weight = _packed(draw, form, 2 * outputs, inputs, gated=True)
            return (draw(rows, inputs), weight, int(Format[form]), outputs), {}
        options = {"bias": draw(outputs), "residual": draw(rows, outputs)} if more else {}
        weight = _packed(draw, form, outputs, inputs)
        return ((draw(rows, inputs), weight, int(Format[form]), outputs),
                {"bias": None, "residual": None} | options)

    for form, shapes in PACKED.items():
        for sizes in (*shapes, WIDE):
            for more in (False, True)[: 1 + (kernel == "packed_linear")]:
                yield f"{form}-{label(*sizes)}" + "-more" * more, lambda draw, f=form, s=sizes, m=more: (
                    build(draw, f, *s, m))


@table("packed_experts")
def packed_mixture(kernel: str) -> Table:
    def build(draw: Draw, form: str, tokens: int, width: int, features: int, experts: int, k: int,
              dropped: bool) -> Any:
        gate_up = _packed(draw, form, experts, 2 * features, width, gated=True)
        down = _packed(draw, form, experts, width, features)
        chosen = np.argsort(draw.random.random((tokens, experts)), axis=1)[:, :k]
        if dropped:
            chosen[:: 2, 0] = experts
        return ((draw(tokens, width), gate_up, down, draw.wide(tokens, k, low=0.0, high=1.0), chosen,
                 experts, features, int(Format[form])), {})

    for form in PACKED:
        for sizes in ((0, 32, 32, 4, 2), (1, 32, 64, 4, 2), (3, 64, 32, 5, 1), (70, 32, 32, 3, 2)):
            yield f"{form}-{label(*sizes)}", lambda draw, f=form, s=sizes: build(draw, f, *s, False)
        yield f"{form}-dropped", lambda draw, f=form: build(draw, f, 5, 32, 64, 4, 2, True)
    yield "f32-odd", lambda draw: build(draw, "f32", 9, 5, 7, 3, 2, False)
    yield "bf16-odd", lambda draw: build(draw, "bf16", 9, 5, 7, 3, 2, False)
