"""From a selection of benchmarks to rows, each a dictionary that is also one line of JSON.

    for row in rows(device, select(["norm", "gemm_forward:nt"]), dtypes=["bfloat16"]): print(row)

On a GPU a row has times; on the emulated device it has counts, and nothing that could be taken for a speed.
Every result is compared with a float64 formula before anything is timed; `correct` says how that went."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cuda.nn import build
from cuda.nn.benchmarks import counting, machine, peaks, timing
from cuda.nn.benchmarks.baselines import Baselines
from cuda.nn.benchmarks.case import DTYPES, Benchmark, Call, Sizes
from cuda.nn.benchmarks.families import load
from cuda.nn.device import Device, EmulatedDevice
from cuda.nn.emulator import roofline
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.errors import DeviceMemoryError, UnsupportedError
from cuda.nn.library import REBUILD

Row = dict[str, Any]
COUNTED = "counted, not timed"
CHECKED = "checked, not timed"
EMULATED = "times of the emulator, which are no speed"
TIMED = "timed by events, L2 flushed before every run"


class SelectionError(ValueError):
    """A kernel, type or shape that there is not."""


# ---- what is to be run -------------------------------------------------------------------------------------


def select(words: Sequence[str] = ()) -> list[Benchmark]:
    """Benchmarks by name ("gemm_forward:nt"), function, family, or the beginning of a function; all if none
    is named."""
    known = load()
    chosen: dict[str, Benchmark] = {}
    for word in words:
        word = word.removeprefix("nn_")
        found = ([b for b in known.values() if word in (b.name, b.function, b.family)]
                 or [b for b in known.values() if b.function.startswith(word)])
        if not found:
            raise SelectionError(f"kernel: {word!r} has no benchmark")
        chosen |= {b.name: b for b in found}
    return list((chosen if words else known).values())


def sizes_of(benchmark: Benchmark, given: str, base: Sizes) -> Sizes:
    """"4096x512", in the order of the benchmark's axes, or "cols=512", the other axes as in `base`."""
    axes, shown = list(benchmark.large), ", ".join(benchmark.large)
    named = "=" in given
    pairs = [part.partition("=")[::2] for part in given.split(",")] if named else \
        list(zip(axes, given.split("x"), strict=False))
    if not named and len(given.split("x")) != len(axes):
        raise SelectionError(f"shape: {given!r}; {benchmark.name} has the axes {shown}")
    sizes = dict(base)
    for axis, value in pairs:
        if axis not in sizes or not value.isdecimal() or not int(value):
            raise SelectionError(f"shape: {axis}={value}; {benchmark.name} has the axes {shown}, each 1 or "
                                 "more")
        sizes[axis] = int(value)
    return sizes


@dataclass(frozen=True)
class Task:
    """One row to come."""

    benchmark: Benchmark
    dtype: str
    sizes: Sizes

    @property
    def shape(self) -> str:
        return "x".join(str(n) for n in self.sizes.values())


def tasks(benchmarks: Sequence[Benchmark], *, small: bool, dtypes: Sequence[str] = (),
          shapes: Sequence[str] = ()) -> list[Task]:
    """Every benchmark in every type that it has and that is wanted, at every shape."""
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise SelectionError(f"dtype: {unknown[0]!r}; choose from {', '.join(DTYPES)}")
    found = []
    for benchmark in benchmarks:
        base = benchmark.small if small else benchmark.large
        wanted = [sizes_of(benchmark, shape, base) for shape in shapes] or [base]
        found += [Task(benchmark, dtype, sizes) for sizes in wanted for dtype in benchmark.dtypes
                  if not dtypes or dtype in dtypes]
    if not found:
        raise SelectionError(f"dtype: {', '.join(dtypes)}: none of the chosen kernels is benchmarked in it")
    return found


# ---- rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    time: bool | None = None         # None: on a GPU; False: each call once, and checked
    machine_code: bool = True        # on the emulated device: registers, occupancy, loops
    limit: float = math.inf          # seconds after which no further row is begun
    runs: int | None = None          # per row; None: as many as fit 0.3 s, 10 to 100
    flush_bytes: int | None = None   # None: twice the L2 cache


