"""The C ABI of the array family refuses what is wrong, by name, before anything is launched."""

import itertools
from ctypes import byref, sizeof
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, UnsupportedError
from cuda.nn.layout import plan
from cuda.nn.operations import Op
from cuda.nn.prototypes.array import ArrayLayout
from cuda.nn.reductions import Reduction

F32, I64, BOOL, F64 = 0, 3, 6, 8
LAYOUT = plan((4,), (4,), (1,), (4,), (1,))


def refused(device: EmulatedDevice, match: str, name: str, *arguments: Any,
            error: type[Exception] = DeviceArgumentError) -> None:
    device.clear()
    with pytest.raises(error, match=match):
        device.call(name, *arguments)
    assert device.runtime.statistics().get("launches", 0) == 0


def test_elementwise(device: EmulatedDevice) -> None:
    x, y = device.zeros((4,), np.float32), device.zeros((4,), np.float32)
    refused(device, "no operation of one", "array_unary", y, x, LAYOUT, Op.ADD, F32, F32)
    refused(device, "no operation of two", "array_binary", y, x, x, LAYOUT, Op.EXP, F32, F32, F32, 0.0)
    refused(device, "y_dtype: 9 is", "array_unary", y, x, LAYOUT, Op.EXP, 9, F32)
    refused(device, "x_dtype: -1 is", "array_unary", y, x, LAYOUT, Op.EXP, F32, -1)
    refused(device, "x: a null", "array_unary", y, None, LAYOUT, Op.EXP, F32, F32)
    refused(device, "y: a null", "array_unary", None, x, LAYOUT, Op.EXP, F32, F32)
    refused(device, "layout: null", "array_unary", y, x, None, Op.EXP, F32, F32)
    refused(device, "integers only", "array_binary", y, x, x, LAYOUT, Op.AND, F32, F32, F32, 0.0)
    refused(device, "not for integers", "array_unary", y, x, LAYOUT, Op.EXP, I64, I64)
    refused(device, "float64", "array_unary", y, x, LAYOUT, Op.EXP, F64, F64, error=UnsupportedError)
    bad = ArrayLayout(size=sizeof(ArrayLayout), ndim=9)
    refused(device, "9 axes; at most 8", "array_fill", y, byref(bad), F32, 0.0)
    bad.ndim, bad.shape[0] = 1, -2
    refused(device, "axis 0 has -2 elements", "array_fill", y, byref(bad), F32, 0.0)
    bad.size = 8
    refused(device, "its size is not", "array_fill", y, byref(bad), F32, 0.0)
    refused(device, "count: -1", "array_arange", y, 0.0, 1.0, -1, F32)


def test_the_others(device: EmulatedDevice) -> None:
    x, i = device.zeros((4,), np.float32), device.zeros((4,), np.int64)
    refused(device, "op: 9 is no reduction", "array_reduce", x, x, LAYOUT, 1, 9, F32, F32, None, 0)
    refused(device, "reduced: 2 of 1 axes", "array_reduce", x, x, LAYOUT, 2, Reduction.SUM, F32, F32, None, 0)
    long = plan((100000,), (100000,), (1,))
    refused(device, "workspace_bytes: 0", "array_reduce", x, x, long, 1, Reduction.SUM, F32, F32, None, 0)
    none = plan((0,), (0,), (1,))
    refused(device, "of no elements", "array_reduce", x, x, none, 1, Reduction.MAX, F32, F32, None, 0)
    refused(device, "float32 is no integer", "array_gather", x, x, i, LAYOUT, 4, 1, F32, F32)
    refused(device, "length: -4", "array_gather", x, x, i, LAYOUT, -4, 1, F32, I64)
    refused(device, "workspace_bytes: 8, but 32", "array_scatter", x, x, i, LAYOUT, 4, 1, 4, F32, I64, x, 8)
    refused(device, "rows: -1", "array_cumulative_sum", x, x, -1, 4, F32, F32, None, 0)
    refused(device, "workspace_bytes: 0", "array_cumulative_sum", x, x, 1, 5000, F32, F32, None, 0)
    refused(device, "workspace_bytes: 0", "array_argsort", i, x, 1, 5000, 0, F32, None, 0)
    refused(device, "float64", "array_argsort", i, x, 1, 4, 0, F64, None, 0, error=UnsupportedError)
    refused(device, "too long", "array_argsort", i, x, 1, 1 << 32, 0, F32, None, 0)
    refused(device, "n: -1", "array_searchsorted", i, x, x, -1, 4, 0, F32)
    refused(device, "sorted: a null", "array_searchsorted", i, None, x, 3, 4, 0, F32)


def test_nothing_to_do_needs_no_memory(device: EmulatedDevice) -> None:
    empty = plan((0,), (0,), (1,), (0,), (1,))
    device.call("array_unary", None, None, empty, Op.EXP, F32, F32)
    device.call("array_binary", None, None, None, empty, Op.ADD, F32, F32, F32, 0.0)
    device.call("array_gather", None, None, None, empty, 0, 1, F32, I64)
    device.call("array_cumulative_sum", None, None, 0, 7, F32, F32, None, 0)
    device.call("array_argsort", None, None, 7, 0, 0, F32, None, 0)
    device.call("array_searchsorted", None, None, None, 0, 0, 0, F32)
    device.call("array_arange", None, 0.0, 1.0, 0, F32)


def test_workspaces_grow_with_the_sizes(device: EmulatedDevice) -> None:
    sizes = [0, 1, 100, 1024, 1025, 4096, 4097, 100000, 1 << 30]
    argsort, scan = (getattr(device.library, f"nn_array_{name}_workspace_size") for name in
                     ("argsort", "cumulative_sum"))
    for rows, (n, more) in itertools.product([1, 3, 1000], itertools.pairwise(sizes)):
        assert argsort(rows, n, F32) <= argsort(rows, more, F32)
        assert scan(rows, n) <= scan(rows, more)


def test_rows_of_an_embedding_move_once(device: EmulatedDevice) -> None:
    table = device.asarray(np.zeros((50, 64), np.float16))
    index = device.asarray(np.arange(40) % 7)
    device.configure(count=1)
    device.clear()
    table[index]
    counted = [c for name, c in device.counters().items() if "array_gather" in name]
    device.configure()
    assert len(counted) == 1
    assert counted[0].bytes_read == 40 * 64 * 2 + 40 * 8 * 8    # each of a row's 8 words looks its index up
    assert counted[0].bytes_written == 40 * 64 * 2
