"""The caching pool: reuse, statistics, running out of memory, nothing left behind."""

import gc
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.device import device as the_device
from cuda.nn.errors import DeviceMemoryError
from cuda.nn.memory import GRANULE, Pool, rounded
from cuda.nn.stream import Stream


def test_blocks_are_reused(device: EmulatedDevice) -> None:
    pool = device.new_pool()
    with device.using_pool(pool):
        x = device.empty((1000,), np.float32)
        pointer = x.pointer
        del x
        y = device.empty((999,), np.float32)
        assert y.pointer == pointer
        y[...] = 1
        before = device.counts()
        for _ in range(20):
            y = y * 2.0 + 1.0
        assert (device.counts() - before).allocations <= 2
    assert pool.statistics().allocations <= 3
    assert pool.statistics().requests == 42


def test_everything_comes_back(device: EmulatedDevice) -> None:
    pool = device.new_pool()
    before = device.counts()
    with device.using_pool(pool):
        x = device.asarray(np.ones((50, 60), np.float32))
        views = [x[i:].T for i in range(5)] + [x.sum(axis=0), x @ x.T]
        assert pool.used_bytes > 0
    del x
    assert pool.used_bytes > 0                                     # the views hold it
    del views
    gc.collect()
    assert pool.used_bytes == 0
    assert pool.kept_bytes > 0
    pool.trim()
    assert pool.kept_bytes == 0
    done = device.counts() - before
    assert done.allocations == done.frees


def test_a_pool_that_goes_frees_its_memory(device: EmulatedDevice) -> None:
    before = device.counts()
    pool = device.new_pool()
    with device.using_pool(pool):
        x = device.zeros((10,), np.float32)
    del pool
    gc.collect()
    assert (device.counts() - before).frees == 0                   # x is alive, and so is its pool
    assert x.numpy().sum() == 0
    del x
    gc.collect()
    done = device.counts() - before
    assert done.allocations == done.frees == 1


def test_what_is_kept_is_given_back_before_memory_runs_out(device: EmulatedDevice) -> None:
    pool = device.new_pool()
    with device.using_pool(pool):
        x = device.empty((5000,), np.float32)
        del x
        kept = pool.kept_bytes
        assert kept
        device.configure(fail_malloc=1)
        y = device.empty((100,), np.float32)                       # fails once, then all is given back
        assert pool.kept_bytes == 0
        y[:] = 1
    device.configure()


def test_out_of_memory_names_bytes_and_leaks_nothing(device: EmulatedDevice) -> None:
    pool = device.new_pool()
    before = device.counts()
    with device.using_pool(pool):
        x = device.asarray(np.ones(300, np.float32))
        used = pool.used_bytes
        with pytest.raises(DeviceMemoryError, match=rf"{rounded(4 << 42):,} bytes .* {used:,} are in use"):
            device.empty((1 << 42,), np.float32)
        assert pool.used_bytes == used
        for failing in range(1, 6):
            device.configure(fail_malloc=failing)
            with suppress(DeviceMemoryError):
                x @ x.reshape(1, 300).T + x.sum()
        device.configure()
        assert pool.used_bytes == used
        assert (x + 1).numpy().sum() == 600
    del x
    pool.trim()
    done = device.counts() - before
    assert done.allocations == done.frees


def test_rounding_wastes_little() -> None:
    for size in [0, 1, GRANULE, GRANULE + 1, 10**6, 10**9 + 7]:
        assert size <= rounded(size) <= max(size * 1.13, size + GRANULE)


def test_arrays_may_be_dropped_by_any_thread(device: EmulatedDevice) -> None:
    pool = device.new_pool()
    with device.using_pool(pool):
        arrays = [device.empty((n,), np.uint8) for n in range(1, 200)]
    threads = [threading.Thread(target=lambda part: part.clear(), args=(arrays[i::4],)) for i in range(4)]
    del arrays
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del threads, thread
    gc.collect()
    assert pool.used_bytes == 0


def test_a_stream_has_its_own_memory(device: EmulatedDevice) -> None:
    stream = Stream(device)
    with device.using_pool(device.new_pool()):
        x = device.empty((64,), np.float32)
        pointer = x.pointer
        del x
        with device.using_stream(stream.handle):
            y = device.empty((64,), np.float32)
            assert y.pointer != pointer
            device.synchronize()
        assert device.empty((64,), np.float32).pointer == pointer


def test_a_handle_that_comes_again_finds_no_memory_of_the_last_stream(device: EmulatedDevice) -> None:
    """Whose work may still run: its memory goes back to the runtime, which waits for that."""
    stream, frees = Stream(device), device.counts().frees
    with device.using_stream(stream.handle):
        x = device.empty((64,), np.float32)
        del x
    gc.collect()
    assert device.counts().frees == frees + 1
    with device.using_stream(stream.handle):
        assert device.pool.kept_bytes == 0


BEYOND = """
import numpy as np
from cuda.nn import operations
from cuda.nn.device import device
from cuda.nn.errors import DeviceError

checked = device("emulated", mode="check")
x, y = checked.zeros((33,), np.float32), checked.empty((32,), np.float32)
try:
    layout = operations.plan((33,), (33,), (1,))
    checked.call("array_unary", y.pointer, x.pointer, layout, operations.Op.NEGATIVE, y.code, x.code)
    checked.synchronize()
except DeviceError:
    pass
print([report["kind"] for report in checked.runtime.reports()])
"""


def test_checks_see_where_an_array_ends(device: EmulatedDevice) -> None:
    """The pool of a device under check is exact: one element too many is found.  A fault stays, as on a GPU;
    so this is a process of its own."""
    assert isinstance(device.pool, Pool)
    assert device.pool.exact
    assert not device.new_pool().exact
    done = subprocess.run([sys.executable, "-c", BEYOND], capture_output=True, text=True, check=True)
    assert "out_of_bounds" in done.stdout


def test_devices_are_opened_once() -> None:
    found: list[object] = []

    def run() -> None:
        found.append(the_device("emulated", mode="fast"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1
    with pytest.raises(ValueError, match="there are 'cuda'"):
        the_device("gpu")


def test_facts(device: EmulatedDevice) -> None:
    assert device.info.capability == 80
    assert device.info.name.startswith("NVIDIA A100")
    before = device.counts()
    device.asarray(np.zeros(10, np.float32)).numpy()
    done = device.counts() - before
    assert (done.uploads, done.uploaded_bytes, done.downloads, done.downloaded_bytes) == (1, 40, 1, 40)
    assert done.synchronizations == 1


def test_a_device_says_what_it_is_whoever_was_used_last(device: EmulatedDevice) -> None:
    before = device.info
    other = the_device("emulated", arch="sm_90", mode="fast").info
    assert "H100" in other.name
    assert "A100" in before.name
    assert device.info == before
