"""Findings for people: what, where, the lines of the source with the culprit underlined, and the usual fix.

render.findings(module.reports)          # prints, by rich

race in block_scan: thread (31,0,0) reads buffer[30] (...)
  scan.cu:15  thread (31,0,0) of block (0,0,0)
    14 |     for (int step = 1; step < N; step *= 2) {
    15 |         value += buffer[from][threadIdx.x - step];
       |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  scan.cu:17  the other side
fix: ..."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cuda.nn.emulator import roofline
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.report import Dim, Report, short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cuda.nn.emulator.check import KernelFacts, Outcome
    from cuda.nn.emulator.counters import KernelCounters

AROUND = 1  # lines of source shown before the culprit
WASTE = 1.25  # times the ideal, from which on a line is shown as wasteful
SHOWN = 5  # such lines of a kernel


def findings(reports: Sequence[Report], console: "Console | None" = None) -> None:
    """Print all findings and how many there were."""
    from rich.console import Console

    console = console or Console(highlight=False, soft_wrap=True)
    for report in reports:
        for line in finding(report):
            console.print(line)
        console.print()
    console.print(summary(reports))


def summary(reports: Sequence[Report]) -> str:
    """`2 findings: 1 race, 1 out_of_bounds`."""
    if not reports:
        return "no findings"
    kinds = [report.kind for report in reports]
    listed = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(reports)} finding{'s' * (len(reports) > 1)}: {listed}"


def finding(report: Report) -> "Iterator[Text]":
    """The lines that show one finding."""
    from rich.text import Text

    times = f" ({report.count:,} times)" if report.count > 1 else ""
    where = f" in {report.kernel}" if report.kernel else ""
    yield Text.assemble((report.kind, "bold red"), f"{where}: {report.message}{times}")
    if report.line:
        yield from _excerpt(report.file, report.line, _who(report.thread, report.block))
    elif report.thread is not None:
        unknown = "  (no .cu line: nvcc -lineinfo keeps them)" if report.ptx_line else ""
        yield Text.assemble("  ", (_who(report.thread, report.block) + unknown, "dim"))
    if report.other_line:
        yield from _excerpt(report.other_file or report.file, report.other_line, "the other side")
    if report.fix:
        yield Text.assemble(("fix: ", "bold green"), report.fix)


def source_line(file: str, line: int) -> str:
    """A line of a file, empty where it cannot be read."""
    lines = _lines(file)
    return lines[line - 1] if 0 < line <= len(lines) else ""


def _excerpt(file: str, line: int, who: str) -> "Iterator[Text]":
    from rich.text import Text

    yield Text.assemble("  ", (f"{short(file)}:{line}", "cyan"), f"  {who}".rstrip())
    width = len(str(line))
    for number in range(max(line - AROUND, 1), line + 1):
        if text := source_line(file, number).expandtabs(4).rstrip():
            yield Text.assemble(f"    {number:>{width}} | ", (text, "" if number == line else "dim"))
    text = source_line(file, line).expandtabs(4).rstrip()
    if text.strip():
        indent = len(text) - len(text.lstrip())
        yield Text.assemble(f"    {'':>{width}} | ", " " * indent, ("^" * (len(text) - indent), "bold red"))


def _who(thread: Dim | None, block: Dim | None) -> str:
    if thread is None or block is None:
        return ""
    return f"thread ({','.join(map(str, thread))}) of block ({','.join(map(str, block))})"


@lru_cache(maxsize=64)
def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines() if file else []
    except OSError:
        return []


# ---- a whole check -----------------------------------------------------------------------------------------


def outcome(result: "Outcome", console: "Console | None" = None) -> None:
    """Print what a check came to: the kernels, their counters, the findings."""
    from rich.console import Console

    console = console or Console(highlight=False, soft_wrap=True)
    console.print(f"{result.file}, {result.arch}", markup=False)
    width = max((len(kernel.name) for kernel in result.kernels), default=0)
    for kernel in result.kernels:
        console.print(f"  {kernel.name:<{width}}  {_resources(kernel)}", markup=False)
        for loop in kernel.loops[:SHOWN]:
            console.print(
                f"  {'':<{width}}  loop of {loop.instructions} machine instructions: {loop.issue_cycles} "
                f"issue cycles a pass at least, {loop.waits} waits for slow results"
            )
    console.print()
    for why in result.refused:
        console.print(f"the emulator cannot run {why}", markup=False)
    counted = {kernel.name: kernel.counters for kernel in result.kernels if kernel.counters}
    if counted:
        counters(counted, console, result.arch)
    if result.failure:
        console.print(f"{result.failure}\n", style="red", markup=False)
    if result.executed or result.reports:
        findings(result.reports, console)
    if result.advice:
        console.print(f"Nothing was executed: {result.advice}", markup=False)


def counters(counted: "Mapping[str, KernelCounters]", console: "Console", arch: str) -> None:
    """What was counted, by kernel; each launch's lower bound in time on the GPU that is usual for an
    architecture; the lines that waste."""
    for name, counts in counted.items():
        launches = f"{counts.launches:,} launch{'es' * (counts.launches != 1)}"
        console.print(
            f"{name}: {launches}, {counts.instructions:,} instructions, {counts.barriers:,} barriers",
            markup=False,
        )
        console.print(
            f"  global  {counts.bytes_read:,} bytes read, {counts.bytes_written:,} written in "
            f"{counts.sectors:,} sectors"
            f"{_ratio(counts.sectors, counts.ideal_sectors)}"
        )
        if counts.bank_wavefronts:
            console.print(
                f"  shared  {counts.bank_wavefronts:,} "
                f"wavefronts{_ratio(counts.bank_wavefronts, counts.ideal_wavefronts)}"
            )
        if counts.flops:
            console.print(
                "  FLOP    " + ", ".join(f"{count:,} {kind}" for kind, count in counts.flops.items())
            )
        for text in _wasteful(counts):
            console.print(text, markup=False)
        console.print(f"  {_bound(counts, arch)}\n", markup=False)


def _wasteful(counts: "KernelCounters") -> "Iterator[Text]":
    """The lines of source that move most beyond the ideal."""
    from rich.text import Text

    found = []
    for (file, line), one in counts.places.items():
        for what, count, ideal in (
            ("sectors", one.sectors, one.ideal_sectors),
            ("wavefronts", one.bank_wavefronts, one.ideal_wavefronts),
        ):
            if count > WASTE * ideal:
                found.append(
                    (
                        count - ideal,
                        f"{count / ideal:.3g}x {what}" if ideal else f"{count} {what}",
                        file,
                        line,
                    )
                )
    for _, what, file, line in sorted(found, reverse=True)[:SHOWN]:
        yield Text.assemble(
            f"  {what}  ", (f"{short(file)}:{line}", "cyan"), f"  {source_line(file, line).strip()}"
        )


def _bound(counts: "KernelCounters", arch: str) -> str:
    try:
        return str(roofline.bound(counts, roofline.gpu_of(arch)))
    except EmulatorError as error:
        return str(error)


def _ratio(count: int, ideal: int) -> str:
    return f" ({count / ideal:.2f}x the ideal)" if ideal else ""


def _resources(kernel: "KernelFacts") -> str:
    found = kernel.resources
    if found is None:
        return "no resources known"
    parts = [
        f"{found.registers} registers",
        f"{found.spills:,} bytes spilled" if found.spills else "no spills",
        f"{found.shared_bytes + found.dynamic_shared_bytes:,} bytes shared",
    ]
    if found.blocks_per_multiprocessor:
        parts.append(f"occupancy {found.occupancy:.0%} with {found.threads} threads (limit: {found.limit})")
    if kernel.launches is not None:
        parts.append(
            f"{kernel.launches} launch{'es' * (kernel.launches != 1)}"
            if kernel.launches
            else "never launched"
        )
    return ", ".join(parts)
