"""bfloat16 and float16 through every operation: types stay, sums are formed wider, errors stay small."""

import ml_dtypes
import numpy as np
import pytest

from nn import ops
from nn.tensor import Tensor
from tests.gradients import about, as_tuple
from tests.ops.table import OPS, ROWS, Row, normal, rows_of

TYPES = {"bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8),     # and unit roundoff
         "float16": (np.dtype(np.float16), 2.0**-11)}
# results that the protocol keeps in float32: losses, routing weights and probabilities, scatter-add
FLOAT = {"balance_loss", "cross_entropy", "linear_cross_entropy", "router_topk", "scatter_add", "z_loss"}
UNITS = 3          # unit roundoffs of the largest value, for results and for gradients
# these bring float64 with them
LEFT_OUT = {row.id for row in ROWS if row.op == "cast" or "array-" in row.case}


def run(row: Row, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(results, gradients of Σ results ⊙ C)"""
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    results = as_tuple(row.function(*tensors))
    loss = None
    for i, result in enumerate(results):
        c = normal(f"half{i}", *result.shape).astype(ml_dtypes.bfloat16).astype(result.dtype)
        term = ops.sum(ops.cast(result * c, np.float64))
        loss = term if loss is None else loss + term
    loss.backward()
    return [r.data for r in results], [t.grad for t in tensors]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", OPS)
def test_errors_stay_small(op: str, dtype: str) -> None:
    for row in rows_of(op):
        if row.id not in LEFT_OUT:
            with about(row.id):
                errors_stay_small(row, *TYPES[dtype])


def errors_stay_small(row: Row, half: np.dtype, unit: float) -> None:
    inputs = [x.astype(half) for x in row.inputs]
    exact_results, exact_gradients = run(row, [x.astype(np.float64) for x in inputs])
    results, gradients = run(row, inputs)
    for result, exact in zip(results, exact_results, strict=True):
        assert result.dtype == (np.float32 if row.op in FLOAT else half)
        close(result, exact, unit)
    for x, gradient, exact in zip(inputs, gradients, exact_gradients, strict=True):
        assert gradient.dtype == np.float32
        assert gradient.shape == x.shape
        close(gradient, exact, unit)


def close(found: np.ndarray, exact: np.ndarray, unit: float) -> None:
    error = np.max(np.abs(found.astype(np.float64) - exact), initial=0.0)
    assert error <= UNITS * unit * max(1.0, np.max(np.abs(exact), initial=0.0)), f"{error / unit:.1f} units"


@pytest.mark.parametrize("dtype", TYPES)
class TestLongSums:
    """Added up in half precision, a sum of ones stops growing at 256 (bfloat16) or 2048 (float16)."""

    def ones(self, dtype: str, *shape: int) -> Tensor:
        return Tensor(np.ones(shape, TYPES[dtype][0]), requires_grad=True)

    def test_sum_and_mean(self, dtype: str) -> None:
        x = self.ones(dtype, 4096)
        assert ops.sum(x).item() == 4096.0
        assert ops.mean(x).item() == 1.0

    def test_mean_of_values_whose_sum_overflows(self, dtype: str) -> None:
        assert ops.mean(Tensor(np.full(5000, 100.0, TYPES[dtype][0]))).item() == 100.0

    def test_gradient_of_a_broadcast_operand(self, dtype: str) -> None:
        bias = self.ones(dtype, 3)
        ops.sum(self.ones(dtype, 4096, 3) + bias).backward()
        np.testing.assert_array_equal(bias.grad, [4096.0] * 3)

    def test_gradient_of_broadcast_to(self, dtype: str) -> None:
        x = self.ones(dtype, 1)
        ops.sum(ops.broadcast_to(x, (5000,))).backward()
        np.testing.assert_array_equal(x.grad, [5000.0])

    def test_cumsum_both_ways(self, dtype: str) -> None:
        x = self.ones(dtype, 4096)
        y = ops.cumsum(x)
        assert float(y.data[-1]) == 4096.0
        y.backward(np.ones(4096, TYPES[dtype][0]))
        assert x.grad[0] == 4096.0

    def test_ties_of_the_maximum(self, dtype: str) -> None:
        x = self.ones(dtype, 4096)
        ops.max(x).backward()
        np.testing.assert_array_equal(x.grad, np.full(4096, 1 / 4096))

    def test_products(self, dtype: str) -> None:
        x, w = self.ones(dtype, 2, 4096), self.ones(dtype, 3, 4096)
        np.testing.assert_array_equal(ops.linear(x, w).data, np.full((2, 3), 4096.0))
        np.testing.assert_array_equal(ops.matmul(x, ops.transpose(w)).data, np.full((2, 3), 4096.0))

    def test_weight_gradients(self, dtype: str) -> None:
        x, w, b = self.ones(dtype, 4099, 2), self.ones(dtype, 3, 2), self.ones(dtype, 3)
        ops.sum(ops.linear(x, w, b)).backward()
        # 4099 itself has no half-precision number
        np.testing.assert_array_equal(w.grad, np.full((3, 2), 4099.0))
        np.testing.assert_array_equal(b.grad, np.full(3, 4099.0))

    def test_repeated_rows(self, dtype: str) -> None:
        table = self.ones(dtype, 2, 3)
        ops.sum(ops.take(table, np.ones(4099, np.int64))).backward()
        np.testing.assert_array_equal(table.grad, [[0.0] * 3, [4099.0] * 3])

    def test_taken_along_an_axis(self, dtype: str) -> None:
        x = self.ones(dtype, 1, 2)
        ops.sum(ops.take_along_axis(x, np.ones((1, 4096), np.int64))).backward()
        np.testing.assert_array_equal(x.grad, [[0.0, 4096.0]])


@pytest.mark.parametrize("dtype", TYPES)
def test_scaled_loss_is_rounded_once(dtype: str) -> None:
    """A factor that half precision does not hold must not bend all gradients in one direction."""
    half, unit = TYPES[dtype]
    x, w = normal("x", 64, 8).astype(half), normal("w", 16, 8).astype(half)
    targets = np.arange(64) % 16

    def gradient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        hidden = Tensor(a, requires_grad=True)
        ops.linear_cross_entropy(hidden, Tensor(b), targets, scale=1 / 3).backward()
        return hidden.grad

    right = gradient(x.astype(np.float64), w.astype(np.float64))
    found = gradient(x, w)
    assert abs(np.sum(found * right) / np.sum(right * right) - 1.0) < 0.1 * unit
    assert np.max(np.abs(found - right)) <= unit * np.max(np.abs(right))


@pytest.mark.parametrize("dtype", [*TYPES, "float32"])
def test_numbers_take_the_type_of_the_tensor(dtype: str) -> None:
    """Also NumPy's own scalars, which would widen a float32 array."""
    kind = TYPES[dtype][0] if dtype in TYPES else np.dtype(np.float32)
    x = Tensor(np.array([0.5, 2.0]).astype(kind))
    for number in (2, 0.3, np.float64(0.3), np.sqrt(2.0)):
        for y in (x + number, number - x, x * number, number / x, ops.maximum(x, number), x**float(number),
                  -x, ops.where(np.array([True, False]), x, number), ops.clip(x, -1.0, number)):
            assert y.dtype == kind
    assert (Tensor(np.array([1, 2])) * 0.5).data.tolist() == [0.5, 1.0]
