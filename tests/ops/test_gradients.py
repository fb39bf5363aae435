"""Every operation's gradient: finite differences, strided memory, constant inputs, inputs used twice."""

import numpy as np
import pytest

from nn import ops
from nn.tensor import Tensor, no_grad
from tests.conformance.compare import LAYOUTS
from tests.gradients import about, as_tuple, check, gradients, leaf, weighted
from tests.ops.table import OPS, ROWS, Row, normal, rows_of

every_operation = pytest.mark.parametrize("op", OPS)


def test_every_operation_is_in_the_table() -> None:
    assert set(OPS) == set(ops.__all__)


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_finite_differences(row: Row) -> None:
    check(row.function, *row.inputs)


@every_operation
def test_memory_layout_changes_nothing(op: str) -> None:
    """Transposed, strided and reversed inputs, all read-only: the same gradients, and nobody writes there."""
    for row in rows_of(op):
        expected = gradients(row.function, [leaf(x) for x in row.inputs])
        for name, change in LAYOUTS.items():
            inputs = [change(x) if x.ndim else np.array(x) for x in row.inputs]
            for x in inputs:
                x.flags.writeable = False
            with about(f"{row.id}-{name}"):
                found = gradients(row.function, [Tensor(x, requires_grad=True) for x in inputs])
                for a, b in zip(expected, found, strict=True):
                    np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


@every_operation
def test_each_input_alone(op: str) -> None:
    """Constants get no gradient, and the others' gradients do not depend on who else has one."""
    for row in rows_of(op):
        expected = gradients(row.function, [leaf(x) for x in row.inputs])
        for wanted in range(len(row.inputs)):
            inputs = [Tensor(x, requires_grad=i == wanted) for i, x in enumerate(row.inputs)]
            with about(row.id):
                weighted(row.function(*inputs)).backward()
                np.testing.assert_array_equal(inputs[wanted].grad, expected[wanted])
                assert all(x.grad is None for i, x in enumerate(inputs) if i != wanted)


@every_operation
def test_used_twice(op: str) -> None:
    """Two uses of the same tensors add up."""
    for row in rows_of(op):
        once, twice = gradients(row.function, [leaf(x) for x in row.inputs]), [leaf(x) for x in row.inputs]
        with about(row.id):
            (weighted(row.function(*twice)) + 3.0 * weighted(row.function(*twice))).backward()
            for a, b in zip(once, twice, strict=True):
                np.testing.assert_allclose(b.grad, 4.0 * a, rtol=1e-12, atol=1e-12)


@every_operation
def test_under_no_grad(op: str) -> None:
    for row in rows_of(op):
        recorded = as_tuple(row.function(*[leaf(x) for x in row.inputs]))
        with no_grad():
            plain = as_tuple(row.function(*[leaf(x) for x in row.inputs]))
        with about(row.id):
            for a, b in zip(recorded, plain, strict=True):
                assert (a.requires_grad, b.requires_grad, b.op) == (True, False, None)
                np.testing.assert_array_equal(a.data, b.data)


SHARED = {"add": ops.add, "sub": ops.sub, "mul": ops.mul, "swiglu": ops.swiglu, "matmul": ops.matmul,
          "div": lambda x, y: ops.div(x, y * y + 1.0), "concat": lambda x, y: ops.concat([x, y], axis=1),
          "stack": lambda x, y: ops.stack([x, y, x]), "linear": lambda x, y: ops.linear(x, y),
          "rms_norm": lambda x, y: ops.rms_norm(x, ops.sum(y, axis=0), 0.1),
          "attention": lambda x, y: ops.attention(*(t.reshape(1, 1, 4, 4) for t in (x, y, x)))}


@pytest.mark.parametrize("name", SHARED)
def test_the_same_tensor_as_both_inputs(name: str) -> None:
    check(lambda x: SHARED[name](x, x), normal(f"shared {name}", 4, 4))


@pytest.mark.parametrize("chunk", [1, 11, 25, 10_000])
def test_logits_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Any number of rows at a time: the same loss and gradients."""
    from nn.backends.reference import loss
    row = next(row for row in ROWS if row.id == "linear_cross_entropy-7x5x11-all")
    expected = gradients(row.function, [leaf(x) for x in row.inputs])
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", chunk)
    for a, b in zip(expected, gradients(row.function, [leaf(x) for x in row.inputs]), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-13, atol=1e-14)
