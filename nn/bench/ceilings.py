"""What this machine could do at best, measured: multiply-adds a second by type, bytes read a second.

    limits = measure(threads=2);  limits.operations["bfloat16"], limits.read_bytes

Loops of csrc/native/kernels/ceiling.cpp, at the level of instructions in use: twelve chains of multiply-adds
in registers (four tiles of AMX), and reads of a buffer on huge pages, far larger than the caches, at 1, 2, 4
and 8 places in turn, of which the fastest counts."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nn.backends import native
from nn.bench.timing import take

TYPES = ("float32", "bfloat16", "int8")
STREAMS = (1, 2, 4, 8)
ROUNDS = 100_000
BUFFER = 1 << 30          # bytes; the largest caches that several cores share hold a tenth of that


@dataclass(frozen=True)
class Ceilings:
    """The fastest of several samples each, all threads together."""

    operations: dict[str, float]       # a second by type, a multiply-add being two; int8's add up in int32
    levels: dict[str, str]             # whose instructions those are
    read_bytes: float                  # a second
    streams: int                       # places per thread that this was read at
    threads: int

    def rows(self) -> list[dict[str, Any]]:
        """For the report: {"name", "dtype", "rate", "unit"}."""
        made: list[dict[str, Any]] = [
            {"name": f"multiply-adds, {self.levels[dtype]}", "dtype": dtype, "rate": rate, "unit": "FLOP/s"}
            for dtype, rate in self.operations.items()]
        if self.read_bytes:
            made.append({"name": f"read, {self.streams} streams a thread", "dtype": "",
                         "rate": self.read_bytes, "unit": "B/s"})
        return made

    def seconds(self, flops: float, size: float, dtype: str) -> tuple[str, float]:
        """(what limits, the least seconds) of work of so many operations and bytes; ("", 0) if unknown."""
        found = {"multiply-adds": flops / self.operations[dtype]} if self.operations.get(dtype) else {}
        if self.read_bytes:
            found["read"] = size / self.read_bytes
        return max(found.items(), key=lambda item: item[1], default=("", 0.0))


def measure(threads: int, *, size: int = BUFFER, samples: int = 5, least: float = 0.05) -> Ceilings:
    """Of so many threads; all zero where the native kernels are not built."""
    if native.missing():
        return Ceilings({}, {}, 0.0, 0, threads)
    with native.limit_threads(threads):
        module = native.extension()
        found = {dtype: module.ceiling(dtype) for dtype in TYPES}
        loops = {dtype: partial(module.multiply_add, dtype, ROUNDS) for dtype in found}
        rates = {dtype: ROUNDS * each[1] / _fastest(loops[dtype], samples, least)
                 for dtype, each in found.items() if each}
        read, streams = _reading(module, size, samples, least)
    return Ceilings(rates, {dtype: each[0] for dtype, each in found.items() if each}, read, streams, threads)


def _reading(module: Any, size: int, samples: int, least: float) -> tuple[float, int]:
    """(bytes a second, streams) of the fastest way to read so many bytes."""
    buffer = native.empty((size // 4,), np.float32)
    buffer.fill(1.0)
    rates = {streams: buffer.nbytes / _fastest(partial(module.read_all, buffer, streams), samples, least)
             for streams in STREAMS}
    best = max(rates, key=lambda streams: rates[streams])
    return rates[best], best


def _fastest(action: Any, samples: int, least: float) -> float:
    """Seconds of the fastest sample: a ceiling is what was reached at best"""
    action()
    return min(take(action, least).seconds for _ in range(samples))
