"""Graphs, streams and events."""

import gc
import weakref
from ctypes import byref, c_void_p, sizeof

import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, DeviceError
from cuda.nn.graph import Graph
from cuda.nn.prototypes.runtime import Counts
from cuda.nn.stream import Event, Stream

ROWS, COLS = 5, 33


def counts(device: EmulatedDevice) -> Counts:
    found = Counts(size=sizeof(Counts))
    device.library.nn_count(byref(found))
    return found


def norm(device: EmulatedDevice, x: DeviceArray, weight: DeviceArray) -> DeviceArray:
    """Twice, so that memory is made and let go of in between."""
    for _ in range(2):
        y, rstd = device.empty(x.shape, np.float32), device.empty((ROWS,), np.float32)
        device.call("rms_norm_forward", y, rstd, x, weight, ROWS, COLS, 1e-6, x.code)
        x = y
    return x


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLS), np.float32)


def write(device: EmulatedDevice, to: DeviceArray, host: np.ndarray) -> None:
    device.call("memory_upload", to, host.ctypes.data, host.nbytes)


@pytest.fixture
def weight(device: EmulatedDevice) -> DeviceArray:
    return device.asarray(np.linspace(0.5, 2, COLS, dtype=np.float32))


# ---- replay ------------------------------------------------------------------------------------------------


def test_a_replay_gives_the_bits_of_the_eager_call(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    eager = [norm(device, device.asarray(values(seed)), weight).numpy() for seed in (0, 1)]
    with Graph.capture(device) as graph:
        y = norm(device, x, weight)
    for seed in (0, 1, 0):
        write(device, x, values(seed))
        graph.replay()
        assert y.numpy().tobytes() == eager[seed].tobytes()


def test_a_capture_runs_nothing_a_replay_is_one_launch(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    y = device.asarray(np.zeros((ROWS, COLS), np.float32))
    rstd = device.asarray(np.zeros(ROWS, np.float32))
    with Graph.capture(device) as graph:
        device.call("rms_norm_forward", y, rstd, x, weight, ROWS, COLS, 1e-6, x.code)
    assert not y.numpy().any()
    before = counts(device)
    graph.replay()
    graph.replay()
    after = counts(device)
    assert after.graph_launches == before.graph_launches + 2
    assert (after.uploads, after.downloads, after.allocations, after.synchronizations) == (
        before.uploads, before.downloads, before.allocations, before.synchronizations)
    assert y.numpy().any()


def test_memory_of_a_graph_is_its_own(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    used = device.pool.used_bytes
    with Graph.capture(device) as graph:
        y = norm(device, x, weight)
    assert device.pool.used_bytes == used
    address = y.pointer
    del y                                       # the graph still writes there
    taken = [device.empty((ROWS, COLS), np.float32) for _ in range(8)]
    assert address not in {array.pointer for array in taken}
    graph.replay()
    device.synchronize()


def test_what_was_made_in_a_capture_outlives_its_graph(device: EmulatedDevice, weight: DeviceArray) -> None:
    eager = norm(device, device.asarray(values(3)), weight).numpy()
    x = device.asarray(values(3))
    with Graph.capture(device) as graph:
        y = norm(device, x, weight)
    graph.replay()
    graph.close()
    del graph
    gc.collect()
    np.testing.assert_array_equal(y.numpy(), eager)


def test_a_destroyed_graph_gives_all_back(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    device.synchronize()
    before = counts(device)
    with Graph.capture(device) as graph:
        y = norm(device, x, weight)
    graph.replay()
    watched = weakref.ref(graph)
    del graph, y
    gc.collect()
    after = counts(device)
    assert watched() is None
    assert after.allocations - before.allocations == after.frees - before.frees > 0


def test_a_closed_graph_is_not_replayed(device: EmulatedDevice, weight: DeviceArray) -> None:
    with Graph.capture(device) as graph:
        with pytest.raises(DeviceError, match="its capture has not ended"):
            graph.replay()
        norm(device, device.empty((ROWS, COLS), np.float32), weight)
    graph.close()
    graph.close()
    with pytest.raises(DeviceError, match="graph_launch: the graph is closed"):
        graph.replay()


def test_graphs_of_streams_that_join(device: EmulatedDevice, weight: DeviceArray) -> None:
    x, other = device.asarray(values(0)), Stream(device)
    expected = norm(device, x, weight).numpy()
    with Graph.capture(device) as graph:
        first = norm(device, x, weight)
        forked = Event(device).record()
        with other:
            forked.wait()
            second = norm(device, x, weight)
            joined = Event(device).record()
        joined.wait()
    graph.replay()
    np.testing.assert_array_equal(first.numpy(), expected)
    np.testing.assert_array_equal(second.numpy(), expected)


# ---- what a capture refuses --------------------------------------------------------------------------------


def test_host_access_inside_a_capture_is_refused_and_the_capture_goes_on(
    device: EmulatedDevice, weight: DeviceArray
) -> None:
    x = device.asarray(values(0))
    expected = norm(device, x, weight).numpy()
    host = values(1)
    with Graph.capture(device) as graph:
        with pytest.raises(DeviceError, match="not while a graph is captured"):
            x.numpy()
        with pytest.raises(DeviceError, match="not while a graph is captured"):
            device.synchronize()
        with pytest.raises(DeviceError, match="not while a graph is captured"):
            device.asarray(host)
        y = norm(device, x, weight)
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), expected)


def test_the_library_itself_refuses_host_access_inside_a_capture(device: EmulatedDevice) -> None:
    x, host = device.asarray(values(0)), values(1)
    with Graph.capture(device):
        for name in ("memory_upload", "memory_download"):
            pair = (x, host.ctypes.data) if name == "memory_upload" else (host.ctypes.data, x)
            with pytest.raises(DeviceArgumentError, match="a graph copies from and to page-locked host mem"):
                device.call(name, *pair, host.nbytes)
        with pytest.raises(DeviceArgumentError, match="stream_synchronize: the stream is being captured"):
            device.library.nn_stream_synchronize(device.stream)
        device.call("memory_copy", device.empty(x.shape, np.float32), x, x.nbytes)


def test_page_locked_memory_may_be_part_of_a_graph(device: EmulatedDevice) -> None:
    pointer, x = c_void_p(), device.asarray(values(0))
    device.library.nn_memory_allocate_host(byref(pointer), x.nbytes)
    host = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * x.size).from_address(pointer.value or 0))
    with Graph.capture(device) as graph:
        device.call("memory_upload", x, pointer, x.nbytes)
    host[:] = 7.0
    graph.replay()
    assert (x.numpy() == 7.0).all()
    host[:] = 8.0
    graph.replay()
    assert (x.numpy() == 8.0).all()
    graph.close()
    device.library.nn_memory_free_host(pointer)