class Runner:
    """One device and what is known of it."""

    def __init__(self, device: Device, options: Options | None = None) -> None:
        self.device, self.options = device, options or Options()
        info = device.info
        self.emulated = isinstance(device, EmulatedDevice)
        self.ceiling = peaks.ceiling_of(info)
        self.part = f"emulated sm_{info.capability}" if self.emulated else info.name
        self._flush: timing.Flush | None = None
        self._baselines: Baselines | None = None

    @property
    def flush(self) -> timing.Flush:
        if self._flush is None:
            self._flush = timing.Flush(self.device, self.options.flush_bytes)
        return self._flush

    @property
    def baselines(self) -> Baselines:
        if self._baselines is None:
            self._baselines = Baselines(self.device)
        return self._baselines

    def facts(self) -> list[tuple[str, str]]:
        """What the figures rest on, in words."""
        if self.emulated:
            figures = COUNTED if self.options.time is None else EMULATED if self.options.time else CHECKED
            return [("device", f"{self.part}, executed on the CPU"), ("figures", figures)]
        if self.options.time is False:
            return [("device", self.part), ("figures", CHECKED)]
        copied = timing.copy_bandwidth(self.device)
        return [("device", self.part), *(("assumed", text) for text in self.ceiling.assumed),
                ("measured", f"a copy on the device moves {copied / 1e9:,.0f} GB/s"),
                ("timing", f"{TIMED}: {self.flush.size >> 20} MiB are written"),
                *(("missing", text) for text in self.baselines.missing)]

    def rows(self, wanted: Sequence[Task]) -> Iterator[Row]:
        """One per task.  What a device refuses, and what the time limit cuts off, has "skipped": why."""
        began = time.monotonic()
        for task in wanted:
            if time.monotonic() - began > self.options.limit:
                yield self._head(task) | {"skipped": f"time limit of {self.options.limit:g} s"}
                continue
            if not hasattr(self.device.library, f"nn_{task.benchmark.function}"):
                yield self._head(task) | {"skipped": f"the library has no such function; build it: {REBUILD}"}
                continue
            try:
                yield self._row(task)
            except (UnsupportedError, DeviceMemoryError) as error:
                yield self._head(task) | {"skipped": str(error)}

    def _head(self, task: Task) -> Row:
        return {"kernel": task.benchmark.function, "variant": task.benchmark.variant,
                "family": task.benchmark.family, "dtype": task.dtype, "shape": dict(task.sizes),
                "device": self.part}

    def _row(self, task: Task) -> Row:
        call = task.benchmark.make(self.device, task.dtype, task.sizes)
        row = self._head(task) | {"compulsory_bytes_read": call.bytes_read,
                                  "compulsory_bytes_written": call.bytes_written, "call_flops": call.flops}
        if isinstance(self.device, EmulatedDevice) and self.options.time is None:
            counts = counting.counted(self.device, call.run)
            return row | {"figures": COUNTED} | verdict(call) | self._described(counts)
        call.run()
        row |= {"figures": CHECKED} | verdict(call)
        if self.options.time is False:
            return row
        timed = self.timed(task, call)
        return row | ({"figures": EMULATED, "emulator": timed} if self.emulated
                      else timed | {"figures": TIMED})

    def timed(self, task: Task, call: Call) -> Row:
        """Times, and how far they are from the device's limit and from a vendor's library."""
        found = timing.measure(self.device, call.run, self.flush, runs=self.options.runs)
        kind = self.ceiling.kind(DTYPES[task.dtype], call.tf32)
        seconds, moved = found.median / 1e6, call.bytes_read + call.bytes_written
        row: Row = {"microseconds": found.median, "low": found.low, "high": found.high, "runs": found.runs,
                    "bytes_per_second": moved / seconds, "flops_per_second": call.flops / seconds}
        if least := self.ceiling.seconds(moved, call.flops, kind):
            row |= {"roofline_microseconds": least[0] * 1e6, "limit": least[1],
                    "of_roofline": least[0] / seconds}
        return row | self._beside(call, found)

    def _beside(self, call: Call, ours: timing.Timing) -> Row:
        """The vendor's time.  Its result is compared with the same formula, or it would be no comparison."""
        try:
            if (other := self.baselines.find(call)) is None:
                return {}
            name, run = other
            for check in call.checks:
                check.found[...] = 0                     # or ours would be taken for theirs
            run()
            if not verdict(call)["correct"]:
                return {"baseline": name, "baseline_failed": "its result differs from the formula"}
            theirs = timing.measure(self.device, run, self.flush, runs=self.options.runs)
        except Exception as error:               # another library's; ours is measured all the same
            return {"baseline_failed": f"{type(error).__name__}: {error}"}
        return {"baseline": name, "baseline_microseconds": theirs.median,
                "of_baseline": theirs.median / ours.median}

    # ---- emulated ----

    def _described(self, counts: Row) -> Row:
        """The counts with the compiler's figures and the least time on the part that is emulated."""
        arch = getattr(self.device, "arch", "")
        known = {}
        if self.options.machine_code:
            known = machine.figures(build.emulated_library(), arch, [k["mangled"] for k in counts["kernels"]])
        kernels = [kernel | (machine.with_launch(known[kernel["mangled"]], arch, kernel["threads_per_block"])
                             if kernel["mangled"] in known else {}) for kernel in counts["kernels"]]
        return counts | {"kernels": kernels} | _floor(self.device, arch)


def _floor(device: Any, arch: str) -> Row:
    """The least time of the counted work on the architecture's usual part: calculated, and a bound."""
    try:
        gpu = roofline.gpu_of(arch)
        bounds = [(roofline.bound(c, gpu), c.launches) for c in device.counters().values()]
    except EmulatorError:
        return {}
    seconds = sum(one.seconds * launches for one, launches in bounds)
    slowest = max(bounds, key=lambda one: one[0].seconds * one[1], default=None)
    return {"floor": {"gpu": gpu.name, "microseconds_at_least": seconds * 1e6,
                      "limit": slowest[0].limit if slowest else ""}}


def verdict(call: Call) -> Row:
    """"correct", and each result's error beside what it may be."""
    errors = []
    for check in call.checks:
        error, allowed = check.error()
        errors.append({"name": check.name, "error": error, "allowed": allowed, "correct": error <= allowed})
    return {"correct": all(one["correct"] for one in errors), "errors": errors}


def rows(device: Device, benchmarks: Sequence[Benchmark], *, dtypes: Sequence[str] = (),
         shapes: Sequence[str] = (), small: bool | None = None, options: Options | None = None
         ) -> Iterator[Row]:
    """The rows of some benchmarks; `small` sizes on an emulated device unless said otherwise."""
    runner = Runner(device, options)
    yield from runner.rows(tasks(benchmarks, small=runner.emulated if small is None else small, dtypes=dtypes,
                                 shapes=shapes))


