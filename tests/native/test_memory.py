"""The pool under the results: buffers come back, large ones lie on huge pages, counters count."""

import gc
import tracemalloc

import numpy as np
import pytest

from nn.backends import kernels, native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def test_a_freed_result_is_the_next_one() -> None:
    x = np.ones((100, 70), np.float32)
    first = kernels.silu(x)
    place = first.ctypes.data
    assert place % 64 == 0
    assert first.flags.c_contiguous
    assert first.flags.writeable
    del first
    before = native.memory()
    assert kernels.silu(x).ctypes.data == place
    after = native.memory()
    assert (after["fresh"], after["taken"]) == (before["fresh"], before["taken"] + 1)


def test_a_view_keeps_its_buffer() -> None:
    x = np.linspace(-1, 1, 6000, dtype=np.float32).reshape(60, 100)
    view = kernels.silu(x)[10:20]
    expected = view.copy()
    others = [kernels.silu(x * i) for i in range(5)]
    assert np.array_equal(view, expected)
    del others


def test_counters() -> None:
    gc.collect()
    before = native.memory()["bytes_in_use"]
    big = native.empty((3, 1 << 20), np.float32)
    used = native.memory()["bytes_in_use"] - before
    assert big.nbytes < used <= big.nbytes * 1.25 + (2 << 20)
    assert native.memory()["bytes_huge"] >= big.nbytes
    assert native.memory()["peak_bytes"] >= before + used
    del big
    assert native.memory()["bytes_in_use"] == before
    native.trim()
    assert native.memory()["bytes_kept"] == 0


def test_tracemalloc_sees_results() -> None:
    x = np.ones((100, 500), np.float32)
    tracemalloc.start()
    y = kernels.silu(x)
    held = tracemalloc.get_traced_memory()[0]
    del y
    freed = held - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert freed >= x.nbytes


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError):
        native.empty((1 << 61,), np.uint8)
