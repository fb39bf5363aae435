"""The pool under the results: buffers come back, large ones lie on huge pages, counters count."""

import gc
import os
import pickle
import threading
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


def test_no_more_is_kept_than_a_quarter_of_the_machine() -> None:
    """Large buffers, nothing of which is touched."""
    native.trim()
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    small, large = native.empty((1 << 20,), np.uint8), native.empty((most + (1 << 30),), np.uint8)
    used = native.memory()["bytes_huge"]
    del small, large
    after = native.memory()
    assert 1 << 20 <= after["bytes_kept"] <= most
    assert after["bytes_huge"] <= used - most


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_is_kept_is_given_back_when_the_system_has_no_more() -> None:
    native.trim()
    child = os.fork()
    if child == 0:
        import resource
        kept = native.empty((200 << 20,), np.uint8)
        del kept
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (50 << 20), -1))
        try:
            native.empty((120 << 20,), np.uint8)
        except MemoryError:
            os._exit(1)
        os._exit(0 if native.memory()["bytes_kept"] < 200 << 20 else 2)
    assert os.waitpid(child, 0)[1] == 0


class TestNumPysOwnArrays:
    """What NumPy's operations allocate lies in the pool, too, once a kernel has been called (NEP 49)."""

    @pytest.fixture(autouse=True)
    def called(self) -> None:
        kernels.silu(np.ones(3, np.float32))

    def test_a_temporary_is_reused(self) -> None:
        x = np.ones((300, 1000), np.float32)
        place = (x * 2.0).ctypes.data
        before = native.memory()
        for _ in range(5):
            assert (x * 2.0).ctypes.data == place
        after = native.memory()
        assert (after["fresh"], after["taken"]) == (before["fresh"], before["taken"] + 5)

    def test_small_ones_are_numpys(self) -> None:
        before = native.memory()["taken"]
        assert np.array_equal([np.full(i, i).sum() for i in range(1500)], np.arange(1500) ** 2)
        assert native.memory()["taken"] == before

    @pytest.mark.parametrize("count", [0, 1, 1000, 5000, 300_000, 3_000_000])
    def test_zeros_are_zero(self, count: int) -> None:
        for _ in range(3):
            used = np.full(count, 7.0)
            del used
            assert not np.zeros(count).any()

    def test_resized_in_place(self) -> None:
        x = np.arange(10)
        for count in (100, 5000, 40_000, 39_000, 3000, 2_000_000, 10):
            x.resize(count, refcheck=False)
            assert np.array_equal(x[:10], np.arange(10))
            assert not x[10:].any()

    def test_arrays_from_before_and_from_elsewhere(self) -> None:
        found: list[np.ndarray] = []

        def make() -> None:
            found.append(np.arange(100_000.0))                    # this thread has never called a kernel
            kernels.silu(np.ones(3, np.float32))
            found.append(np.arange(100_000.0))

        other = threading.Thread(target=make)
        other.start()
        other.join()
        assert np.array_equal(found[0], found[1])
        found[0].resize(200_000, refcheck=False)
        found.clear()
        x = np.arange(100_000)
        assert np.array_equal(pickle.loads(pickle.dumps(x)), x)

    def test_tracemalloc_counts_once(self) -> None:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        x = np.ones(100_000)
        held = tracemalloc.get_traced_memory()[0] - before
        del x
        left = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert 800_000 <= held < 900_000
        assert left < 100_000

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child(self) -> None:
        x = np.ones(100_000)
        child = os.fork()
        if child == 0:
            y = x * 2.0
            del x
            os._exit(0 if (y + y).sum() == 400_000.0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert x.sum() == 100_000.0

    def test_more_than_there_is(self) -> None:
        with pytest.raises(MemoryError):
            np.empty(1 << 57)
