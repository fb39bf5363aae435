"""A finding of the checker: what went wrong, where, and the usual fix.

for report in module.reports:
    print(report)            # race: block_scan at scan.cu:15 and 17: ...
    report.kind, report.line, report.thread"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cuda.nn.emulator.names import plain_name

Dim = tuple[int, int, int]

# Every kind, and what it says in one line: for the documentation, for SARIF's rules, and for `cuda-nn kernels
# check`.
KINDS = {
    "race": "Two threads access the same bytes, one of them writes, and nothing orders them.",
    "out_of_bounds": "An access lies outside every allocation, or outside the variable it names.",
    "misaligned": "An address is not a multiple of the size of the access.",
    "uninitialized": "Memory is read that nothing has written.",
    "divergence": "Threads of one block wait at different barriers.",
    "deadlock": "No thread can go on: each waits for one that will never come.",
    "collective": "A warp-wide instruction is used with a wrong mask, by threads that left, or by different "
    "instructions at once.",
    "async": "Data of an asynchronous copy or matrix instruction is touched while it is in flight, or never "
    "waited for.",
    "host_pointer": "A kernel uses an address of host memory.",
    "use_after_free": "A kernel uses device memory that was freed.",
    "step_budget": "The kernel ran past its budget of steps: it may never end.",
    "trap": "The kernel stopped itself by a trap, or ran into code that cannot be reached.",
    "assert": "An assert() in the kernel failed.",
    "stack_overflow": "A thread used more stack than it has.",
    "invalid_launch": "A launch asks for what the device cannot give.",
    "fault": "The kernel stopped on a signal of the host, which no GPU would give in this form.",
    "unsynchronized": "The host uses results, or changes inputs, before it waited for the work that needs "
    "them.",
    "invalid_call": "A call of the CUDA runtime has arguments that it refuses.",
    "unsupported": "A call of the CUDA runtime, or a use of one, that the emulator does not have.",
    "translation": "Kernels of the program could not be translated.",
    "omitted": "There were more findings than are kept.",
}


@dataclass(frozen=True)
class Report:
    """One finding; equal findings are one report with a count."""

    kind: str  # one of KINDS
    message: str  # what happened, addresses in terms of variables
    kernel: str  # name as in the source, e.g. scan<128>; empty for a finding in host calls
    file: str  # the .cu file; empty where the PTX has no line information
    line: int  # 0 where unknown
    other_line: int | None  # the other side of a race
    thread: Dim | None  # threadIdx; None for a finding in host calls
    block: Dim | None  # blockIdx
    count: int  # how often
    fix: str = ""  # one sentence: the usual fix
    other_file: str = ""
    ptx_line: int = 0
    opcode: str = ""  # e.g. ld.shared.f32
    mangled: str = ""  # the kernel's name in the PTX

    def __str__(self) -> str:
        place = f" at {self.place}" if self.file else ""
        return f"{self.kind}{f': {self.kernel}' if self.kernel else ''}{place}: {self.message}"

    @property
    def place(self) -> str:
        """`scan.cu:15`, and the other side's line where there is one."""
        other = ""
        if self.other_line:
            far = self.other_file and self.other_file != self.file
            other = f" and {short(self.other_file)}:{self.other_line}" if far else f" and {self.other_line}"
        return f"{short(self.file)}:{self.line}{other}" if self.line else short(self.file)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def short(file: str) -> str:
    """A file under the working folder by its name there."""
    inside = os.path.relpath(file) if os.path.isabs(file) else file
    return file if inside.startswith("..") else inside


def from_json(found: Mapping[str, Any]) -> Report:
    """A report as the runtime library tells it (csrc/emulator/api.h)."""
    mangled = found.get("kernel") or ""
    return Report(
        kind=found["kind"],
        message=found["message"],
        kernel=plain_name(mangled),
        mangled=mangled,
        file=found.get("file") or "",
        line=found.get("line") or 0,
        other_file=found.get("other_file") or "",
        other_line=found.get("other_line") or None,
        thread=_dim(found.get("thread")),
        block=_dim(found.get("block")),
        count=found.get("count", 1),
        fix=found.get("fix") or "",
        ptx_line=found.get("ptx_line") or 0,
        opcode=found.get("opcode") or "",
    )


def merge(reports: Iterable[Report]) -> list[Report]:
    """Equal findings become one, their counts added; the order is that of first appearance."""
    found: dict[tuple[Any, ...], Report] = {}
    for report in reports:
        key = (
            report.kind,
            report.mangled,
            report.file,
            report.line,
            report.ptx_line,
            report.other_file,
            report.other_line,
            "" if report.line else report.message,
        )
        same = found.get(key)
        found[key] = dataclasses.replace(same, count=same.count + report.count) if same else report
    return list(found.values())


def _dim(found: Any) -> Dim | None:
    if found is None:
        return None
    x, y, z = (found["x"], found["y"], found["z"]) if isinstance(found, dict) else found
    return (x, y, z)
