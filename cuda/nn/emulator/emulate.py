"""Run a program that nvcc built, unmodified, with the emulator in place of the CUDA runtime.

    result = emulate.run(["./program", "--size", "100"], mode="check", arch="sm_80")
    result.status, result.reports

The program must be linked with the shared runtime (nvcc -cudart shared), or load a library that is.  The
stand-in runtime is loaded before everything else; it asks `python -m cuda.nn.emulator.build` for the kernels,
and leaves its findings in a file as it ends."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuda.nn.emulator import cache, elf, report
from cuda.nn.emulator.build import LIBRARY, runtime_library, translator_key
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.profiles import profile_of
from cuda.nn.emulator.report import Report

STARTER = (
    "import sys; sys.path.insert(0, {place!r}); from cuda.nn.emulator.build import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Result:
    """What a program did."""

    status: int  # the program's own; 128 + n where signal n ended it
    reports: list[Report] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    seen: bool = False  # the program loaded the stand-in runtime
    finished: bool = True  # False: it was killed or aborted; reports are those until its last CUDA call


def run(
    command: Sequence[str],
    *,
    mode: str = "check",
    arch: str = "sm_80",
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Run a program to its end, its input and output untouched.

    options: further keys of the runtime (schedule, seed, steps, defer, fail_malloc, ...;
    csrc/emulator/api.h). EmulatorError where the program cannot be emulated, with the way to build it."""
    words = resolve(command)
    check_program(Path(words[0]))
    with tempfile.TemporaryDirectory(prefix="cuda-nn-emulate-") as folder:
        gathered = Path(folder) / "report.json"
        status = _wait(words, os.environ | environment(mode, arch, options, gathered))
        return _result(status, folder)


def resolve(command: Sequence[str]) -> list[str]:
    """The command with its program's path; a Python script is run by this Python."""
    if not command:
        raise EmulatorError("no program given; e.g. cuda-nn emulate ./program")
    program, *arguments = command
    if program.endswith(".py") and Path(program).is_file() and not os.access(program, os.X_OK):
        return [sys.executable, program, *arguments]
    found = shutil.which(program)
    if found is None:
        why = "not executable" if Path(program).is_file() else "no such program"
        raise EmulatorError(f"{program}: {why}")
    return [found, *arguments]


def check_program(path: Path) -> None:
    """EmulatorError for a program whose CUDA runtime the emulator cannot replace."""
    found = elf.read(path)
    if found is None or not found.has_cuda:
        return  # a script, or a program that loads its kernels from a library
    if found.cuda_runtime is None:
        raise EmulatorError(
            f"{path}: the CUDA runtime is linked into it statically (nvcc's default), so it cannot be "
            f"replaced; link it "
            "again with nvcc -cudart shared, or CMake's CUDA_RUNTIME_LIBRARY=Shared"
        )
    if found.cuda_runtime != LIBRARY:
        raise EmulatorError(
            f"{path}: it asks for {found.cuda_runtime}, and the emulator stands in for {LIBRARY}; build it "
            f"with CUDA 13"
        )


def environment(mode: str, arch: str, options: Mapping[str, Any] | None, gathered: Path) -> dict[str, str]:
    """The variables under which a program finds the stand-in runtime, and that one the translator."""
    library = runtime_library()
    chosen = {
        "arch": profile_of(arch).name,
        "check": int(mode != "fast"),
        "count": int(mode == "count"),
        **(options or {}),
    }
    answers = cache.root() / "programs" / translator_key()
    cache.make_folder(answers)
    place = str(Path(__file__).resolve().parents[3])
    return {
        "LD_PRELOAD": _before(str(library), "LD_PRELOAD"),
        "LD_LIBRARY_PATH": _before(str(library.parent), "LD_LIBRARY_PATH"),
        "CUDA_NN_CACHE": str(cache.root()),
        "CUDA_NN_EMULATOR": ";".join(f"{key}={value}" for key, value in chosen.items()),
        "CUDA_NN_EMULATOR_CACHE": str(answers),
        "CUDA_NN_EMULATOR_TRANSLATE": shlex.join([sys.executable, "-c", STARTER.format(place=place)]),
        "CUDA_NN_EMULATOR_REPORT": str(gathered),
    }


def _before(value: str, variable: str) -> str:
    return ":".join(filter(None, (value, os.environ.get(variable))))


def _wait(words: Sequence[str], variables: Mapping[str, str]) -> int:
    """The program's status.  Ctrl-C is the program's business: it has the same terminal."""
    try:
        process = subprocess.Popen(words, env=variables)
    except OSError as error:
        raise EmulatorError(f"{words[0]}: {error.strerror}") from None
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    return status if status >= 0 else 128 - status


def _result(status: int, folder: str) -> Result:
    """Put together what the program and its children left."""
    found = [
        json.loads(path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted(Path(folder).glob("report.json*"))
        if path.suffix != ".part"
    ]
    reports = report.merge(report.from_json(one) for part in found for one in part.get("reports", ()))
    counters = {name: value for part in found for name, value in part.get("counters", {}).items()}
    statistics: dict[str, Any] = next((part["statistics"] for part in found if part.get("statistics")), {})
    finished = not any(part.get("unfinished") for part in found)
    return Result(status, reports, counters, statistics, bool(found), finished)
