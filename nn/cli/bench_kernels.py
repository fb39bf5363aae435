"""Measure the CUDA kernels: time them on a GPU, count their work on the emulated device; check both.

On a GPU each row is a cold-cache median beside the least time that the device's bandwidth and arithmetic
allow, and beside cuBLAS or CuPy where they are installed. On the emulated device a row is what was counted
(memory sectors, bank conflicts, bytes, operations) and what the compiler made of the kernel; nothing there is
a time on a GPU. Results are compared with a float64 formula in the same run.

Exit status: 0 all correct, 1 a wrong result, 2 the input is at fault or there is no such device.

Examples:
  cuda-nn bench kernels
  cuda-nn bench kernels --kernel rms_norm softmax --dtype bfloat16 --shape 8192x4096
  cuda-nn bench kernels --kernel gemm_forward:nt --shape m=16,n=4096,k=4096 --json
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from nn.backends import devices
from nn.cli.terminal import facts
from nn.cli.words import Words
from nn.errors import InputError
from nn.names import nearest

DEVICES = ("auto", "cuda", "emulated")
# Columns and their least widths.
TIMED = {"median us": 9, "10-90 %": 15, "GB/s": 6, "TFLOP/s": 7, "roofline": 8, "limit": 11, "baseline": 14}
COUNTED = {"sectors": 7, "conflicts": 9, "moved": 6, "asked": 6, "MFLOP": 6, "tensor": 6, "launches": 8,
           "regs": 4, "spill": 5, "shared": 6, "occupancy": 9, "issue": 6}
LEGEND = """sectors    memory sectors touched over those that the same bytes would fill
conflicts  shared-memory wavefronts over those without bank conflicts
moved      distinct bytes of all launches over the least that the call needs
asked      bytes that threads asked for, over the same
MFLOP      counted operations, without tensor cores; tensor: with them
regs ...   of the kernel that executes the most: registers, bytes spilled, static shared memory, and the
           share of a multiprocessor's threads that fit by these (at most: memory that a launch asks for is
           not known)
issue      cycles in which one warp could issue each instruction of that kernel's longest loop once"""


def run(argv: list[str]) -> int:
    from cuda.nn.benchmarks import runner
    from cuda.nn.emulator.errors import EmulatorError

    given = parser().parse_args(argv)
    name = device_name(given.device)
    try:
        benchmarks = runner.select(given.kernel)
        wanted = runner.tasks(benchmarks, small=given.small or name == "emulated", dtypes=given.dtype,
                              shapes=given.shape)
        if given.list:
            print("\n".join(sorted({task.benchmark.name for task in wanted})))
            return 0
        device = _opened(name, given)
    except runner.SelectionError as error:
        raise InputError(_with_hint(str(error), given.kernel)) from None
    except EmulatorError as error:
        raise InputError(str(error)) from None
    if given.limit < float("inf"):               # each kernel in one type before any in another
        wanted.sort(key=lambda task: task.dtype != task.benchmark.dtypes[-1])
    options = runner.Options(time=False if given.check_only else None, limit=given.limit,
                             machine_code=not (given.counts_only or given.check_only))
    return _report(runner.Runner(device, options), wanted, given)


def parser() -> argparse.ArgumentParser:
    words = Words("bench kernels", __doc__, "[options]")
    add = words.add_argument
    add("--kernel", nargs="+", default=[], metavar="NAME", action="extend",
        help="kernels (rms_norm_forward), their beginnings (rms_norm), variants (gemm_forward:nt) or "
             "families (norm); all if none is named")
    add("--dtype", nargs="+", default=[], metavar="TYPE", action="extend",
        help="float32, float16, bfloat16; all that a kernel has if none is named")
    add("--shape", nargs="+", default=[], metavar="SIZES", action="extend",
        help="4096x512 in the order of the kernel's axes, or cols=512 with the others as they are")
    add("--device", choices=DEVICES, default="auto",
        help="auto: the GPU if there is one, else the emulated one")
    add("--arch", default="sm_80", metavar="ARCH", help="what the emulated device is (default sm_80)")
    add("--small", action="store_true", help="the emulated device's small shapes on a GPU, too")
    add("--check-only", action="store_true",
        help="run each once and compare its results; on the emulated device under its checker")
    add("--counts-only", action="store_true", help="no figures from machine code, which takes the assembler")
    add("--limit", type=float, default=float("inf"), metavar="SECONDS",
        help="begin no row after so long; each kernel in one type comes before any in another")
    add("--list", action="store_true", help="only list the benchmarks")
    add("--json", action="store_true", help="one JSON object per row instead of a table")
    return words


def device_name(wanted: str) -> str:
    """cuda or emulated."""
    if wanted != "auto":
        if reason := devices.missing(wanted):
            way_out = "; --device emulated counts without a GPU" if wanted == "cuda" else ""
            raise InputError(f"device: {wanted}: {reason}{way_out}")
        return wanted
    return "emulated" if devices.missing("cuda") else device_name("cuda")


def _opened(name: str, given: argparse.Namespace) -> Any:
    from cuda.nn.device import device

    if name == "cuda":
        return device(name)
    return device(name, arch=given.arch, mode="check" if given.check_only else "fast",
                  count=int(not given.check_only))


