"""Rotary tables and rotation."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends import reference
from nn.backends.device import rotary
from nn.layers.rotary import RopeScaling, inverse_frequencies
from tests.conformance.cases import cases
from tests.conformance.compare import check, compare, to_numpy

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
RANDOM = np.random.default_rng(7)


def into(device: EmulatedDevice) -> Any:
    return lambda array: device.asarray(array) if isinstance(array, np.ndarray) else array


def tables(rows: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    angles = RANDOM.uniform(-7, 7, (rows, half))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def draw(dtype: str, *shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(DTYPES[dtype])


def judge(found: np.ndarray, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, dtype: str,
          **options: bool) -> None:
    wide = [a.astype(np.float64) for a in (x, cos, sin)]
    plain = reference.rope(x, cos, sin, **options)
    compare("y", found, reference.rope(*wide, **options), plain, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cases_of_every_backend(device: EmulatedDevice, dtype: str) -> None:
    for kernel in ("rope", "rope_at"):
        for case in cases(kernel, dtype):
            check(getattr(rotary, kernel), case, into(device), to_numpy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("width", "half"), [(32, 16), (64, 16), (48, 24), (80, 20), (9, 3), (16, 0)])
def test_widths(device: EmulatedDevice, dtype: str, interleaved: bool, width: int, half: int) -> None:
    """Whole packs, partial ones, odd ones, and none."""
    x, (cos, sin) = draw(dtype, 2, 6, 5, width), tables(5, half)
    for inverse in (False, True):
        y = rotary.rope(device.asarray(x), cos, sin, interleaved=interleaved, inverse=inverse).numpy()
        judge(y, x, cos, sin, dtype, interleaved=interleaved, inverse=inverse)
        assert np.array_equal(y[..., 2 * half:], x[..., 2 * half:])


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice) -> None:
    x, (cos, sin) = draw("float16", 1, 3, 4, 32), tables(4, 16)
    judge(rotary.rope(device.asarray(x), cos, sin).numpy(), x, cos, sin, "float16")


@pytest.mark.parametrize("interleaved", [False, True])
def test_queries_and_keys_in_place(device: EmulatedDevice, interleaved: bool) -> None:
    q, k, (cos, sin) = draw("bfloat16", 2, 6, 3, 32), draw("bfloat16", 2, 2, 3, 32), tables(3, 8)
    for in_place in (False, True):
        given = device.asarray(q), device.asarray(k)
        turned = rotary.rope_qk(*given, cos, sin, interleaved=interleaved, in_place=in_place)
        for x, before, y in zip((q, k), given, turned, strict=True):
            assert y is not None
            assert (y is before) == in_place
            judge(y.numpy(), x, cos, sin, "bfloat16", interleaved=interleaved)
    assert rotary.rope_qk(None, given[1], cos, sin)[0] is None


def test_back_is_the_inverse(device: EmulatedDevice) -> None:
    x, (cos, sin) = draw("float32", 1, 2, 7, 16), tables(7, 8)
    y = rotary.rope(rotary.rope(device.asarray(x), cos, sin), cos, sin, inverse=True).numpy()
    np.testing.assert_allclose(y, x, atol=2e-6)


def test_strides(device: EmulatedDevice) -> None:
    """[B,T,H,D] as a projection writes it, seen as [B,H,T,D]: turned where it lies."""
    x, (cos, sin) = draw("float32", 2, 5, 3, 16), tables(5, 8)
    held = device.asarray(x)
    seen = held.view((2, 3, 5, 16), (5 * 3 * 16, 16, 3 * 16, 1))
    rotary.rope_qk(seen, None, cos, sin, in_place=True)
    judge(held.numpy().transpose(0, 2, 1, 3), x.transpose(0, 2, 1, 3), cos, sin, "float32")


def test_strides_that_break_packs(device: EmulatedDevice) -> None:
    """Positions an odd number of elements apart"""
    x, (cos, sin) = draw("float32", 1, 2, 5, 16), tables(5, 8)
    held = device.asarray(np.pad(x[0].transpose(1, 0, 2).reshape(5, 32), ((0, 0), (0, 1))))
    y = rotary.rope(held.view((1, 2, 5, 16), (165, 16, 33, 1)), cos, sin).numpy()
    judge(y, x, cos, sin, "float32")


def test_tables_of_more_than_32_bits(device: EmulatedDevice) -> None:
    """A table of which only the last rows exist: they lie where 64 bits say."""
    x, far = draw("float32", 1, 2, 3, 8), 2**31
    cos, sin = tables(3, 4)
    seen = [device.asarray(a).view((far + 3, 4), (4, 1), -4 * far) for a in (cos, sin)]
    y = rotary.rope_at(device.asarray(x), *seen, np.array([far])).numpy()
    judge(y, x, cos, sin, "float32")


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("starts", [[4], [0, 9, 3]])
def test_positions_are_read_on_the_device(device: EmulatedDevice, dtype: str, starts: list[int]) -> None:
    x, (cos, sin) = draw("float32", 3, 2, 4, 8), tables(13, 4)
    positions = device.asarray(np.array(starts, dtype))
    given = device.asarray(x), device.asarray(cos), device.asarray(sin)
    for shift in (0, 1, -3):                                     # replayed with what the memory holds by then
        moved = np.maximum(np.array(starts, dtype) + shift, 0).astype(dtype)
        device.call("memory_upload", positions, moved.ctypes.data, moved.nbytes)
        device.synchronize()
        y = rotary.rope_qk(given[0], None, *given[1:], positions=positions)[0]
        assert y is not None
        rows = np.broadcast_to(moved, 3)[:, None] + np.arange(4)
        inside = (rows < 13)[:, None, :, None]
        expect = reference.rope(x, cos[rows % 13][:, None], sin[rows % 13][:, None])
        np.testing.assert_allclose(y.numpy(), np.where(inside, expect, np.nan), atol=1e-6)


def test_a_position_before_the_table_gives_nan(device: EmulatedDevice) -> None:
    x, (cos, sin) = draw("float32", 1, 1, 3, 8), tables(4, 4)
    y = rotary.rope_qk(device.asarray(x), None, cos, sin, positions=np.array([-2]))[0]
    assert y is not None
    assert np.isnan(y.numpy()).all(-1).ravel().tolist() == [True, True, False]


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("ntk", 8.0)])
def test_frequencies_and_far_positions(device: EmulatedDevice, scaling: str, factor: float) -> None:
    expect, _ = inverse_frequencies(64, 500000.0, RopeScaling(scaling, factor), 2048)
    inverse = rotary.rope_frequencies(device, 64, 500000.0, scaling=scaling, factor=factor)
    np.testing.assert_allclose(inverse.numpy(), expect, rtol=4e-15)
    for start in (0, 262_140, 2**31 - 4):
        cos, sin = rotary.rope_table(device, expect, 4, start=start, factor=1.25)
        angles = np.arange(start, start + 4)[:, None] * expect
        np.testing.assert_allclose(cos.numpy(), 1.25 * np.cos(angles), atol=1e-7)
        np.testing.assert_allclose(sin.numpy(), 1.25 * np.sin(angles), atol=1e-7)


def test_tables_at_every_quarter_turn(device: EmulatedDevice) -> None:
    angles = np.concatenate([np.arange(-9, 10) * np.pi / 4, np.array([1e5, 262143.0, 1e6 + 0.1])])
    cos, sin = rotary.rope_table(device, angles, 2)
    np.testing.assert_allclose(cos.numpy()[1], np.cos(angles), atol=6e-8)
    np.testing.assert_allclose(sin.numpy()[1], np.sin(angles), atol=6e-8)


@pytest.mark.parametrize("interleaved", [False, True])
def test_bytes_are_moved_once(device: EmulatedDevice, interleaved: bool) -> None:
    """Many positions: one thread has all heads of its channels."""
    q, k = draw("bfloat16", 1, 4, 1800, 64), draw("bfloat16", 1, 2, 1800, 64)
    given, (cos, sin) = (device.asarray(q), device.asarray(k)), map(device.asarray, tables(1800, 32))
    device.configure(check=0, count=1)
    device.clear()
    rotary.rope_qk(*given, cos, sin, interleaved=interleaved)
    (counts,) = (c for name, c in device.counters().items() if "rope_forward" in name)
    compulsory = 2 * (q.nbytes + k.nbytes) + cos.nbytes + sin.nbytes
    assert counts.bytes_read + counts.bytes_written <= 1.05 * compulsory
    # eight cosines of a lane are two loads, which share their sectors; everything else is at the ideal
    shared = 0 if interleaved else (cos.nbytes + sin.nbytes) // 32
    assert counts.sectors == counts.ideal_sectors + shared


def test_wrong_arguments(device: EmulatedDevice) -> None:
    x, (cos, sin) = device.asarray(draw("float32", 1, 1, 3, 8)), tables(3, 4)
    for wrong, words in [((cos[:2], sin[:2]), "2 rows for 3"), ((cos, sin[:, :2]), "shapes"),
                         ((np.zeros((3, 5), np.float32),) * 2, "half: 5"),
                         ((cos.astype(np.float16),) * 2, "float32")]:
        with pytest.raises(DeviceArgumentError, match=words):
            rotary.rope(x, *wrong)
    with pytest.raises(DeviceArgumentError, match="dtype: int64"):
        rotary.rope(device.asarray(np.zeros((1, 1, 3, 8), np.int64)), cos, sin)
    with pytest.raises(DeviceArgumentError, match="positions"):
        rotary.rope_qk(x, None, cos, sin, positions=np.zeros(2, np.int64))
    with pytest.raises(DeviceArgumentError, match="position_dtype"):
        rotary.rope_qk(x, None, cos, sin, positions=np.zeros(1, np.float32))
    with pytest.raises(DeviceArgumentError, match="NTK"):
        rotary.rope_frequencies(device, 2, scaling="ntk", factor=2.0)
    with pytest.raises(DeviceArgumentError, match="start"):
        rotary.rope_table(device, np.ones(2), 3, start=-1)
