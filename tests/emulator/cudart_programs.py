"""Builds and runs the programs of tests/emulator/cudart against the stand-in runtime.

    outcome = run(host_program("memory"), options={"defer": 1})
    outcome.failed, outcome.passed, outcome.report        # names of checks; the JSON left at exit

`host_program` needs a host compiler only, `cuda_program` nvcc.  Each is built once per run of the tests."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from cuda.nn.emulator import build, emulate, toolchain
from cuda.nn.emulator.errors import EmulatorError

HERE = Path(__file__).parent / "cudart"
SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    status: int                          # negative: the signal that ended it
    passed: list[str]
    failed: list[str]
    output: str
    errors: str
    report: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.report.get("reports", ())]


@lru_cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="cudart-programs-"))


@lru_cache
def host_program(name: str) -> Path:
    library = build.runtime_library()
    program = _folder() / name
    _call([*toolchain.host_compiler().split(), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(build.source_folder()), "-isystem", str(toolchain.cuda_include()),
           str(HERE / f"{name}.cpp"), "-o", str(program), "-L", str(library.parent), f"-l:{build.LIBRARY}", "-ldl", "-pthread"])
    return program


@lru_cache
def cuda_program(name: str, *flags: str, output: str = "") -> Path:
    try:
        nvcc = toolchain.nvcc()
    except EmulatorError as error:
        pytest.skip(str(error))
    program = _folder() / (output or name)
    _call([str(nvcc), "-cudart", "shared", "-std=c++17", "-lineinfo", *(flags or ("-arch=sm_80",)), str(HERE / f"{name}.cu"),
           "-o", str(program), "-ldl"])
    return program


def run(program: Path, *arguments: str, mode: str = "fast", arch: str = "sm_80", options: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> Outcome:
    """Run a program to its end.  variables: more of the environment; before: words put before the program (a shell that limits it)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {**emulate.environment(mode, arch, options, report), "PATH": "/usr/bin:/bin", **(variables or {})}
        done = subprocess.run([*before, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = json.loads(report.read_text()) if report.exists() else {}
    lines = done.stdout.splitlines()
    passed = [line.removesuffix(": ok") for line in lines if line.endswith(": ok")]
    failed = [line for line in lines if ": FAILED" in line or ": expected" in line or ": got" in line]
    return Outcome(done.returncode, passed, failed, done.stdout, done.stderr, found)


def check(outcome: Outcome, least: int) -> None:
    """All checks of a program passed, there were that many, and it ended as it should."""
    assert not outcome.failed, "\n".join(outcome.failed)
    assert outcome.status == 0, outcome.errors or outcome.output[-2000:]
    assert len(outcome.passed) >= least, outcome.output[-2000:]


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0, f"{command[0]} failed: {done.stderr[:2000]}"
