"""Operations, forward and backward, on array_api_strict:
what they do around the kernels is in the standard too."""

from typing import Any

import numpy as np
import pytest

from nn.tensor import Tensor
from tests.gradients import about, as_tuple
from tests.ops.table import ROWS, Row

strict = pytest.importorskip("array_api_strict")
# their rows bring NumPy arrays with them (indices, masks, tables, plans, targets), or NumPy's types and
# short indices
BOUND_TO_NUMPY = {"balance_loss", "cast", "combine", "cross_entropy", "dispatch", "dropout",
                  "gathered_swiglu", "getitem", "jitter", "linear_cross_entropy", "plan", "rope",
                  "scatter_add", "take", "take_along_axis", "where"}
FREE = [row for row in ROWS if row.op not in BOUND_TO_NUMPY and "array-" not in row.case
        and row.id not in ("attention-padding", "attention-blind-query") and row.op != "grouped_linear"]


def run(row: Row, into: Any) -> list[Any]:
    """First result and all gradients"""
    inputs = [Tensor(into(x), requires_grad=True) for x in row.inputs]
    first = as_tuple(row.function(*inputs))[0]
    first.backward(into(np.cos(np.arange(first.size, dtype=np.float64)).reshape(first.shape)))
    return [first.data, *(x.grad for x in inputs)]


@pytest.mark.parametrize("op", dict.fromkeys(row.op for row in FREE))
def test_needs_nothing_but_the_standard(op: str) -> None:
    for row in FREE:
        if row.op == op:
            with about(row.id):
                for found, right in zip(run(row, strict.asarray), run(row, np.asarray), strict=True):
                    assert same(found, right)


def same(found: Any, right: Any) -> bool:
    if right is None:
        return found is None
    assert type(found).__module__.startswith("array_api_strict")
    return np.allclose(np.from_dlpack(found), right, rtol=1e-12, atol=1e-12)
