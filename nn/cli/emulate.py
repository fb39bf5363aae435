"""Run a program that nvcc built, or a Python script that loads such a library, on a machine without a GPU.

The program runs unmodified, with its own input, output and exit status. What was found follows on
stderr. It must use the CUDA runtime alone, and have been linked with nvcc -cudart shared; nvcc
-lineinfo lets reports name .cu lines.

Examples:
  cuda-nn emulate ./program --its-own-option 3
  cuda-nn emulate --check --schedule random --seed 7 ./program
  cuda-nn emulate --count --arch sm_90 --json report.json python3 script.py
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from cuda.nn.emulator import emulate, render, sarif
from cuda.nn.emulator.counters import read_counters
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.names import plain_name
from cuda.nn.emulator.options import SCHEDULES
from nn import __version__
from nn.cli.words import Words, refused

UNSEEN = "the program left no report: it never loaded the CUDA runtime, or it was killed"
RELINK = "A library with the runtime linked statically must be linked again, with nvcc -cudart shared"
SIGNALLED = 128  # a status above: the signal that ended the program
OPTIONS = {"schedule": str, "seed": int, "steps": int, "fail_malloc": int, "fail_launch": int}


def run(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    mode = "count" if given.count else "check" if given.check else "fast"
    options = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None}
    if given.defer:
        options["defer"] = 1
    try:
        result = emulate.run(given.command, mode=mode, arch=given.arch, options=options)
    except EmulatorError as error:
        return refused(error)
    if given.json:
        given.json.write_text(json.dumps(_document(result), indent=2) + "\n", encoding="utf-8")
    if given.sarif:
        given.sarif.write_text(
            json.dumps(sarif.log(result.reports, __version__), indent=2) + "\n", encoding="utf-8"
        )
    _tell(result, mode, given.arch)
    return result.status


def _parser() -> argparse.ArgumentParser:
    parser = Words("emulate", __doc__, "[options] ./program args...")
    parser.add_argument(
        "--check", action="store_true", help="find races, accesses out of bounds, uninitialised reads, ..."
    )
    parser.add_argument(
        "--count", action="store_true", help="check, and count sectors, bank conflicts, bytes, operations"
    )
    parser.add_argument(
        "--arch",
        default="sm_80",
        metavar="ARCH",
        help="device to be: sm_75, sm_80, sm_86, sm_89 or sm_90 (default sm_80)",
    )
    parser.add_argument("--schedule", choices=SCHEDULES, help="order in which threads and blocks run")
    parser.add_argument("--seed", type=_number, metavar="N", help="of the random schedule")
    parser.add_argument(
        "--steps", type=_number, metavar="N", help="loop iterations and calls after which a launch is stopped"
    )
    parser.add_argument(
        "--defer",
        action="store_true",
        help="do asynchronous work as late as allowed: finds missing synchronisation",
    )
    parser.add_argument("--fail-malloc", type=_number, metavar="N", help="let the N-th allocation fail")
    parser.add_argument("--fail-launch", type=_number, metavar="N", help="let the N-th launch fail")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write findings, counters and statistics there"
    )
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="write findings there as SARIF 2.1.0, for code hosts"
    )
    parser.add_argument(
        "command", metavar="program args...", nargs=argparse.REMAINDER, help="the program and its arguments"
    )
    return parser


def _number(word: str) -> int:
    """A number from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0")
    return int(word)


def _end(status: int) -> str:
    """How a program ended that did not run its own exit."""
    if status <= SIGNALLED:
        return f"ended at once (status {status})"
    try:
        return f"was ended by {signal.Signals(status - SIGNALLED).name}"
    except ValueError:
        return f"ended at once (status {status})"


def _document(result: emulate.Result) -> dict[str, object]:
    return {
        "status": result.status,
        "reports": [report.as_dict() for report in result.reports],
        "counters": result.counters,
        "statistics": result.statistics,
    }


def _tell(result: emulate.Result, mode: str, arch: str) -> None:
    """The report, on stderr: stdout is the program's."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    launched = result.statistics.get("launches")
    if result.reports or (launched and mode != "fast" and result.finished):
        render.findings(result.reports, console)
    if not result.finished:
        print(f"cuda-nn emulate: the program {_end(result.status)}; findings until its last CUDA call are "
              "shown, counts are not", file=sys.stderr)
        return
    if result.counters:
        counters = read_counters(result.counters)
        render.counters({plain_name(name): counts for name, counts in counters.items()}, console, arch)
    if not launched:
        why = "no kernel was launched through the emulated CUDA runtime" if result.seen else UNSEEN
        print(f"cuda-nn emulate: {why}. {RELINK}", file=sys.stderr)
