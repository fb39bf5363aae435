"""Compile a .cu file, run its kernels on the CPU, and report what is wrong with them.

A file with a main() is run as a program. Kernels without one need a driver, a Python file with a
function run(module) that launches them; without a driver nothing is executed, and only what nvcc,
ptxas and the emulator say of the file is shown.

Exit status: 0 nothing found, 1 something found, 2 the input is at fault or nothing was executed.

Examples:
  cuda-nn kernels check scan.cu --driver scan_driver.py
  cuda-nn kernels check scan.cu --driver scan_driver.py --count --sarif kernels.sarif
  cuda-nn kernels check program.cu --arch sm_86 -D N=64 --schedule random -- its arguments
"""

import argparse
import json
from pathlib import Path
from typing import Any

from cuda.nn.emulator import sarif
from cuda.nn.emulator.check import check_file
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.options import SCHEDULES
from nn import __version__
from nn.cli.words import Words, refused
from nn.errors import InputError
from nn.names import nearest

USAGE = "check FILE.cu [options] [-- arguments of the program]"


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["check", "--help"]
    if argv[0] != "check":
        hint = "Did you mean check?" if nearest(argv[0], ["check"]) else f"usage: cuda-nn kernels {USAGE}"
        raise InputError(f"{argv[0]!r} is not something to do with kernels. {hint}")
    at = argv.index("--") if "--" in argv else len(argv)
    given = kernels_parser().parse_args(argv[1:at])
    try:
        outcome = check_file(
            given.file,
            driver=given.driver,
            arch=given.arch,
            mode="count" if given.count else "check",
            defines=_defines(given.define),
            include_dirs=given.include,
            schedule=given.schedule,
            seed=given.seed,
            arguments=argv[at + 1 :],
            quiet=given.json,
        )
    except EmulatorError as error:
        return refused(error)
    if given.sarif:
        given.sarif.write_text(
            json.dumps(sarif.log(outcome.reports, __version__), indent=2) + "\n", encoding="utf-8"
        )
    if given.json:
        print(json.dumps(outcome.as_dict(), indent=2))
    else:
        outcome.print()
    return outcome.status


def kernels_parser() -> argparse.ArgumentParser:
    parser = Words("kernels check", __doc__, USAGE.removeprefix("check "))
    parser.add_argument("file", type=Path, metavar="FILE.cu", help="the kernels")
    parser.add_argument(
        "--driver", type=Path, metavar="FILE.py", help="Python file whose run(module) launches them"
    )
    parser.add_argument(
        "--arch",
        default="sm_80",
        metavar="ARCH",
        help="what to compile for and run as, e.g. sm_86, sm_90a (default sm_80)",
    )
    parser.add_argument(
        "--count", action="store_true", help="also count sectors, bank conflicts, bytes and operations"
    )
    parser.add_argument(
        "-D",
        dest="define",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="define a macro; may be repeated",
    )
    parser.add_argument(
        "-I",
        dest="include",
        action="append",
        default=[],
        metavar="DIR",
        help="search headers there; may be repeated",
    )
    parser.add_argument(
        "--schedule", choices=SCHEDULES, default="forward", help="order in which threads and blocks run"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random schedule")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="write findings there as SARIF 2.1.0, for code hosts"
    )
    return parser


def _defines(words: list[str]) -> dict[str, Any]:
    """`N=64`, `FLAG` -> {"N": "64", "FLAG": None}."""
    pairs = (word.partition("=") for word in words)
    return {name: value if equals else None for name, equals, value in pairs}
