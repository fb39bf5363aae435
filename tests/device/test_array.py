"""DeviceArray beside NumPy: elementwise arithmetic, types, views, assignment."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from tests.device.accuracy import counted, moved_bytes

BF16 = ml_dtypes.bfloat16
FLOATS = [np.float32, np.float16, BF16]
ALL = [*FLOATS, np.int64, np.int32, np.uint32, np.uint8, np.bool_, np.float64]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (3, 0, 2), (8, 16), (3, 1, 7), (2, 3, 2, 1, 3, 2)]


def sample(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        low = 0 if np.dtype(dtype).kind == "u" else -9
        return random.integers(low, 10, shape).astype(dtype)
    if dtype == np.bool_:
        return random.random(shape) < 0.5
    return (random.standard_normal(shape) * 3).astype(dtype)


def same(found: DeviceArray, expected: Any, ulps: int = 0) -> None:
    """Equal dtype, shape and values; floats within `ulps` steps of their type."""
    expected = np.asarray(expected)
    host = found.numpy()
    assert host.shape == expected.shape
    assert host.dtype == expected.dtype
    if not ulps:
        assert np.array_equal(host.astype(np.float64), expected.astype(np.float64), equal_nan=True)
        return
    scale = float(ml_dtypes.finfo(expected.dtype).eps) * ulps
    np.testing.assert_allclose(host.astype(np.float64), expected.astype(np.float64), rtol=scale,
                               atol=scale * 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_arithmetic_of_every_shape(device: EmulatedDevice, shape: tuple[int, ...]) -> None:
    a, b = sample(shape), sample(shape, seed=1)
    x, y = device.asarray(a), device.asarray(b)
    same(x + y, a + b)
    same(x - 2, a - np.float32(2))
    same(1.5 * x, np.float32(1.5) * a)
    same(2.0 / (abs(y) + 1), np.float32(2) / (abs(b) + np.float32(1)))
    same(-x, -a)
    same(x < y, a < b)
    same(x.astype(np.int32), a.astype(np.int32))


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv,
                                operator.mod, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
                                operator.ge], ids=lambda op: op.__name__)
def test_operators_in_every_type(device: EmulatedDevice, op: Callable[[Any, Any], Any]) -> None:
    for dtype in [*FLOATS, np.int64, np.int32, np.uint8]:
        a, b = sample((7, 6), dtype), sample((7, 6), dtype, 1)
        b[b == 0] = 1
        expected = op(a.astype(np.float32), b.astype(np.float32)) if dtype in FLOATS else op(a, b)
        if dtype in FLOATS and expected.dtype != bool:
            expected = expected.astype(dtype)
        if op is operator.truediv and dtype not in FLOATS:
            expected = (a / b).astype(np.float32)
        same(op(device.asarray(a), device.asarray(b)), expected)


@pytest.mark.parametrize("op", [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift],
                         ids=lambda op: op.__name__)
def test_bit_operators(device: EmulatedDevice, op: Callable[[Any, Any], Any]) -> None:
    for dtype in [np.int64, np.int32, np.uint8]:
        a, b = sample((9,), dtype), abs(sample((9,), dtype, 1)) % np.asarray(7, dtype)
        same(op(device.asarray(a), device.asarray(b)), op(a, b))
    if op in (operator.and_, operator.or_, operator.xor):
        a, b = sample((9,), np.bool_), sample((9,), np.bool_, 1)
        same(op(device.asarray(a), device.asarray(b)), op(a, b))
        same(~device.asarray(a), ~a)


def test_special_values(device: EmulatedDevice) -> None:
    a = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], np.float32)
    grid = np.broadcast_to(a[:, None], (6, 6))
    x, y = device.asarray(a)[:, None], device.asarray(a)
    xp = device.namespace
    with np.errstate(all="ignore"):
        for name in ("maximum", "minimum", "add", "divide", "less", "equal", "remainder", "pow",
                     "floor_divide"):
            expected = getattr(np, name)(grid, a)
            same(getattr(xp, name)(x, y), expected)
    for name in ("isnan", "isfinite", "isinf", "sign", "floor", "logical_not"):
        same(getattr(xp, name)(y), getattr(np, name)(a))
    assert np.signbit(abs(y).numpy()[4:5]).tolist() == [False]


@pytest.mark.parametrize("name", ["sqrt", "exp", "log", "tanh", "sin", "cos", "log1p", "expm1", "log2",
                                  "reciprocal", "square", "floor", "ceil", "trunc", "round"])
def test_functions(device: EmulatedDevice, name: str) -> None:
    a = sample((3, 50))
    if name in ("sqrt", "log", "log1p", "log2"):
        a = abs(a) + np.float32(0.1)
    function: Callable[[Any], Any] = getattr(np, name)
    expected = function(a.astype(np.float64)).astype(np.float32)
    same(getattr(device.namespace, name)(device.asarray(a)), expected, ulps=4)
    halves = a.astype(BF16)
    expected = function(halves.astype(np.float64)).astype(BF16)
    same(getattr(device.namespace, name)(device.asarray(halves)), expected, ulps=1)


def test_sine_of_large_numbers(device: EmulatedDevice) -> None:
    a = np.array([1e4, 1e6, 3e8, 1e15, 3e38, -2.5e20], np.float32)
    same(device.namespace.sin(device.asarray(a)), np.sin(a.astype(np.float64)).astype(np.float32), ulps=4)
    same(device.namespace.cos(device.asarray(a)), np.cos(a.astype(np.float64)).astype(np.float32), ulps=4)


def test_promotion(device: EmulatedDevice) -> None:
    one = {dtype: device.asarray(np.ones(3, dtype)) for dtype in ALL}
    for a, b, expected in [(BF16, np.float32, np.float32), (np.float16, BF16, np.float32),
                           (np.float16, np.int64, np.float16), (np.int32, np.int64, np.int64),
                           (np.uint8, np.int32, np.int32), (np.uint32, np.int32, np.int64),
                           (np.bool_, np.uint8, np.uint8), (np.float32, np.float64, np.float64)]:
        assert (one[a] + one[b]).dtype == expected
        assert (one[b] + one[a]).dtype == expected
    assert (one[np.float16] + 2.0).dtype == np.float16
    assert (one[BF16] * 3).dtype == BF16
    assert (one[np.int32] + 1).dtype == np.int32
    assert (one[np.int32] * 1.5).dtype == np.float32
    assert (one[np.int64] / 2).dtype == np.float32
    assert (one[np.bool_] + 1).dtype == np.int64
    assert (one[np.float32] * np.float64(2)).dtype == np.float32          # numbers of NumPy are weak, too
    with pytest.raises(OverflowError, match="300 does not fit into uint8"):
        one[np.uint8] + 300


@pytest.mark.parametrize("source", ALL)
def test_casts(device: EmulatedDevice, source: Any) -> None:
    a = abs(sample((4, 9), source)) if np.dtype(source).kind != "b" else sample((4, 9), source)
    x = device.asarray(a)
    for target in ALL:
        same(x.astype(target), a.astype(target))
        same(x[:, ::2].T.astype(target), a[:, ::2].T.astype(target))
    assert x.astype(source, copy=False) is x


def test_large_integers(device: EmulatedDevice) -> None:
    top = 2**63 - 1
    a = np.array([top, -top - 1, 2**53 + 1, 7], np.int64)
    x = device.asarray(a)
    same(x - 1, np.subtract(a, 1, dtype=np.int64))
    same(x == 2**53 + 1, a == 2**53 + 1)
    same(device.full((2,), top, np.int64), np.full(2, top, np.int64))
    same(x // -1, np.array([-top, -top - 1, -(2**53) - 1, -7], np.int64))
    same(x % 0, np.zeros(4, np.int64))


def test_broadcast_and_strides(device: EmulatedDevice) -> None:
    a, b, c = sample((4, 1, 8)), sample((3, 1), seed=1), sample((8,), seed=2)
    x, y, z = device.asarray(a), device.asarray(b), device.asarray(c)
    same(x * y + z, a * b + c)
    same(x[::-1] - z[::-1], a[::-1] - c[::-1])
    same(x.broadcast_to((4, 3, 8)) + 1, np.broadcast_to(a, (4, 3, 8)) + np.float32(1))
    with pytest.raises(DeviceArgumentError, match=r"\[4, 1, 8\] and \[3\] do not broadcast"):
        x + device.asarray(np.zeros(3, np.float32))


VIEWS: list[Callable[[Any], Any]] = [
    lambda x: x[1], lambda x: x[-1, ..., 2], lambda x: x[:, 1:3], lambda x: x[::-2, :, ::3],
    lambda x: x[None, :, 0], lambda x: x[..., None], lambda x: x[2:1],
    lambda x: x[:, ::-1][1:, 2:][..., ::-2], lambda x: x.T,
    lambda x: x.mT[0], lambda x: x.reshape(-1), lambda x: x.reshape(2, 2, 4, -1),
    lambda x: x[:, 1].reshape(5, 4), lambda x: x.T.reshape(-1), lambda x: x[:, :, 1:5].reshape(16, 4),
    lambda x: x[()], lambda x: x[1, 2, 3], lambda x: x[::2].T[::-1].reshape(5, -1),
    lambda x: x.reshape(5, 16)[:, ::2],
]


@pytest.mark.parametrize("number", range(len(VIEWS)))
def test_views(device: EmulatedDevice, number: int) -> None:
    a = sample((4, 4, 5))
    view = VIEWS[number]
    same(view(device.asarray(a)), view(a))
    same(view(device.asarray(a)) * 2, view(a) * np.float32(2))
    same(view(device.asarray(a)).copy(), view(a))


def test_views_share_memory_and_reshape_copies_only_when_it_must(device: EmulatedDevice) -> None:
    x = device.asarray(sample((4, 6)))
    assert x.reshape(2, 2, 6).block is x.block
    assert x[:, 1:3].reshape(4, 2, 1).block is x.block
    assert x.T.reshape(24).block is not x.block
    x[1:3, ::2] = 5.0
    x[0] += x[1]
    a = sample((4, 6))
    a[1:3, ::2] = 5.0
    a[0] += a[1]
    same(x, a)


def test_in_place_overlap_is_read_before_it_is_written(device: EmulatedDevice) -> None:
    for key_to, key_from in [(np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:]), (np.s_[:], np.s_[::-1])]:
        a = sample((300,))
        x = device.asarray(a)
        x[key_to] += x[key_from]
        a[key_to] += a[key_from].copy()
        same(x, a)
        x[key_to] = x[key_from]
        a[key_to] = a[key_from].copy()
        same(x, a)
    a = sample((20, 20))
    x = device.asarray(a)
    x += x.T
    same(x, a + a.T)


def test_assignment(device: EmulatedDevice) -> None:
    a = sample((5, 6))
    x = device.asarray(a)
    x[0], a[0] = 3, 3
    x[:, 1], a[:, 1] = device.asarray(np.arange(5)), np.arange(5)
    x[1:3] = device.asarray(np.array([7.0], BF16))
    a[1:3] = 7
    x[x > 2.0] = -1.0
    a[a > 2] = -1
    x[4, ...] = device.asarray(sample((1, 6), seed=3))
    a[4] = sample((6,), seed=3)
    rows = x[:, 0] < 0
    x[rows] = 0.5
    a[a[:, 0] < 0] = 0.5
    same(x, a)
    x[()] = 1
    same(x, np.ones((5, 6), np.float32))


def test_in_place_keeps_memory_and_type(device: EmulatedDevice) -> None:
    a = sample((7,), BF16)
    x = device.asarray(a)
    pointer = x.pointer
    x += device.asarray(np.ones(7, np.float32))
    x *= 2
    x -= 0.5
    x /= 4.0
    assert x.pointer == pointer
    assert x.dtype == BF16
    whole = device.asarray(np.arange(3))
    with pytest.raises(TypeError, match="in place into int64: the result is float32"):
        whole += 0.5


def test_nothing_reaches_the_host_by_accident(device: EmulatedDevice) -> None:
    x = device.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    before = device.counts()
    for accident in (np.asarray, list, np.exp, lambda x: x[x > 1], lambda x: np.ones(3) + x, bool):
        with pytest.raises((TypeError, ValueError)):
            accident(x)
    assert "3" in repr(x)
    with pytest.raises(TypeError, match="put it on the device first"):
        x + np.ones(3, np.float32)
    assert (device.counts() - before).downloads == 0
    assert float(x[1, 2]) == 5.0
    assert int(x[0, 1]) == 1
    assert bool(x[0, 0]) is False
    assert (device.counts() - before).downloads == 3


def test_broadcast_views_are_not_written(device: EmulatedDevice) -> None:
    x = device.zeros((1, 4), np.float32).broadcast_to((3, 4))
    for key in (np.s_[:], np.s_[1:], x > 0, device.asarray(np.array([0]))):
        with pytest.raises(DeviceArgumentError, match="cannot be written; copy"):
            x[key] = 1.0
    with pytest.raises(DeviceArgumentError, match="cannot be written; copy"):
        x += 1
    x[1] = 3.0                                                     # one row: one element of memory each
    assert (x.numpy() == 3).all()


def test_wrong_indices_are_named(device: EmulatedDevice) -> None:
    x = device.asarray(sample((4, 6)))
    with pytest.raises(IndexError, match="index 4 is outside axis 0 of 4"):
        x[4]
    with pytest.raises(IndexError, match="3 indices for an array with 2 axes"):
        x[0, 0, 0]
    with pytest.raises(TypeError, match="put it on the device"):
        x[[0, 1]]
    with pytest.raises(TypeError, match="where"):
        x[x > 0]
    with pytest.raises(DeviceArgumentError, match=r"\[4, 6\] has 24 elements and cannot become"):
        x.reshape(5, 5)


def test_bytes_of_contiguous_elementwise_are_compulsory(device: EmulatedDevice) -> None:
    a = sample((128, 256), np.float16)
    x, row = device.asarray(a), device.asarray(a[0])
    for run, elements, sizes in [(lambda: x * 2.0, 1, 2), (lambda: x + x, 2, 2), (lambda: x + row, 2, 2),
                                 (lambda: x.astype(np.float32), 1, 4)]:
        device.configure(count=1)
        device.clear()
        run()
        counted = [c for name, c in device.counters().items() if "array_map" in name]
        assert len(counted) == 1
        moved = counted[0].bytes_read + counted[0].bytes_written
        assert moved == a.size * (elements * 2 + sizes)
        assert counted[0].sectors == counted[0].ideal_sectors
    device.configure()


def test_merging_of_axes_in_huge_arrays(device: EmulatedDevice) -> None:
    from ctypes import byref, sizeof

    from cuda.nn.prototypes.array import ArrayLayout

    def merged(shape: list[int], *strides: list[int]) -> tuple[list[int], list[list[int]]]:
        layout = ArrayLayout(size=sizeof(ArrayLayout), ndim=len(shape))
        for axis, n in enumerate(shape):
            layout.shape[axis] = n
            for k, row in enumerate(strides):
                layout.strides[k][axis] = row[axis]
        device.library.nn_array_layout_merge(byref(layout), len(strides))
        n = layout.ndim
        return list(layout.shape[:n]), [list(layout.strides[k][:n]) for k in range(len(strides))]

    big = 1 << 40
    assert merged([8, 1, big, 4], [4 * big, 9, 4, 1]) == ([32 * big], [[1]])
    assert merged([8, big, 4], [4 * big, 4, 1], [0, 4, 1]) == ([8, 4 * big], [[4 * big, 1], [0, 1]])
    assert merged([2, 3, 4], [12, 4, 1], [-12, -4, -1]) == ([24], [[1], [-1]])
    assert merged([2, 3, 4], [12, 4, 1], [1, 2, 6]) == ([2, 3, 4], [[12, 4, 1], [1, 2, 6]])
    assert merged([1, 1], [5, 5]) == ([1], [[1]])
    assert 0 in merged([2, 0, 3], [0, 0, 0])[0]
    with pytest.raises(DeviceArgumentError, match="2\\^62"):
        merged([big, big], [1, 1])


# ---- copies between arrays whose dense axes differ ---------------------------------------------------------

TURNED: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((8, 8), (1, 0)), ((33, 70), (1, 0)), ((130, 36), (1, 0)), ((3, 20, 44), (0, 2, 1)),
    ((12, 3, 40), (2, 1, 0)), ((2, 9, 3, 12), (3, 0, 2, 1)), ((7, 100), (1, 0))]


def turned(x: DeviceArray) -> DeviceArray:
    return x.permute((*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def transposed(device: EmulatedDevice, run: Callable[[], Any], expected: bool = True) -> Any:
    """What `run` gives, and that it went by tiles"""
    results: list[Any] = []
    kernels = counted(device, lambda: results.append(run()))
    assert ("array_transpose" in kernels) == expected, list(kernels)
    return results[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, BF16, np.float32, np.int64, np.float64])
def test_permuted_copies(device: EmulatedDevice, dtype: Any) -> None:
    for shape, axes in TURNED:
        a = sample(shape, dtype)
        same(transposed(device, device.asarray(a).permute(axes).copy, shape[0] != 7), a.transpose(axes))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_permuted_views_at_any_element(device: EmulatedDevice, dtype: Any) -> None:
    a = sample((3, 21, 40), dtype)
    x = device.asarray(a)
    for cut in (np.s_[:, 1:, 1:], np.s_[:, ::-1, 2:], np.s_[1, :, 3:], np.s_[::-2, 1:, :],
                np.s_[:, 4:20, 4:36], np.s_[:, 4:20, 4:37]):
        same(transposed(device, turned(x[cut]).copy), a[cut].swapaxes(-1, -2))
    for cols, to, cut in ((25, np.s_[1:39, 2:23], np.s_[2, :, :38]), (28, np.s_[:36, 4:23], np.s_[0, 2:, 4:]),
                          (27, np.s_[:36, 4:24], np.s_[0, 1:, 4:])):
        b = np.zeros((40, cols), dtype)
        y = device.asarray(b)
        b[to] = a[cut].T
        transposed(device, partial(operator.setitem, y, to, x[cut].T))
        same(y, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64])
def test_permuted_copies_move_whole_sectors(device: EmulatedDevice, dtype: Any) -> None:
    x = device.asarray(sample((128, 256), dtype))
    counts = counted(device, lambda: x.T.copy())["array_transpose"]
    assert moved_bytes(counts) == 2 * x.nbytes
    assert counts.sectors == counts.ideal_sectors
    assert counts.bank_wavefronts == counts.ideal_wavefronts
    assert counts.requests == 2 * x.nbytes / (32 * max(4, x.dtype.itemsize))     # by lanes of 4 bytes or more
