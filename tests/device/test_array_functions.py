"""Reductions, indexing arrays, cumulative sums, sorting, products, and the array namespace, beside NumPy."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.graph import Graph
from cuda.nn.layout import layout
from cuda.nn.reductions import Reduction
from tests.device.test_array import same, sample

BF16 = ml_dtypes.bfloat16
SameBits = Callable[[Callable[[], list[np.ndarray]]], None]


@pytest.mark.parametrize(("shape", "axis"), [
    ((), None), ((0,), 0), ((7,), 0), ((3, 0), 1), ((0, 3), 0), ((5, 33), 1), ((5, 33), 0), ((5, 33), None),
    ((4, 3, 6), (0, 2)), ((4, 3, 6), 1), ((2, 3, 2, 5), (1, 3)), ((2, 2100), 1), ((1100, 3), 0),
    ((1, 9000), 1), ((3, 5), ()),
])
def test_reductions(device: EmulatedDevice, shape: tuple[int, ...], axis: Any) -> None:
    a = sample(shape)
    x, xp = device.asarray(a), device.namespace
    n = np.sum(np.ones(shape), axis=axis)
    for keepdims in (False, True):
        found = xp.sum(x, axis=axis, keepdims=keepdims)
        expected = np.sum(a.astype(np.float64), axis=axis, keepdims=keepdims)
        assert found.shape == expected.shape
        atol = 1e-5 * max(1, float(np.max(n, initial=1)))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=atol)
    same(xp.any(x > 5, axis=axis), np.any(a > 5, axis=axis))
    same(xp.all(x > -9, axis=axis), np.all(a > -9, axis=axis))
    whole = sample(shape, np.int32)
    same(xp.sum(device.asarray(whole), axis=axis), np.sum(whole, axis=axis, dtype=np.int64))
    if a.size:
        same(xp.max(x, axis=axis), np.max(a, axis=axis))
        same(xp.min(x, axis=axis, keepdims=True), np.min(a, axis=axis, keepdims=True))
        mean = np.mean(a.astype(np.float64), axis=axis)
        np.testing.assert_allclose(xp.mean(x, axis=axis).numpy(), mean, atol=1e-5)
        if axis is None or isinstance(axis, int):
            same(xp.argmax(x, axis=axis), np.argmax(a, axis=axis))
            same(xp.argmin(x, axis=axis), np.argmin(a, axis=axis))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.int64, np.uint8, np.bool_])
def test_reductions_of_views_in_every_type(device: EmulatedDevice, dtype: Any) -> None:
    a, xp = sample((6, 10, 9), dtype), device.namespace
    x = device.asarray(a)
    for view in (lambda x: x[:, 1::2].T, lambda x: x[::-1, :, ::-2], lambda x: x[2, :, None]):
        b, y = view(a), view(x)
        for axis in (0, 1, (0, 1)):
            total = b.astype(np.float64).sum(axis=axis)
            found = xp.sum(y, axis=axis)
            assert found.dtype == (dtype if np.dtype(dtype).kind in "fV" else np.int64)
            rtol = 1e-2 if dtype == BF16 else 1e-3
            np.testing.assert_allclose(found.numpy().astype(np.float64), total, rtol=rtol, atol=0.05)
        same(xp.argmax(y, axis=0), np.argmax(b, axis=0))
        same(xp.max(y, axis=1), np.max(b, axis=1))


def test_nan_wins_and_the_first_of_equals(device: EmulatedDevice) -> None:
    a = np.array([[1, np.nan, 3, np.nan], [2, 5, 5, -np.inf], [-np.inf] * 4], np.float32)
    x, xp = device.asarray(a), device.namespace
    same(xp.argmax(x, axis=1), np.argmax(a, axis=1))
    same(xp.argmin(x, axis=1), np.argmin(a, axis=1))
    same(xp.max(x, axis=1), np.max(a, axis=1))
    with pytest.raises(ValueError, match="max of no elements"):
        xp.max(device.asarray(np.zeros((3, 0), np.float32)), axis=1)


def test_long_sums_are_accurate(device: EmulatedDevice) -> None:
    a = np.full((2, 20001), 0.1, np.float32)
    expected = a.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(device.asarray(a).sum(axis=1).numpy(), expected, rtol=2e-7)
    np.testing.assert_allclose(device.asarray(a.T.copy()).sum(axis=0).numpy(), expected, rtol=2e-7)


def test_a_sum_does_not_depend_on_the_other_rows(device: EmulatedDevice) -> None:
    a = sample((70, 9001))
    many = device.asarray(a).sum(axis=1).numpy()
    assert device.asarray(a[3:4]).sum(axis=1).numpy() == many[3]


def test_take(device: EmulatedDevice) -> None:
    a, xp = sample((7, 5, 8)), device.namespace
    x = device.asarray(a)
    for index in (np.array([3, 0, 3, -1]), np.array([[1, 2], [4, 0]], np.int32), np.array(2),
                  np.zeros(0, np.int64)):
        i = device.asarray(index)
        for axis, n in enumerate(a.shape):
            same(xp.take(x, i % n, axis=axis), np.take(a, index % n, axis=axis))
        same(x[i], a[index])
        same(x[:, 1:, i], a[:, 1:, index])
        same(x.T[i % 5, 0], a.T[index % 5, 0])
    out = x[device.asarray(np.array([0, 7, -8]))].numpy()
    assert np.isnan(out[1:]).all()
    assert (device.asarray(np.arange(4))[device.asarray(np.array([9, 1]))].numpy() == [0, 1]).all()


def test_take_from_more_than_32_bits(device: EmulatedDevice) -> None:
    """Of an axis only whose end exists: it lies where 64 bits say."""
    a, far = sample((3, 8)), 2**31
    x = device.asarray(a).view((far + 3, 8), (8, 1), -8 * far)
    same(x[device.asarray(np.array([far + 2, far]))], a[[2, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, BF16, np.float32, np.int64])
def test_take_along_axis(device: EmulatedDevice, dtype: Any) -> None:
    a, random = sample((4, 5, 6), dtype), np.random.default_rng(2)
    x = device.asarray(a)
    for axis, n in enumerate(a.shape):
        shape = tuple(3 if d == axis else m for d, m in enumerate(a.shape))
        index = random.integers(-n, n, shape)
        found = device.namespace.take_along_axis(x, device.asarray(index), axis=axis)
        same(found, np.take_along_axis(a, index, axis))
    index = random.integers(0, 6, (1, 5, 2))
    found = device.namespace.take_along_axis(x, device.asarray(index), axis=-1)
    same(found, np.take_along_axis(a, index, -1))


def test_scatter(device: EmulatedDevice) -> None:
    a, v = sample((6, 4, 8)), sample((5, 4, 8), seed=1)
    index = np.array([2, 5, 2, -1, 0])
    x = device.asarray(a)
    x[device.asarray(index)] = device.asarray(v)
    a[index] = v
    same(x, a)
    x[:, 1, device.asarray(index)] = 3.0
    a[:, 1, index] = 3
    x[0].T[device.asarray(index)] = device.asarray(v[0, 0, :4])
    a[0].T[index] = v[0, 0, :4]
    same(x, a)
    x[device.asarray(np.array([6, -7]))] = 9.0                     # outside: nothing is written
    same(x, a)
    x[device.asarray(np.array([1, 3]))] += 1.0
    a[[1, 3]] += 1
    same(x, a)


@pytest.mark.parametrize("n", [0, 1, 3, 1000, 1024, 1025, 4096, 4099, 9000])
def test_cumulative_sum(device: EmulatedDevice, n: int) -> None:
    xp = device.namespace
    whole = sample((2, n), np.int32)
    same(xp.cumulative_sum(device.asarray(whole), axis=1), np.cumsum(whole, axis=1, dtype=np.int64))
    a = sample((n, 2))
    found = xp.cumulative_sum(device.asarray(a), axis=0).numpy()
    np.testing.assert_allclose(found, np.cumsum(a.astype(np.float64), axis=0), rtol=1e-5, atol=1e-3)
    same(xp.cumulative_sum(device.asarray(whole), axis=1, include_initial=True),
         np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(whole, axis=1, dtype=np.int64)], axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.int64, np.int32, np.uint32, np.uint8,
                                   np.bool_])
def test_sort(device: EmulatedDevice, dtype: Any) -> None:
    xp = device.namespace
    for shape in [(0, 4), (3, 1), (50, 7), (2, 1024)]:
        a = sample(shape, dtype)
        order = np.argsort(a.astype(np.float64), axis=-1, kind="stable")
        same(xp.argsort(device.asarray(a), axis=-1), order)
        same(xp.sort(device.asarray(a), axis=-1), np.take_along_axis(a, order, -1))
        down = np.argsort(-a.astype(np.float64), axis=-1, kind="stable")
        same(xp.argsort(device.asarray(a), axis=-1, descending=True), down)
    a = sample((2, 5, 3), dtype)
    same(xp.argsort(device.asarray(a), axis=1), np.argsort(a.astype(np.float64), axis=1, kind="stable"))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_sort_of_long_rows(device: EmulatedDevice, dtype: Any) -> None:
    a = sample((2, 3500), dtype)
    same(device.namespace.argsort(device.asarray(a)), np.argsort(a, axis=-1, kind="stable"))


def test_sort_of_special_values(device: EmulatedDevice) -> None:
    a = np.array([0.0, np.nan, -0.0, np.inf, -1, -np.inf, np.nan, 0.0, 1e-42, -1e-42], np.float32)
    same(device.namespace.argsort(device.asarray(a)), np.argsort(a, kind="stable"))
    b = np.array([2**63 - 1, -(2**63), 0, 5, 2**63 - 1], np.int64)
    same(device.namespace.argsort(device.asarray(b)), np.argsort(b, kind="stable"))
    assert device.namespace.argsort(device.asarray(a), descending=True).numpy()[-2:].tolist() == [1, 6]


def test_searchsorted(device: EmulatedDevice) -> None:
    for dtype in (np.int64, np.float32, BF16, np.int32):
        a, v = np.sort(sample((40,), dtype).astype(np.float64)).astype(dtype), sample((3, 6), dtype, 1)
        for side in ("left", "right"):
            expected = np.searchsorted(a.astype(np.float64), v.astype(np.float64), side=side)
            same(device.namespace.searchsorted(device.asarray(a), device.asarray(v), side=side), expected)


@pytest.mark.parametrize(("left", "right"), [
    ((3, 4), (4, 5)), ((4,), (4, 3)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((3, 0), (0, 2)), ((0, 4), (4, 2)),
    ((2, 2, 3, 4), (1, 2, 4, 1)), ((1, 1), (1, 1)),
])
def test_matmul(device: EmulatedDevice, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = sample(left), sample(right, seed=1)
    x, y = device.asarray(a), device.asarray(b)
    np.testing.assert_allclose((x @ y).numpy(), a @ b, rtol=1e-5, atol=1e-5)


def test_matmul_of_views_copies_nothing(device: EmulatedDevice) -> None:
    a, b = sample((4, 6, 8)), sample((4, 5, 8), seed=1)
    x, y = device.asarray(a), device.asarray(b)
    for found, expected in [(lambda: x @ y.mT, a @ b.swapaxes(1, 2)), (lambda: x[1].T @ x[1], a[1].T @ a[1]),
                            (lambda: x[:, 1:3] @ y[2].T, a[:, 1:3] @ b[2].T),
                            (lambda: x.permute((1, 0, 2)) @ y[0].T, a.transpose(1, 0, 2) @ b[0].T)]:
        before = device.counts()
        device.clear()
        c = found()
        assert (device.counts() - before).copied_bytes == 0
        np.testing.assert_allclose(c.numpy(), expected, rtol=1e-5, atol=1e-5)
    c = x[::-1, :, ::2] @ y[:, :, ::2].mT                          # strides that no matrix has
    np.testing.assert_allclose(c.numpy(), a[::-1, :, ::2] @ b[:, :, ::2].mT, rtol=1e-5, atol=1e-5)
    with pytest.raises(DeviceArgumentError, match="8 columns, 5 rows"):
        x @ y
    with pytest.raises(DeviceArgumentError, match="int64"):
        device.asarray(np.eye(2, dtype=np.int64)) @ device.asarray(np.eye(2, dtype=np.int64))


def test_generic_operations_can_be_recorded(device: EmulatedDevice) -> None:
    """None of them allocates behind the pool's back, waits, or looks at what the device holds."""
    xp, a = device.namespace, sample((6, 40))
    x, index = device.asarray(a), device.asarray(np.array([4, 0]))
    before = device.counts()
    with Graph.capture(device) as graph:
        y = xp.where(x > 0, x, 2.0).T[index] + x[:2].sum(axis=1)[0]
        z = xp.cumulative_sum(xp.sort(x, axis=1), axis=1)
        z[index] = 7.0
        w = x @ x.T
    done = device.counts() - before
    assert (done.synchronizations, done.downloads, done.uploads) == (0, 0, 0)
    for seed in (0, 1):
        a = sample((6, 40), seed=seed)
        x[...] = device.asarray(a)
        graph.replay()
        expected = np.where(a > 0, a, 2).T[[4, 0]] + a[0].sum()
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-4)
        expected = np.cumsum(np.sort(a, axis=1), axis=1)
        expected[[4, 0]] = 7
        np.testing.assert_allclose(z.numpy(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(w.numpy(), a @ a.T, rtol=1e-4, atol=1e-3)


def test_making_and_joining(device: EmulatedDevice) -> None:
    xp = device.namespace
    a, b = sample((2, 3)), sample((2, 3), seed=1)
    x, y = device.asarray(a), device.asarray(b)
    same(xp.concat([x, y], axis=1), np.concatenate([a, b], axis=1))
    same(xp.stack([x, y], axis=-1), np.stack([a, b], axis=-1))
    same(xp.roll(x, 4, axis=1), np.roll(a, 4, axis=1))
    same(xp.roll(x, 1), np.roll(a, 1))
    same(xp.flip(x, axis=0), np.flip(a, axis=0))
    same(xp.tile(x, (2, 1, 3)), np.tile(a, (2, 1, 3)))
    same(xp.repeat(x, 2, axis=0), np.repeat(a, 2, axis=0))
    same(xp.squeeze(xp.expand_dims(x, axis=1), 1), a)
    same(xp.clip(x, -1.0, 1.0), np.clip(a, np.float32(-1), np.float32(1)))
    same(xp.where(x > 0, x, 0.0), np.where(a > 0, a, np.float32(0)))
    same(xp.where(x > 0, 1, 2), np.where(a > 0, 1, 2))
    same(xp.arange(2, 9, 3), np.arange(2, 9, 3))
    same(xp.arange(0.0, 1.0, 0.25), np.array([0, 0.25, 0.5, 0.75], np.float32))
    same(xp.arange(-5), np.arange(-5))
    same(xp.full((2, 2), 7), np.full((2, 2), 7))
    same(xp.ones_like(x), np.ones_like(a))
    np.testing.assert_allclose(xp.var(x, axis=1).numpy(), a.var(axis=1), rtol=1e-5)
    assert xp.isdtype(BF16, "real floating")
    assert not xp.isdtype(np.int32, ("bool", "real floating"))
    assert xp.finfo(BF16).eps == 2**-7
    assert x.__array_namespace__() is xp
    with pytest.raises(TypeError, match="without reading the device"):
        xp.nonzero(x)


def test_mean_of_integers_in_float64(device: EmulatedDevice) -> None:
    """Which nobody asks for in Python: not divided as integers."""
    x, y = device.asarray(np.array([1, 2, 4, 8], np.int64)), device.empty((), np.float64)
    sizes = layout((4,), (0,), (1,)), 1, int(Reduction.MEAN), y.code, x.code
    device.call("array_reduce", y, x, *sizes, None, 0)
    assert y.numpy() == 3.75
