"""Sums, products and casts of large NumPy arrays go through kernels, and have the bits of NumPy's own."""

import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn import Tensor, arithmetic, ops
from nn.backends import native, use_backend
from nn.backends.native import dense
from nn.dtypes import accumulated, narrow, widen

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
RANDOM = np.random.default_rng(0)
PAIRS = (((70, 90), (70, 90)), ((70, 90), (90,)), ((90,), (70, 90)), ((3, 30, 90), (1, 1, 90)),
         ((90, 70), (90, 1)), ((70, 90), ()), ((5000,), (1,)), ((1, 5000), (2, 1)), ((2, 1, 70), (60, 70)),
         ((5000, 1), (1,)))


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(dtype)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@TYPES
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_numpys_bits(a: Any, b: Any, dtype: Any) -> None:
    x, y = draw(*a, dtype=dtype), draw(*b, dtype=dtype)
    same(arithmetic.add(x, y), np.asarray(x + y))
    same(arithmetic.mul(x, y), np.asarray(x * y))
    for function in (operator.sub, operator.truediv, np.maximum):
        same(arithmetic.computed(function, x, y), np.asarray(function(x, y)))


@TYPES
@pytest.mark.parametrize("number", [2, -0.3, 1e-3])
def test_numbers(number: float, dtype: Any) -> None:
    x = draw(70, 90, dtype=dtype)
    expected = (x.astype(np.float32) * np.float32(number)).astype(dtype)
    same(arithmetic.mul(x, number), expected)
    same(ops.mul(Tensor(x), number).data, expected)
    same(ops.mul(number, Tensor(x)).data, expected)


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[::-1]])
def test_casts(view: Any) -> None:
    wide = view(draw(80, 70))
    same(narrow(wide, BFLOAT16), wide.astype(BFLOAT16))
    short = view(draw(80, 70, dtype=BFLOAT16))
    same(widen(short), short.astype(np.float32))
    assert widen(wide) is wide
    assert narrow(short, BFLOAT16) is short


@TYPES
@pytest.mark.parametrize("shape", [(90,), (1, 90), (70, 1), (70, 90), ()])
def test_gradients_of_what_was_stretched(shape: Any, dtype: Any) -> None:
    x, y = Tensor(draw(5, 70, 90, dtype=dtype), requires_grad=True), Tensor(draw(*shape, dtype=dtype), True)
    dz = draw(5, 70, 90, dtype=dtype)
    (x * y + y).backward(dz)
    x64, y64, dz64 = (np.asarray(a, np.float64) for a in (x.data, y.data, dz))
    axes = tuple(range(3 - y.ndim)) + tuple(3 - y.ndim + i for i, n in enumerate(shape) if n == 1)
    exact = (dz64 * x64 + dz64).sum(axis=axes).reshape(shape)
    unit = 2.0**-8 if dtype == BFLOAT16 else 2.0**-22
    assert y.grad.dtype == np.float32
    np.testing.assert_allclose(y.grad, exact, rtol=0, atol=unit * np.abs(exact).max())
    np.testing.assert_allclose(x.grad, dz64 * y64, rtol=0, atol=unit * np.abs(dz64 * y64).max())


@TYPES
def test_gradients_add_up(dtype: Any) -> None:
    """Of a leaf over two passes, and of a result that three operations use."""
    x, twice = Tensor(draw(70, 90, dtype=dtype), requires_grad=True), 0.0
    for _ in range(2):
        y = x * 1.0
        (y * 1.0 + y * 2.0 + y * 4.0).backward(np.ones((70, 90), dtype))
        twice += 7.0
        np.testing.assert_array_equal(x.grad, np.full((70, 90), twice))
    assert x.grad.dtype == np.float32


def test_the_first_gradient_is_nobody_elses() -> None:
    a, b = (Tensor(np.zeros((70, 90), np.float32), requires_grad=True) for _ in range(2))
    shared = np.ones((70, 90), np.float32)
    for _ in range(2):
        for leaf in (a, b):
            leaf.grad = accumulated(leaf, shared)
    assert shared.max() == 1.0
    assert a.grad is not b.grad
    assert a.grad.min() == b.grad.max() == 2.0


@TYPES
def test_kernels_run_where_they_pay(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, calls = draw(70, 90, dtype=dtype), []
    monkeypatch.setattr(arithmetic.kernels, "add", lambda a, b: calls.append(a.size) or a)
    small, cut = x[:2], x[:, :89]
    for operand in (x, small, cut, x.astype(np.float64)):
        arithmetic.add(operand, operand)
    assert calls == [x.size]
    with use_backend("native"):
        arithmetic.add(small, small)
    with use_backend("reference"):
        arithmetic.add(x, x)
    assert calls == [x.size, small.size]
    assert small.size < dense.WORTH <= cut.size
