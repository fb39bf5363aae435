"""Matrix products on every level, where the conformance suite's small cases do not reach: several blocks of k
and chunks, float32's accuracy element by element, infinities, NaN and extreme exponents."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.packed import Format, PackedWeight

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
LEVELS = native.levels() if native.missing() is None else []
SHAPES = ((70, 90, 40), (33, 801, 65), (801, 33, 65), (40, 50, 1700), (65, 130, 4300), (1000, 130, 40))
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


def assert_close(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """y = a b, element by element, down to denormals."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    error = np.abs(y.astype(np.float64) - wide_a @ wide_b)
    assert np.all(error <= 100 * (UNIT * (np.abs(wide_a) @ np.abs(wide_b)) + 2.0**-149))


SCALES = (1e-42, 1e-38, 1e-30, 1e-22, 1e15, 1e30)


@pytest.mark.parametrize("scale", SCALES)
def test_extreme_exponents(scale: float) -> None:
    """Rows of any scale beside others of 1: no part of a small element is lost, nothing overflows early."""
    x, weight = draw(1, 70, 100), draw(2, 90, 100)
    x[10:50] *= np.float32(scale)
    for factor in (1.0, 1e5):
        w = weight * np.float32(factor)
        y = kernels.linear(x, w)
        assert_close(y, x, w.T)
        with np.errstate(over="ignore", invalid="ignore"):
            dx, dweight = kernels.linear_backward(y, np.ones_like(x), w)
        if scale < 1e20:                     # else the true gradient overflows
            assert_close(dx, y, w)
        assert_close(dweight, y.T, np.ones_like(x))
    assert np.array_equal(kernels.linear(np.zeros_like(x), weight), np.zeros((70, 90), np.float32))


TINY, HUGE = 1e-42, 1e30           # a denormal, and one whose square is infinite


def mixed(seed: int, rows: int, width: int, scales: tuple[float, ...]) -> np.ndarray:
    """Rows of all of these scales; zeros take the large ones away from some sums"""
    random = np.random.default_rng(seed)
    signs = random.choice([-1.0, 1.0], (rows, width)) * random.uniform(1.0, 2.0, (rows, width))
    return (signs * random.choice(scales, (rows, width))).astype(np.float32)


