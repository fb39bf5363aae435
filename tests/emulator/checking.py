"""Small kernels for the checker (checker/*.cu), correct and broken ones, and the lines that must be reported.

A comment `// [name]` marks a line of a source; a Case says which kernel to run and what must be found.
Every case runs under three schedules: what a checker finds must not hang on the order in which threads
happen to run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cuda.nn import emulator

SOURCES = Path(__file__).parent / "checker"
SCHEDULES = ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 3})


@dataclass(frozen=True)
class Case:
    """One launch.  kind "": nothing may be found; else a report of that kind at the line marked `at`, and its
    other side, either way round, at the line marked `other`."""

    kernel: str
    kind: str = ""
    at: str = ""
    other: str = ""
    says: str = ""  # part of the message
    grid: int = 1
    block: int = 64
    args: Sequence[Any] = ()  # "out", "in", "zero": arrays of 4096 ints; numbers by value
    shared_bytes: int = 0
    also: Sequence[str] = field(default=("uninitialized",))  # what a race brings along

    def __str__(self) -> str:
        return self.kernel


class Checked:
    """The kernels of one source, compiled with checks."""

    def __init__(self, file: str, arch: str = "sm_80", mode: str = "check") -> None:
        self.path = SOURCES / file
        self.lines = self.path.read_text(encoding="utf-8").splitlines()
        self.module = emulator.compile(self.path, arch=arch, mode=mode)

    def line(self, mark: str) -> int:
        """Number of the line with that mark."""
        found = [number for number, line in enumerate(self.lines, 1) if f"// [{mark}]" in line]
        assert len(found) == 1, f"{self.path.name} has {len(found)} lines marked [{mark}]"
        return found[0]

    def run(self, case: Case, **schedule: Any) -> list[emulator.Report]:
        """What is found in one launch of the case."""
        self.module.clear()
        args = [_argument(given) for given in case.args]
        self.module.launch(case.kernel, case.grid, case.block, args, case.shared_bytes, **schedule)
        return self.module.reports

    def verify(self, case: Case) -> None:
        """Under every schedule: exactly what the case says."""
        for schedule in SCHEDULES:
            reports = self.run(case, **schedule)
            shown = "\n".join(map(str, reports)) or "nothing"
            if not case.kind:
                assert not reports, f"{case.kernel} {schedule}: {shown}"
                continue
            matching = [report for report in reports if self._fits(case, report)]
            assert matching, f"{case.kernel} {schedule}: {case.kind} expected, found {shown}"
            assert all(case.says in report.message for report in matching), shown
            assert all(report.fix for report in matching)
            assert {report.kind for report in reports} <= {case.kind, *case.also}, shown

    def _fits(self, case: Case, report: emulator.Report) -> bool:
        here = self.line(case.at)
        there = self.line(case.other) if case.other else None
        sides = {(here, there), (there, here)} if case.kind in ("race", "async") else {(here, there)}
        return report.kind == case.kind and (report.line, report.other_line) in sides


def _argument(given: Any) -> Any:
    if given == "out" or given == "zero":
        return np.zeros(4096, np.int32)
    if given == "in":
        return np.arange(4096, dtype=np.int32)
    return np.int32(given) if isinstance(given, int) else given
