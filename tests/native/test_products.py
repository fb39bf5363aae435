"""Matrix products on every level, where the conformance suite's small cases do not reach: several blocks of k
and chunks, float32's accuracy element by element, infinities, NaN and extreme exponents."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
SHAPES = ((70, 90, 40), (33, 801, 65), (801, 33, 65), (40, 50, 1700), (65, 130, 4300))
UNIT = 2.0**-24


@pytest.fixture(params=LEVELS, autouse=True)
def each_level(request: Any) -> Iterator[str]:
    before = native.fallbacks()
    with native.use_level(request.param), use_backend("native"):
        yield request.param
    assert native.fallbacks() == before, "ran on the reference"


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_product(y: np.ndarray, a: np.ndarray, b: np.ndarray, bias: Any = 0.0) -> None:
    """|y - a b| <= so many units of float32's rounding of the sum of magnitudes, element by element: 4 on
    tiles, which would find a product of parts left out, else one per term, which any order of sums keeps."""
    units = 4 if native.level() == "amx" else a.shape[1] + 2
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    shift = np.asarray(bias, np.float64)
    exact, size = wide_a @ wide_b + shift, np.abs(wide_a) @ np.abs(wide_b) + np.abs(shift)
    excess = np.abs(y.astype(np.float64) - exact) - units * UNIT * size
    assert excess.max() <= 0, f"{excess.max() / size.max() / UNIT:.1f} units beyond {units}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_float32(shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x, weight, dy = draw(1, rows, inputs), draw(2, outputs, inputs), draw(3, rows, outputs)
    bias = draw(4, outputs)
    assert_product(kernels.linear(x, weight, bias=bias), x, weight.T, bias=bias)
    dx, dweight = kernels.linear_backward(dy, x, weight)
    assert_product(dx, dy, weight)
    assert_product(dweight, dy.T, x)
    assert_product(kernels.matmul(np.stack([x, -x]), np.ascontiguousarray([weight.T] * 2))[1], -x, weight.T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_sums_in_float32(shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x, weight, dy, bias = (draw(seed, *size).astype(ml_dtypes.bfloat16) for seed, size in (
        (1, (rows, inputs)), (2, (outputs, inputs)), (3, (rows, outputs)), (4, (outputs,))))
    dx, dweight = kernels.linear_backward(dy, x, weight)
    assert dweight.dtype == np.float32
    assert_product(dweight, dy.T, x)
    for y, a, b, added in ((kernels.linear(x, weight, bias=bias), x, weight.T, bias), (dx, dy, weight, 0.0)):
        exact = a.astype(np.float64) @ b.astype(np.float64) + np.asarray(added, np.float64)
        assert np.abs(y.astype(np.float64) - exact).max() <= 2.0**-8 * np.abs(exact).max()


def test_what_is_not_finite_comes_out_as_with_ieee() -> None:
    x, weight = draw(1, 80, 900), draw(2, 300, 900)
    x[3, 5], x[40, 850], x[41, 2], weight[7, 100], weight[200, 5] = np.inf, -np.inf, np.nan, np.inf, 0.0
    with np.errstate(invalid="ignore"):
        expected = x @ weight.T
    y = kernels.linear(x, weight)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.array_equal(y[np.isinf(y)], expected[np.isinf(expected)])
    finite = np.isfinite(expected)
    assert np.allclose(y[finite], expected[finite], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-22, 1e15])
def test_extreme_exponents(scale: float) -> None:
    """Rows of any scale beside others of 1: no part of a small element is lost, nothing overflows early."""
    x, weight = draw(1, 70, 100), draw(2, 90, 100)
    x[10:50] *= np.float32(scale)
    for factor in (1.0, 1e5):
        w = weight * np.float32(factor)
        y = kernels.linear(x, w)
        size = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
        error = np.abs(y.astype(np.float64) - x.astype(np.float64) @ w.astype(np.float64).T)
        assert np.all(error <= 100 * (UNIT * size + 2.0**-149))
    assert np.array_equal(kernels.linear(np.zeros_like(x), weight), np.zeros((70, 90), np.float32))
