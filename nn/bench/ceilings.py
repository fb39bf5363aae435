"""What this machine can do at best: multiply-adds a second by type, bytes read a second.  A worker's module,
and what is done with the worker: a ceiling takes turns with the libraries that are compared with it.

    reached = Ceilings(worker);  reached.read("read");  reached.seen

A reading that others disturbed counts for nothing: read() is 0 then, as it is for a kind that is not known,
and a sample is compared with its other neighbour alone, or with none.  A reading is disturbed if others used
more of the machine than a sample may be disturbed by (nn/bench/timing.py), beyond the clock's error: two
hundredths of a second, so what takes turns with a reading of a tenth on two cores is seen from 14 %.

Loops of csrc/native/kernels/ceiling.cpp, at the level of instructions in use: twelve chains of multiply-adds
in registers (four tiles of AMX), and reads of a buffer on huge pages, far larger than the caches, at 1, 2, 4
or 8 places in turn, whichever was the fastest when it was made."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from nn.backends import native
from nn.bench.runs import Measured
from nn.bench.task import READ, Task, Tasks
from nn.bench.timing import Sample, take

NAME = "ceiling"          # as rows call the library
TYPES = ("float32", "bfloat16", "int8")
STREAMS = (1, 2, 4, 8)
ROUNDS = 100_000
BUFFER = 1 << 30          # bytes; the largest caches that several cores share hold a tenth of that
LEAST = 0.1               # seconds of a reading, between samples of seconds: five times the clock's error


def tasks(size: int = BUFFER, least: float = LEAST) -> Tasks:
    """{"float32": ..., "bfloat16": ..., "int8": ..., "read": ...}, those that this level has; none where the
    native kernels are not built."""
    if native.missing():
        return {}
    known = [dtype for dtype in TYPES if native.extension().ceiling(dtype)]
    made: Tasks = {dtype: partial(_multiply_adds, dtype, least) for dtype in known}
    return made | {READ: lambda: _reads(size, least)}


def _multiply_adds(dtype: str, least: float) -> Task:
    """A multiply-add is two operations; int8's add up in int32"""
    level, operations = native.extension().ceiling(dtype)
    loop = partial(native.extension().multiply_add, dtype, ROUNDS)
    return Task(_timed(loop, least), flops=ROUNDS * operations, dtype=dtype,
                facts={"how": f"multiply-adds, {level}"})


def _reads(size: int, least: float) -> Task:
    buffer = native.empty((size // 4,))
    buffer.fill(1.0)
    ways = {streams: partial(native.extension().read_all, buffer, streams) for streams in STREAMS}
    best = fastest(ways, lambda way: take(way, 0.0).seconds)
    return Task(_timed(ways[best], least), bytes=float(buffer.nbytes),
                facts={"how": f"read, {best} stream{'s' * (best > 1)} a thread"})


def fastest(ways: dict[int, Any], seconds: Callable[[Any], float], rounds: int = 5) -> int:
    """Which way has the least median: in turns, as memory may change its rate meanwhile."""
    turns = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds)]
    return min(ways, key=lambda name: statistics.median(turn[name] for turn in turns))


def _timed(loop: Callable[[], None], least: float) -> Callable[[], Sample]:
    """The first repetition does not count: threads of whoever ran before may still spin"""
    def run() -> Sample:
        loop()
        return take(loop, least)

    return run


class Ceilings:
    """A worker of this module, and what it has reached so far."""

    def __init__(self, worker: Measured) -> None:
        self.worker = worker
        self.seen: dict[str, list[Sample]] = {kind: [] for kind in worker.tasks}
        self.how: dict[str, str] = {}          # in words
        self.work: dict[str, float] = {}       # of one repetition
        self.peak_rss_mb = 0.0

    def read(self, kind: str) -> float:
        """A second, now, all threads together; 0 where that is not known, or was disturbed."""
        if kind not in self.seen or "error" in (answer := self.worker.sample(kind, 0.0)):
            return 0.0
        reading = Sample(answer["seconds"], answer["others"])
        self.seen[kind].append(reading)
        self.how[kind], self.work[kind] = answer["facts"]["how"], answer["work"]
        self.peak_rss_mb = answer["peak_rss_mb"]
        return 0.0 if reading.disturbed else self.work[kind] / reading.seconds
