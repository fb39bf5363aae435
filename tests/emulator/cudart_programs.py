"""Builds and runs the programs of tests/emulator/cudart against the stand-in runtime.

    outcome = run(host_program("memory"), options={"defer": 1})
    outcome.failed, outcome.passed, outcome.report        # names of checks; the JSON left at exit

`host_program` needs a host compiler only, `cuda_program` nvcc.  Each is built once per run of the tests."""

import json
import subprocess
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
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    status: int                # negative: the signal that ended it
    passed: list[str]          # names of checks
    failed: list[str]          # lines
    output: str
    errors: str
    report: dict[str, Any]     # left at exit

    @property
    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.report.get("reports", ())]


@lru_cache
def host_program(name: str) -> Path:
    """A .cpp file linked with the stand-in itself."""
    library = build.runtime_library()
    includes = ["-I", str(build.source_folder()), "-isystem", str(toolchain.cuda_include())]
    libraries = ["-L", str(library.parent), f"-l:{build.LIBRARY}", "-ldl", "-pthread"]
    compiler = [*toolchain.host_compiler().split(), "-std=c++17", *WARNINGS, *includes]
    return _compile([*compiler, str(HERE / f"{name}.cpp"), *libraries], name)


@lru_cache
def cuda_program(name: str, *flags: str, output: str = "") -> Path:
    """A .cu file built by nvcc as its users would, with flags for the architecture."""
    try:
        nvcc = toolchain.nvcc()
    except EmulatorError as error:
        pytest.skip(str(error))
    chosen = flags or ("-arch=sm_80",)
    compiler = [str(nvcc), "-cudart", "shared", "-std=c++17", "-lineinfo", *chosen]
    return _compile([*compiler, str(HERE / f"{name}.cu"), "-ldl"], output or name)


def run(
    program: Path,
    *arguments: str,
    mode: str = "fast",
    arch: str = "sm_80",
    options: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Outcome:
    """Run a program to its end.

    variables: more of the environment.  before: words put before the program, e.g. a shell that limits it."""
    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "report.json"
        environment = {**emulate.environment(mode, arch, options, left), "PATH": "/usr/bin:/bin"}
        done = subprocess.run([*before, str(program), *arguments], env=environment | dict(variables or {}),
                              capture_output=True, text=True, timeout=SECONDS, check=False)
        report = json.loads(left.read_text()) if left.exists() else {}
    lines = done.stdout.splitlines()
    passed = [line.removesuffix(": ok") for line in lines if line.endswith(": ok")]
    failed = [line for line in lines if any(word in line for word in (": FAILED", ": expected ", ": got "))]
    return Outcome(done.returncode, passed, failed, done.stdout, done.stderr, report)


def check(outcome: Outcome, least: int) -> None:
    """All checks of a program passed, there were that many, and it ended as it should."""
    assert not outcome.failed, "\n".join(outcome.failed)
    assert outcome.status == 0, outcome.errors or outcome.output[-2000:]
    assert len(outcome.passed) >= least, outcome.output[-2000:]


@lru_cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="cudart-programs-"))


def _compile(command: Sequence[str], name: str) -> Path:
    program = _folder() / name
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stderr[:3000]}"
    return program
