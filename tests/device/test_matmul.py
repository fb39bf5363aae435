"""Matrix products as arrays have them: matmul and linear of any axes and types, views, refusals."""


import numpy as np
import pytest

from cuda.nn import products
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.matmul import linear, linear_backward, matmul
from tests.device.conftest import opened
from tests.device.test_gemm import TYPES, UNIT, Shape, draw, judge


@pytest.mark.parametrize(("a", "b"), [
    ((5, 7), (7, 3)), ((2, 3, 5, 7), (7, 3)), ((2, 3, 5, 7), (3, 7, 4)), ((2, 1, 5, 7), (1, 3, 7, 4)),
    ((5, 7), (2, 7, 4)), ((1, 5, 7), (7, 4)), ((1, 1, 5, 7), (1, 1, 7, 4)), ((7,), (7, 3)), ((5, 7), (7,)),
    ((7,), (7,)), ((2, 5, 7), (7,)), ((0, 5, 7), (7, 3)), ((2, 0, 7), (7, 3)), ((2, 5, 0), (0, 3))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_broadcasts(device: EmulatedDevice, a: Shape, b: Shape, dtype: str) -> None:
    rng = np.random.default_rng(16)
    x, y = draw(rng, a, dtype), draw(rng, b, dtype)
    found = matmul(device.asarray(x), device.asarray(y)).numpy()
    expected = np.matmul(x.astype(np.float64), y.astype(np.float64))
    assert (found.shape, found.dtype) == (expected.shape, np.dtype(TYPES[dtype]))
    unit = UNIT[dtype]
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=16 * unit, rtol=4 * unit)


def test_transposed_views_are_not_copied(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(17)
    x, w = draw(rng, (3, 6, 16, 8), "float16"), draw(rng, (40, 8), "float16")
    x_there, w_there = device.asarray(x), device.asarray(w)
    before = device.counts()
    y = matmul(x_there, w_there.T)
    scores = matmul(x_there, x_there.mT)
    assert device.counts().copied_bytes == before.copied_bytes
    judge(y.numpy(), x, w.T, "float16")
    judge(scores.numpy(), x, np.swapaxes(x, -1, -2), "float16")
    gaps = matmul(w_there[::2, ::2], w_there[1::2, 1::2].T)        # neither rows nor columns in one piece
    judge(gaps.numpy(), w[::2, ::2], w[1::2, 1::2].T, "float16")


@pytest.mark.parametrize(("a", "b", "out"), [
    ("float16", "float32", "float32"), ("bfloat16", "float32", "float32"), ("float16", "bfloat16", "float32"),
    ("float16", "float16", "float16")])
def test_types_mix_into_the_wider(device: EmulatedDevice, a: str, b: str, out: str) -> None:
    rng = np.random.default_rng(18)
    x, y = draw(rng, (9, 16), a), draw(rng, (16, 11), b)
    judge(matmul(device.asarray(x), device.asarray(y)).numpy(), x, y, out)


def test_linear_of_two_types_gives_the_first(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(20)
    x, w = draw(rng, (9, 16), "bfloat16"), draw(rng, (11, 16), "float32")
    judge(linear(device.asarray(x), device.asarray(w)).numpy(), x, w.T, "bfloat16")


def test_no_rows_give_zero_gradients(device: EmulatedDevice) -> None:
    x, w, dy = (device.empty(shape, np.float16) for shape in ((0, 8), (5, 8), (0, 5)))
    dx, dw = linear_backward(dy, x, w)
    assert dx.shape == (0, 8)
    np.testing.assert_array_equal(dw.numpy(), np.zeros((5, 8), np.float32))


def test_shapes_that_do_not_fit_are_refused(device: EmulatedDevice) -> None:
    x, y = device.asarray(np.ones((3, 4), np.float32)), device.asarray(np.ones((5, 6), np.float32))
    with pytest.raises(DeviceArgumentError, match=r"\[3, 4\] and \[5, 6\]; 4 columns, 5 rows"):
        matmul(x, y)
    with pytest.raises(DeviceArgumentError, match="inner sizes 4 and 5"):
        products.gemm(x, y)
    with pytest.raises(DeviceArgumentError, match="out: shape"):
        products.gemm(x, x, trans_b=True, out=y)
    with pytest.raises(DeviceArgumentError, match="bias: shape"):
        products.gemm(x, x, trans_b=True, bias=y)
    with pytest.raises(DeviceArgumentError, match="activation: 'sine'"):
        products.gemm(x, x, trans_b=True, activation="sine")
    with pytest.raises(DeviceArgumentError, match="path: 'fast'; expected one of auto, tiled"):
        products.gemm(x, x, trans_b=True, path="fast")
    with pytest.raises(DeviceArgumentError, match="beta: 0.5 without out"):
        products.gemm(x, x, trans_b=True, beta=0.5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("lead", [(), (1,), (2,)])
def test_columns_with_gaps_are_no_destination(device: EmulatedDevice, rows: int, lead: Shape) -> None:
    """Not even those of a single row; rows with gaps are."""
    x, y = device.asarray(np.ones((*lead, rows, 4), np.float32)), device.asarray(np.ones((4, 3), np.float32))
    whole = device.asarray(np.full((*lead, 2 * rows, 6), 7.0, np.float32))
    with pytest.raises(DeviceArgumentError, match="out: .* rows must lie in one piece"):
        products.gemm(x, y, out=whole[..., :rows, ::2])
    assert (whole.numpy() == 7).all()
    products.gemm(x, y, out=whole[..., ::2, 1:4])
    expected = np.full(whole.shape, 7.0)
    expected[..., ::2, 1:4] = 4
    np.testing.assert_array_equal(whole.numpy(), expected)


def test_arrays_of_two_devices_are_refused(device: EmulatedDevice) -> None:
    x, far = (on.asarray(np.ones((4, 4), np.float32)) for on in (device, opened("sm_75", "check")))
    for name, b, out, bias in (("b", far, None, None), ("out", x, far, None), ("bias", x, None, far)):
        with pytest.raises(DeviceArgumentError, match=f"{name}: .* is on another device than"):
            products.gemm(x, b, out=out, bias=bias)
