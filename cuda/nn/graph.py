"""Graphs: work recorded once, then queued again and again by one call.

    with Graph.capture(device) as graph:
        device.call("rms_norm_forward", y, rstd, x, weight, rows, cols, eps, x.code)    # recorded, not run
    graph.replay()

Arrays made while capturing stay where they are as long as the graph lives, and every replay overwrites them.
What changes between replays is written into device memory before (positions, learning rates, tokens); host
values that were passed as arguments are part of the recording."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING

from cuda.nn.errors import DeviceError

if TYPE_CHECKING:
    from cuda.nn.device import Device
    from cuda.nn.memory import Pool


class Graph:
    """Recorded work and its memory."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        self.pool: Pool | None = None
        self._handle = c_void_p()

    @classmethod
    @contextmanager
    def capture(cls, device: "Device") -> Iterator["Graph"]:
        """What is queued inside is recorded.  An exception inside ends the recording and leaves no graph."""
        graph, pool = cls(device), device.new_pool()
        graph.pool = pool
        device.call("graph_begin")
        device.capturing = True
        try:
            with device.using_pool(pool):
                yield graph
        except BaseException:
            with suppress(DeviceError):              # the first error tells more than what follows from it
                graph._end()
            graph.close()
            raise
        finally:
            device.capturing = False
        graph._end()

    @property
    def is_ready(self) -> bool:
        return bool(self._handle)

    def replay(self) -> None:
        """Queue the recorded work on the device's current stream."""
        if not self.is_ready:
            raise DeviceError("graph_launch: the graph is closed, or its capture has not ended")
        self.device.call("graph_launch", self._handle)

    def close(self) -> None:
        """Forget the recording; memory goes back when the last array on it goes."""
        handle, self._handle = self._handle, c_void_p()
        if handle:
            self.device.library.nn_graph_destroy(handle)
        self.pool = None                 # arrays refer to it, too

    def _end(self) -> None:
        self.device.call("graph_end", byref(self._handle))

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close()