def test_an_exception_ends_the_capture(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    before = counts(device)
    graphs = []

    def fail() -> None:
        with Graph.capture(device) as graph:
            graphs.append(graph)
            norm(device, x, weight)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert not graphs[0].is_ready
    assert not device.capturing
    after = counts(device)
    assert after.allocations - before.allocations == after.frees - before.frees
    norm(device, x, weight).numpy()              # the stream runs work again


def test_a_launch_that_fails_inside_a_capture(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    expected = norm(device, x, weight).numpy()
    device.configure(fail_launch=2)
    with pytest.raises(DeviceError, match="rms_norm_forward: "), Graph.capture(device):
        norm(device, x, weight)
    device.configure()
    np.testing.assert_array_equal(norm(device, x, weight).numpy(), expected)


def test_memory_that_cannot_be_had_inside_a_capture(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    used = device.pool.used_bytes
    device.configure(fail_malloc=2)
    with Graph.capture(device) as graph:         # the pool asks again, and this is not for nothing
        y = norm(device, x, weight)
    device.configure()
    graph.replay()
    assert np.isfinite(y.numpy()).all()
    assert device.pool.used_bytes == used


def test_a_replay_that_fails(device: EmulatedDevice, weight: DeviceArray) -> None:
    x = device.asarray(values(0))
    with Graph.capture(device) as graph:
        y = norm(device, x, weight)
    before = counts(device).graph_launches
    device.configure(fail_launch=1)
    with pytest.raises(DeviceError, match="graph_launch: cudaGraphLaunch: "):
        graph.replay()
    device.configure()
    assert counts(device).graph_launches == before
    graph.replay()
    assert np.isfinite(y.numpy()).all()


# ---- streams and events ------------------------------------------------------------------------------------


def test_a_stream_has_memory_and_work_of_its_own(device: EmulatedDevice, weight: DeviceArray) -> None:
    x, stream = device.asarray(values(0)), Stream(device)
    expected = norm(device, x, weight).numpy()
    own, used = device.stream, device.pool.used_bytes
    ready = Event(device).record()
    with stream:
        assert device.stream == stream.handle != own
        ready.wait()
        y = norm(device, x, weight)
        done = Event(device).record()
    assert (device.stream, device.pool.used_bytes) == (own, used)
    done.wait()
    np.testing.assert_array_equal(y.numpy(), expected)


def test_streams_nest_and_come_back_after_an_exception(device: EmulatedDevice) -> None:
    own, a, b = device.stream, Stream(device), Stream(device)

    def nest() -> None:
        with a:
            with b, a:
                assert device.stream == a.handle
            assert device.stream == a.handle
            raise KeyError

    with pytest.raises(KeyError):
        nest()
    assert device.stream == own


def test_events_measure_time(device: EmulatedDevice, weight: DeviceArray) -> None:
    start = Event(device, timing=True).record()
    norm(device, device.asarray(values(0)), weight)
    stop = Event(device, timing=True).record()
    assert stop.elapsed(since=start) >= 0
    with pytest.raises(ValueError, match="both events need timing=True"):
        stop.elapsed(since=Event(device).record())


def test_the_host_waits_for_one_stream(device: EmulatedDevice, weight: DeviceArray) -> None:
    x, stream = device.empty((ROWS, COLS), np.float32), Stream(device)
    write(device, x, values(0))
    device.synchronize()
    with stream:
        y = norm(device, x, weight)
        stream.synchronize()
    np.testing.assert_array_equal(y.numpy(), norm(device, x, weight).numpy())
