"""Softmax kernels: every path by width, the causal mask, extremes, errors."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from tests.conformance import naive
from tests.conformance.cases import cases
from tests.conformance.compare import check, in_layout, to_numpy
from tests.device.accuracy import DTYPES, PLACES, accurate, counted, draw, moved_bytes

KERNELS = {function.__name__: function for function in (softmax, softmax_backward, log_softmax,
                                                        log_softmax_backward)}
CODE = {"float32": 0, "float16": 1, "bfloat16": 2}
ROWS, KEPT, CHUNKS, FINISH = "softmax_rows", "softmax_kept", "softmax_chunks", "softmax_finish"

# rows, columns and the kernel that takes them: for 4-byte elements, aligned
PATHS = ((5, 1, ROWS), (17, 4, ROWS), (9, 64, ROWS), (9, 65, ROWS), (5, 68, ROWS), (5, 128, ROWS),
         (5, 132, ROWS),
         (5, 256, ROWS), (3, 257, KEPT), (3, 260, ROWS), (3, 1024, ROWS), (2, 1028, KEPT), (2, 4100, KEPT),
         (1, 8200, KEPT), (1, 16128, KEPT), (1, 16132, FINISH), (1, 16129, FINISH), (2, 33001, FINISH))


def workspace(device: EmulatedDevice, rows: int, cols: int, dtype: str) -> tuple[DeviceArray | None, int]:
    size = device.library.nn_softmax_workspace_size(rows, cols, CODE[dtype])
    return (device.workspace(size) if size else None), size


def call(device: EmulatedDevice, name: str, out: DeviceArray, *arguments: Any, dtype: str,
         extra: Any = ()) -> None:
    rows, cols = out.shape
    device.call(name, out, *arguments, rows, cols, *extra, CODE[dtype], *workspace(device, rows, cols, dtype))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conformance(device: EmulatedDevice, kernel: str, dtype: str) -> None:
    for case in cases(kernel, dtype):
        check(KERNELS[kernel], case, device.asarray, to_numpy)
        if case.name == "4x130":
            check(KERNELS[kernel], in_layout(case, "reversed"), device.asarray, to_numpy)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("rows", "cols", "path"), PATHS)
def test_every_path(device: EmulatedDevice, rows: int, cols: int, path: str, place: str) -> None:
    x, dy = draw("float32", rows, cols, scale=4.0), draw("float32", rows, cols, seed=1)
    given, out = PLACES[place](device, x), PLACES[place](device, np.zeros_like(x))

    def forward() -> None:
        call(device, "softmax_forward", out, given, dtype="float32")

    if place == "aligned":
        assert path in counted(device, forward)
    else:
        forward()
    accurate("softmax", "float32", [out], x)
    y, gradient = naive.softmax(x.astype(np.float64)).astype(np.float32), PLACES[place](device, dy)
    call(device, "softmax_backward", out, gradient, PLACES[place](device, y), dtype="float32")
    accurate("softmax_backward", "float32", [out], dy, y)
    call(device, "log_softmax_forward", out, given, dtype="float32")
    accurate("log_softmax", "float32", [out], x)
    call(device, "log_softmax_backward", out, gradient, given, dtype="float32")
    accurate("log_softmax_backward", "float32", [out], dy, x)
    call(device, "softmax_forward", given, given, dtype="float32")                              # in place
    accurate("softmax", "float32", [given], x)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(9, 64), (5, 256), (3, 520), (3, 2048), (2, 2056), (1, 16200),
                                            (1, 33000)])
def test_half_precision(device: EmulatedDevice, rows: int, cols: int, dtype: str, place: str) -> None:
    x, dy = draw(dtype, rows, cols, scale=4.0), draw(dtype, rows, cols, seed=1)
    out = device.empty((rows, cols), x.dtype)
    call(device, "softmax_forward", out, PLACES[place](device, x), dtype=dtype)
    accurate("softmax", dtype, [out], x)
    y = naive.softmax(x.astype(np.float64)).astype(x.dtype)
    call(device, "softmax_backward", out, PLACES[place](device, dy), PLACES[place](device, y), dtype=dtype)
    accurate("softmax_backward", dtype, [out], dy, y)


def test_a_million_columns(device: EmulatedDevice) -> None:
    x = draw("bfloat16", 1, 1_000_000, scale=2.0)
    y = softmax(device.asarray(x)).numpy().astype(np.float64)
    np.testing.assert_allclose(y, naive.softmax(x.astype(np.float64)), rtol=2.0**-8)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("rows", "cols", "period", "offset"), [
    (6, 6, 6, 0), (6, 7, 3, 2), (4, 9, 4, -2), (3, 300, 3, 170), (3, 1300, 3, 700), (2, 17000, 2, 16390)])
def test_causal(device: EmulatedDevice, rows: int, cols: int, period: int, offset: int, place: str) -> None:
    x = draw("float32", rows, cols, scale=3.0)
    hidden = np.arange(cols)[None, :] > (np.arange(rows) % period)[:, None] + offset
    masked = np.where(hidden, np.float32(-np.inf), x)
    y = device.empty(x.shape, x.dtype)
    for host, number in ((offset, None), (offset - 5, device.asarray(np.array([5], np.int64)))):
        call(device, "softmax_causal_forward", y, PLACES[place](device, x), dtype="float32",
             extra=(period, host, number))
        accurate("softmax", "float32", [y], masked)
        assert not y.numpy()[hidden].any()


@pytest.mark.parametrize("cols", [3, 64, 300, 2052, 17000])
def test_extremes(device: EmulatedDevice, cols: int) -> None:
    x = draw("float32", 5, cols)
    x[0], x[1, 1:], x[2, cols // 2], x[3, 0], x[4] = -np.inf, -np.inf, np.nan, np.inf, x[4] * 1e4
    y, logs = softmax(device.asarray(x)).numpy(), log_softmax(device.asarray(x)).numpy()
    assert not y[0].any()
    assert np.isneginf(logs[0]).all()
    assert y[1, 0] == 1.0
    assert not y[1, 1:].any()
    assert np.isnan(y[2]).all()
    assert np.isnan(logs[2]).all()
    assert np.isnan(y[3, 0])
    np.testing.assert_allclose(y[4], naive.softmax(x[4:].astype(np.float64))[0], atol=1e-6)
    dx = softmax_backward(device.asarray(np.full_like(x, np.nan)), device.asarray(x)).numpy()
    assert np.isnan(dx).all()


def test_long_rows_are_read_twice(device: EmulatedDevice) -> None:
    x = device.asarray(draw("float32", 1, 65536))
    found = counted(device, lambda: softmax(x))
    assert sum(moved_bytes(counts) for counts in found.values()) <= 1.01 * 3 * x.nbytes


def test_a_row_has_the_same_bits_in_any_batch(device: EmulatedDevice) -> None:
    for cols in (33, 1000, 3000, 20000):
        x = draw("float32", 3, cols)
        together = softmax(device.asarray(x)).numpy()
        assert softmax(device.asarray(x[1:2])).numpy().tobytes() == together[1].tobytes()


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice, arch: str) -> None:
    for dtype in DTYPES:
        for cols in (72, 3001, 16128):
            x = draw(dtype, 2, cols)
            accurate("softmax", dtype, [softmax(device.asarray(x))], x)
            y = naive.softmax(x.astype(np.float64)).astype(x.dtype)
            dx = softmax_backward(device.asarray(x), device.asarray(y))
            accurate("softmax_backward", dtype, [dx], x, y)


def test_workspace_size(device: EmulatedDevice) -> None:
    size = device.library.nn_softmax_workspace_size
    sizes = [size(rows, cols, 0) for rows in (0, 1, 7) for cols in (0, 1000, 10_000, 100_000)]
    assert sizes == [0, 0, 0, 0, 0, 0, 8, 56, 0, 0, 56, 392]


def test_errors(device: EmulatedDevice) -> None:
    x, number = device.empty((2, 20000), np.float32), device.empty((1,), np.int64)
    for arguments, words in (
            (("softmax_forward", None, x, 2, 8, 0, None, 0), "y: a null pointer"),
            (("softmax_forward", x, x.pointer + 1, 2, 8, 0, None, 0), "x: .* is not aligned"),
            (("softmax_forward", x, x, -2, 8, 0, None, 0), "rows: -2 is not"),
            (("softmax_forward", x, x, 2, -8, 0, None, 0), "cols: -8 is not"),
            (("softmax_forward", x, x, 2**40, 2**40, 0, None, 0), "rows: .* is over"),
            (("softmax_forward", x, x, 2, 8, 8, None, 0), r"dtype: float64 \(8\)"),
            (("softmax_forward", x, x, 2, 20000, 0, None, 0), "workspace_bytes: 0, but 32 are needed"),
            (("softmax_forward", x, x, 2, 20000, 0, None, 32), "workspace: a null"),
            (("softmax_causal_forward", x, x, 2, 8, 0, 0, number, 0, None, 0), "period: 0 is not positive"),
            (("softmax_causal_forward", x, x, 2, 8, 2, 2**61, number, 0, None, 0), "offset: "),
            (("softmax_backward", x, None, x, 2, 8, 0, None, 0), "dy: a null"),
            (("log_softmax_backward", x, x, None, 2, 8, 0, None, 0), "y: a null")):
        with pytest.raises(DeviceArgumentError, match=words):
            device.call(*arguments)
    device.call("softmax_forward", None, None, 0, 8, 0, None, 0)
    device.call("softmax_backward", None, None, None, 3, 0, 1, None, 0)
