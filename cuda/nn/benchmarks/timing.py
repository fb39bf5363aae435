"""Times by events, with nothing of the call's data in the L2 cache: between two runs a buffer larger than the
cache is overwritten.

    timing = measure(device, call.run, Flush(device))
    timing.median, timing.low, timing.high                  # microseconds

The flush is queued before the first event, as often as it takes for the host to have queued the call and both
events before the device comes to them: what a launch costs the host is not in the time.  The cache is then
full of lines that have yet to be written back, which a call that fills it pays for: a little less bandwidth
than it would have after reads.

On the emulated device the same code runs, and the figure says how long the emulator took, which is no speed
of the kernel."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cuda.nn.device import Device
from cuda.nn.stream import Event

LEAST_FLUSH = 32 << 20    # bytes, whatever the cache
LEAST, MOST = 10, 100     # runs
SECONDS = 0.3             # of runs and flushes together, between these
BATCH = 10                # runs that are queued before the host waits
MOST_FLUSHES = 16         # before a run


@dataclass(frozen=True)
class Timing:
    """Microseconds: the median, and what a tenth of the runs stayed below and above."""

    median: float
    low: float
    high: float
    runs: int


class Flush:
    """Writes twice the L2 cache's size (or `size` bytes): what was in the cache is no longer."""

    def __init__(self, device: Device, size: int | None = None) -> None:
        self.device, self.size = device, max(2 * device.info.l2_bytes, LEAST_FLUSH) if size is None else size
        self._buffer = device.empty((self.size // 4,), np.float32)

    def __call__(self) -> None:
        self.device.call("fill_forward", self._buffer, self._buffer.size, 0.0, self._buffer.code)


def measure(device: Device, run: Callable[[], None], flush: Callable[[], None], *,
            runs: int | None = None) -> Timing:
    """Median over `runs`, or over as many as SECONDS allow after two that warm up."""
    _times(device, run, flush, 2)
    flush = _ahead(device, run, flush)
    if runs is None:
        began = Event(device, timing=True).record()
        _times(device, run, flush, 1)
        one = Event(device, timing=True).record().elapsed(began) / 1e3
        runs = min(MOST, max(LEAST, int(SECONDS / max(one, 1e-6))))
    times: list[float] = []
    while len(times) < runs:
        times += _times(device, run, flush, min(BATCH, runs - len(times)))
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return Timing(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], len(ordered))


def _times(device: Device, run: Callable[[], None], flush: Callable[[], None], count: int) -> list[float]:
    """Microseconds of each of `count` runs."""
    marks = [(Event(device, timing=True), Event(device, timing=True)) for _ in range(count)]
    for start, stop in marks:
        flush()
        start.record()
        run()
        stop.record()
    return [stop.elapsed(start) * 1e3 for start, stop in marks]


def _ahead(device: Device, run: Callable[[], None], flush: Callable[[], None]) -> Callable[[], None]:
    """The flush, as often as keeps the device busy for twice what queueing a run takes the host."""
    start, stop = (Event(device, timing=True) for _ in range(2))
    began = time.perf_counter()
    start.record()
    run()
    stop.record()
    host = time.perf_counter() - began
    start.record()
    flush()
    stop.record()
    flushing = stop.elapsed(start) / 1e3
    count = min(MOST_FLUSHES, max(1, math.ceil(2 * host / max(flushing, 1e-6))))

    def repeated() -> None:
        for _ in range(count):
            flush()

    return repeated


def copy_bandwidth(device: Device, size: int = 256 << 20, *, runs: int | None = None) -> float:
    """Bytes/s of a copy on the device, reading and writing counted: what memory gives in practice."""
    source, to = (device.empty((size,), np.uint8) for _ in range(2))
    device.call("fill_forward", source, size // 4, 0.0, 0)
    timing = measure(device, lambda: device.call("memory_copy", to, source, size), lambda: None, runs=runs)
    return 2e6 * size / timing.median
