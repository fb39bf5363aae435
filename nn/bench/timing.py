"""Seconds per repetition, and how much of the machine others used meanwhile.

    sample = take(action, least=0.4);  sample.seconds, sample.others"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DISTURBED = 0.04          # a sample is, if others used more of the machine than this meanwhile
STAT = Path("/proc/stat")
TICKS = 2                 # of the kernel's clock, which both counts may be off


@dataclass(frozen=True)
class Sample:
    seconds: float                     # per repetition
    others: float                      # share of all cores that other processes used, what the clock's error
                                       # cannot explain; 0 where unknown

    @property
    def disturbed(self) -> bool:
        return self.others > DISTURBED


def take(action: Callable[[], float | Sample | None], least: float = 0.4, repetitions: int = 0) -> Sample:
    """One sample of at least so many seconds, or of so many repetitions.  An action that times itself, to
    leave out its preparation, returns the seconds that count, or the sample: it is one sample."""
    busy, own, start = _busy(), own_seconds(), time.perf_counter()
    done, counted = 0, 0.0
    while True:
        timed = action()
        if isinstance(timed, Sample):
            return timed
        done += 1
        if timed is not None:
            counted = timed
            break
        counted = time.perf_counter() - start
        if done >= repetitions if repetitions else counted >= least:
            break
    wall = time.perf_counter() - start
    foreign = (_busy() - busy) - (own_seconds() - own) - TICKS / os.sysconf("SC_CLK_TCK")
    return Sample(counted / done, max(0.0, foreign / wall / (os.cpu_count() or 1)) if STAT.exists() else 0.0)


def _busy() -> float:
    """Seconds of all cores since the machine started that were not idle, another guest's among them."""
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Of all cores, that this process and its children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def peak_rss_mb() -> float:
    """The most memory that this process has held, in 10^6 bytes.  (Linux's getrusage would begin with what
    the process had that started this one.)"""
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split("VmHWM:")[1].split()
        return int(words[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