def _with_hint(message: str, words: Sequence[str]) -> str:
    from cuda.nn.benchmarks.families import load

    known = sorted({name for b in load().values() for name in (b.name, b.function, b.family)})
    if not message.startswith("kernel:"):
        return message
    guess = next((found for word in words if repr(word) in message and (found := nearest(word, known))), None)
    return f"{message}. " + (f"Did you mean {guess}?" if guess else "cuda-nn bench kernels --list lists them")


# ---- the report --------------------------------------------------------------------------------------------


def _report(runner: Any, wanted: Sequence[Any], given: argparse.Namespace) -> int:
    head = ("kernel", "type", "shape")
    names = [(task.benchmark.name, task.dtype, task.shape) for task in wanted]
    widths = [max(map(len, column)) for column in zip(head, *names, strict=True)]
    columns: dict[str, int] = {} if given.check_only else COUNTED if runner.emulated else TIMED
    if not given.json:
        facts([*runner.facts(), ("", "")])
        _line(head, widths, columns, list(columns))
    wrong = skipped = 0
    for row, name in zip(runner.rows(wanted), names, strict=True):
        row |= _findings(runner, given)
        wrong += not row.get("correct", True) or bool(row.get("findings"))
        skipped += "skipped" in row
        if given.json:
            print(json.dumps(row), flush=True)
        else:
            _line(name, widths, columns, _cells(row, runner.emulated, bool(columns)))
    if not given.json:
        _footer(len(names), wrong, skipped, runner.emulated and bool(columns))
    return int(wrong > 0)


def _line(name: Sequence[str], widths: Sequence[int], columns: dict[str, int],
          cells: Sequence[str]) -> None:
    left = [word.ljust(width) for word, width in zip(name, widths, strict=True)]
    right = list(cells)                          # one cell is words, over all columns
    if len(cells) == len(columns):
        right = [cell.rjust(width) for width, cell in zip(columns.values(), cells, strict=True)]
    print("  ".join([*left, *right]).rstrip(), flush=True)


def _findings(runner: Any, given: argparse.Namespace) -> dict[str, Any]:
    """What the emulator's checker found during a row."""
    if not (runner.emulated and given.check_only):
        return {}
    found = runner.device.reports()
    runner.device.clear()
    return {"findings": found} if found else {}


def _cells(row: dict[str, Any], emulated: bool, columns: bool) -> list[str]:
    if "skipped" in row:
        return [f"left out: {row['skipped']}"]
    if row.get("findings"):
        return [f"FAULT: {row['findings'][0].get('message', row['findings'][0])}"]
    if not row["correct"]:
        worst = max(row["errors"], key=lambda one: one["error"] - one["allowed"])
        return [f"WRONG: {worst['name']} is off by {worst['error']:.2g}, allowed {worst['allowed']:.2g}"]
    if not columns:
        return ["correct"]
    return _counted(row) if emulated else _timed(row)


def _timed(row: dict[str, Any]) -> list[str]:
    beside = f"{row['of_baseline']:.0%} of {row['baseline']}" if "of_baseline" in row else \
        f"failed ({row['baseline_failed']})" if "baseline_failed" in row else ""
    return [f"{row['microseconds']:.1f}", f"{row['low']:.1f}-{row['high']:.1f}",
            f"{row['bytes_per_second'] / 1e9:,.0f}",
            f"{row['flops_per_second'] / 1e12:.1f}" if row["call_flops"] else "",
            f"{row['of_roofline']:.0%}" if "of_roofline" in row else "", row.get("limit", ""), beside]


def _counted(row: dict[str, Any]) -> list[str]:
    least = row["compulsory_bytes_read"] + row["compulsory_bytes_written"]
    moved = row["distinct_bytes_read"] + row["distinct_bytes_written"]
    asked = row["bytes_read"] + row["bytes_written"]
    plain = sum(row["flops"].values()) - row["tensor_operations"]
    main: dict[str, Any] = max(row["kernels"], key=lambda one: one["instructions"], default={})
    occupancy = f"<= {main['occupancy_at_most']:.0%}" if "occupancy_at_most" in main else ""
    tensor = f"{row['tensor_operations'] / 1e6:.2f}" if row["tensor_operations"] else ""
    compiled = (_text(main.get(name)) for name in ("registers", "spill_bytes", "shared_bytes"))
    return [_ratio(row["sectors"], row["ideal_sectors"]),
            _ratio(row["bank_wavefronts"], row["ideal_wavefronts"]), _ratio(moved, least),
            _ratio(asked, least), f"{plain / 1e6:.2f}", tensor, str(row["launches"]), *compiled, occupancy,
            _text(main.get("loop_issue_cycles"))]


def _ratio(value: int, ideal: int) -> str:
    return f"{value / ideal:.3f}" if ideal else ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _footer(rows: int, wrong: int, skipped: int, counted: bool) -> None:
    if counted:
        print(f"\n{LEGEND}")
    print(f"\n{rows - skipped} run, {wrong} wrong, {skipped} left out")