def assert_ieee(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Element by element: NaN and infinities as the products' sum has them in any order, and where no sum of
    magnitudes overflows as near as one rounding per term, or per denormal."""
    with np.errstate(all="ignore"):
        products = a[:, :, None].astype(np.float64) * b[None].astype(np.float64)
        exact, size = products.sum(axis=1), np.abs(products).sum(axis=1)
    finite = np.isfinite(size)
    assert np.array_equal(np.isnan(y[~finite]), np.isnan(exact[~finite]))
    assert np.array_equal(y[~finite], exact[~finite], equal_nan=True)
    safe = finite & (np.where(finite, size, np.inf) < 3e38)
    error = np.abs(y[safe].astype(np.float64) - exact[safe])
    limit = (a.shape[1] + 2) * (UNIT * size[safe] + 2.0**-149)
    assert np.all(error <= limit), f"{np.max(error / limit):.3g} of what is allowed"


LEFT = ((1.0,), (TINY, 1.0), (TINY, HUGE), (TINY, 1e-20, 1.0, 1e12), (TINY,), (1e-35, 1.0))
RIGHT = ((1.0,), (0.0, 1.0), (0.0, TINY, 1e18), (0.0, HUGE), (TINY, 1e-20))


@pytest.mark.parametrize("left", LEFT, ids=str)
@pytest.mark.parametrize("right", RIGHT, ids=str)
def test_scales_mixed_within_a_row(left: tuple[float, ...], right: tuple[float, ...]) -> None:
    x, weight = mixed(1, 70, 60, left), mixed(2, 50, 60, right)
    assert_ieee(kernels.linear(x, weight), x, weight.T)
    assert_ieee(kernels.linear(weight, x), weight, x.T)
    dx, dweight = kernels.linear_backward(mixed(3, 70, 50, right), x, weight)
    assert_ieee(dweight, mixed(3, 70, 50, right).T, x)
    assert_ieee(dx, mixed(3, 70, 50, right), weight)


def test_infinities_and_nan_among_all_scales() -> None:
    x, weight = mixed(1, 70, 60, (TINY, 1.0, HUGE)), mixed(2, 50, 60, (0.0, 1e-5, 1.0))
    x[3, 5], x[20, 7], x[21, 2], x[50:60, 11] = np.inf, -np.inf, np.nan, np.inf
    weight[7, 11], weight[8, 5], weight[9, 0], weight[10, 3] = -np.inf, 0.0, np.nan, np.inf
    assert_ieee(kernels.linear(x, weight), x, weight.T)
    assert_ieee(kernels.matmul(np.stack([x, x]), np.ascontiguousarray([weight.T] * 2))[1], x, weight.T)


@pytest.mark.parametrize("scale", SCALES)
def test_experts_rows_of_any_scale(scale: float) -> None:
    x, weight, offsets = draw(1, 64, 40), draw(2, 2, 50, 40), np.array([0, 40, 64])
    x[10:30] *= np.float32(scale)
    y = kernels.grouped_linear(x, weight, offsets)
    dx, dweight = kernels.grouped_linear_backward(y, x * 0 + 1, weight, offsets)
    for expert, rows in enumerate((slice(0, 40), slice(40, 64))):
        assert_close(y[rows], x[rows], weight[expert].T)
        assert_close(dx[rows], y[rows], weight[expert])
        assert_close(dweight[expert], y[rows].T, np.ones((y[rows].shape[0], 40), np.float32))


# ---- packed weights: tiles from 24 rows on -----------------------------------------------------------------


def packed_linear(x: np.ndarray, weight: np.ndarray, bias: Any = None) -> np.ndarray:
    packed = PackedWeight.pack(weight, Format.f32).data
    return kernels.packed_linear(x, packed, int(Format.f32), len(weight), bias=bias)


@pytest.mark.parametrize("shape", [*SHAPES, (23, 40, 70), (24, 16, 31), (530, 70, 800), (33, 17, 1)], ids=str)
def test_packed_float32_is_float32(shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x, weight, bias = draw(1, rows, inputs), draw(2, outputs, inputs), draw(3, outputs)
    assert_product(packed_linear(x, weight, bias), x, weight.T, bias=bias)


def packed_bfloat16(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    packed = PackedWeight.pack(weight, Format.bf16).data
    return kernels.packed_linear(x, packed, int(Format.bf16), len(weight))


@pytest.mark.parametrize("rows", [2, 4, 5, 8, 12, 13, 20, 33, 530])      # panels whole and cut; two parts
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 70), (16, 1001), (64, 384), (33, 1), (20, 0)])
def test_packed_bfloat16_row_alone_and_among_others(rows: int, outputs: int, inputs: int) -> None:
    """The same bits where there are no tiles, in one block of k and in several; rows lie apart."""
    x, weight = (draw(seed, *shape).astype(ml_dtypes.bfloat16) for seed, shape in (
        (1, (rows, inputs + 3)), (2, (outputs, inputs))))
    x = x[:, :inputs]
    bad = 2 if inputs > 100 else 0                       # rows that are not finite
    if bad:
        x[0, 5], x[1, inputs - 5] = np.inf, np.nan       # in the first block of k, and in the last
    y = packed_bfloat16(x, weight)
    wide_x, wide = x[bad:].astype(np.float64), weight.astype(np.float64)
    exact, size = wide_x @ wide.T, np.abs(wide_x) @ np.abs(wide).T
    assert np.all(np.abs(y[bad:] - exact) <= 2.0**-8 * np.abs(exact) + (inputs + 2) * UNIT * size)
    if bad:
        assert np.array_equal(y[0], np.copysign(np.inf, wide[:, 5]))
        assert np.isnan(y[1]).all()
    if native.level() != "amx":
        alone = [packed_bfloat16(row[None], weight)[0] for row in x]
        assert np.array_equal(np.stack(alone), y, equal_nan=True)


@pytest.mark.parametrize("rows", [22177, 22188, 25280])        # parts of 512 rows or some more, none empty
def test_packed_bfloat16_very_many_rows(rows: int) -> None:
    x, weight = (draw(seed, *shape).astype(ml_dtypes.bfloat16) for seed, shape in (
        (1, (rows, 1)), (2, (16, 1))))
    y, exact = packed_bfloat16(x, weight), x.astype(np.float32) * weight.astype(np.float32).T
    assert np.array_equal(y, exact.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("left", [*LEFT, (3.0, 2.0**127)], ids=str)
@pytest.mark.parametrize("right", RIGHT, ids=str)
def test_packed_scales_mixed_within_a_row(left: tuple[float, ...], right: tuple[float, ...]) -> None:
    x, weight = mixed(1, 70, 60, (1.0,)), mixed(2, 50, 60, right)
    x[35:] = mixed(3, 35, 60, left)
    assert_ieee(packed_linear(x, weight), x, weight.T)
    assert_ieee(packed_linear(weight, x), weight, x.T)


def test_packed_infinities_and_nan() -> None:
    x, weight = mixed(1, 70, 60, (TINY, 1.0, HUGE)), mixed(2, 50, 60, (0.0, 1e-5, 1.0))
    x[3, 5], x[20, 7], x[21, 2], x[50:60, 11] = np.inf, -np.inf, np.nan, np.inf
    weight[7, 11], weight[8, 5], weight[9, 0], weight[10, 3] = -np.inf, 0.0, np.nan, np.inf
    assert_ieee(packed_linear(x, weight), x, weight.T)
    x, weight = draw(1, 70, 900), draw(2, 40, 900)
    x[69, 899] = weight[39, 880] = np.inf           # in the last block of k; the rows before stay finite
    y = packed_linear(x, weight)
    assert not np.isfinite(y[69]).any()
    assert not np.isfinite(y[:, 39]).any()
    assert_product(y[:69, :39], x[:69], weight[:39].T)


@pytest.mark.parametrize("column", [3, 880])         # in the first of two blocks of k, and in the last
def test_packed_infinity_in_any_block(column: int) -> None:
    x, weight = draw(1, 70, 900), draw(2, 40, 900)
    weight[39, column] = np.inf
    for y in (packed_linear(x, weight), packed_linear(weight, x).T):
        np.testing.assert_array_equal(y[:, 39], np.copysign(np.inf, x[:, column]))
        assert_product(y[:, :39], x, weight[:39].T)


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1.0, 1e12])
def test_packed_experts_rows_of_any_scale(scale: float) -> None:
    """Hidden values reach scale^2, beyond what tiles take; one expert of 40 rows, one of 30."""
    x, up, down = draw(1, 70, 100), draw(2, 2, 96, 100), draw(3, 2, 100, 48)
    x[30:50] *= np.float32(scale)
    experts, gates = (np.arange(70) >= 40).astype(np.int64)[:, None], np.ones((70, 1), np.float32)
    y = kernels.packed_experts(x, PackedWeight.pack(up, Format.f32, gated=True).data,
                               PackedWeight.pack(down, Format.f32).data, gates, experts, 2, 48,
                               int(Format.f32))
    for expert, own in enumerate((slice(0, 40), slice(40, 70))):
        wide = x[own].astype(np.float64)
        with np.errstate(over="ignore"):
            gate, value = np.split(wide @ up[expert].astype(np.float64).T, 2, axis=1)
            hidden = gate / (1 + np.exp(-gate)) * value
        exact = hidden @ down[expert].astype(np.float64).T
        size = np.abs(wide).max(axis=1, keepdims=True) ** 2 * 1e4 + np.abs(exact).max(axis=1, keepdims=True)
        assert np.all(np.abs(y[own] - exact) <= 1e-5 * size + 1e-43)
