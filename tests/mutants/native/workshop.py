"""Bugs planted in the native kernels, one at a time, in a private copy of their sources; tests/native must
find each of them.

    python -m tests.mutants.native [FAMILY ...] [--only TEXT]       # all families by default

A family is a module beside this one with MUTANTS.  A copy is built by its own build.py at the level that a
mutant names; of that a copy has the bug in it, and only the files that the bug is in are compiled; the tests
of the mutant run in a process of their own, with that module in nn_native's place (in_its_place.py).  Where
the level is Arm's and the machine is not, the test program is built and emulated, as .ci/arm does."""

import importlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
SOURCES = ROOT / "csrc" / "native"
OBJECTS = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"        # build.py's default folder
CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
TIMEOUT = 60                                 # seconds for the tests; a mutant may never end
FAILED = 1                                   # pytest, the test program: tests were run, and some failed


@dataclass(frozen=True)
class Mutant:
    file: str                                # below csrc/native
    story: str                               # what a person got wrong
    line: str                                # text that stands once in the file
    instead: str
    found_by: str                            # a kernel, or "test_FILE.py::NAME" of tests/native
    level: str = "avx2"                      # of instructions, at which it is compiled and run
    program: str = ""                        # what finds it in the test program, where the level is emulated


def families() -> list[str]:
    """The modules beside this one that hold bugs."""
    others = {"workshop", "in_its_place", "__main__"}
    return sorted(path.stem for path in HERE.parent.glob("*.py")
                  if path.stem not in others and not path.stem.startswith("test_"))


def mutants(name: str) -> list[Mutant]:
    family: Any = importlib.import_module(f"tests.mutants.native.{name}")
    return list(family.MUTANTS)


@cache
def emulated() -> list[str]:
    """Levels that this processor cannot have, and an emulator does: where a program that uses the library can
    be compiled and run."""
    tools = all(map(shutil.which, (CROSS_COMPILER, EMULATOR[0])))
    if platform.machine() in ("aarch64", "arm64") or not tools:
        return []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        compiles = [CROSS_COMPILER, "-std=c++20", "-x", "c++", "-", "-o", str(program)]
        source = "#include <vector>\nint main() { return std::vector<int>{1, 2}.size() == 2 ? 0 : 1; }"
        done = [subprocess.run(command, input=source, text=True, capture_output=True, cwd=folder, check=False)
                for command in (compiles, [*EMULATOR, str(program)])]
    return ["neon_bf16"] if not any(each.returncode for each in done) else []


class Workshop:
    """Private copies of csrc/native and of what is compiled of it, where bugs are planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.healthy: set[tuple[str, str]] = set()

    def found(self, mutant: Mutant) -> str:
        """What the tests say of the mutant; "" if they pass.  RuntimeError if they fail without it."""
        healthy = self._healthy(mutant.level)
        if (mutant.level, mutant.found_by) not in self.healthy:
            said = self._said(built(healthy, mutant.level), mutant)
            if said:
                raise RuntimeError(f"{mutant.found_by} fails on healthy kernels: {said}")
            self.healthy.add((mutant.level, mutant.found_by))
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            place = shutil.copytree(healthy, Path(name), dirs_exist_ok=True)
            path = place / "csrc" / "native" / mutant.file
            text = path.read_text()
            assert text.count(mutant.line) == 1, f"{mutant.file}: {mutant.line!r} does not stand there once"
            path.write_text(text.replace(mutant.line, mutant.instead))
            return self._said(built(place, mutant.level), mutant)

    def _healthy(self, level: str) -> Path:
        """Sources and objects of a level.  What is built in the checkout need not be compiled once more:
        copies keep their times, and build.ninja's paths are relative."""
        place = self.folder / level
        if not place.exists():
            shutil.copytree(SOURCES, place / "csrc" / "native", ignore=shutil.ignore_patterns("__pycache__"))
            (place / "nn" / "backends" / "native").mkdir(parents=True)
            objects = folder_of_objects(level)
            if objects.is_dir():
                needed = {level, "core", "module", "tests"}
                others = {path.name for path in (objects / "objects").iterdir()} - needed
                shutil.copytree(objects, place / "build" / objects.name, ignore=lambda folder, names:
                                others & set(names) if Path(folder) == objects / "objects" else ())
        return place

    def _said(self, output: Path, mutant: Mutant) -> str:
        """The last line of a failing run of the mutant's tests; "" if they pass."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider",
                   "-p", "tests.mutants.native.in_its_place", *chosen(mutant)]
        if mutant.level in emulated():
            command = [*EMULATOR, str(output), mutant.program]
        variables = os.environ | {"NN_MUTANT": str(output), "NN_THREADS": "2"}
        variables.pop("PYTEST_ADDOPTS", None)
        try:
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True,
                                  timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return f"no end within {TIMEOUT} s"
        if done.returncode == 0:
            return ""
        if done.returncode < 0:
            return f"the process ended by signal {-done.returncode}"
        if done.returncode != FAILED:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        said = done.stdout.splitlines() + done.stderr.splitlines()
        return next(line for line in said if line.startswith("E ") or ": failed: " in line).strip()[:200]


def folder_of_objects(level: str) -> Path:
    return ROOT / "build" / "native-aarch64" if level in emulated() else OBJECTS        # .ci/arm's folder


def built(place: Path, level: str) -> Path:
    """The module of a copy, or its test program, of its sources as they are now."""
    command = [sys.executable, str(place / "csrc" / "native" / "build.py"), "--levels", level]
    variables = dict(os.environ)
    if level in emulated():
        command += ["--tests", "--folder", str(place / "build" / folder_of_objects(level).name)]
        variables["CXX"] = CROSS_COMPILER
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
    return Path(done.stdout.splitlines()[-1])


def chosen(mutant: Mutant) -> list[str]:
    """The tests of a mutant, as pytest takes them."""
    if mutant.found_by.startswith("test_"):
        return [f"tests/native/{mutant.found_by}"]
    kernel, suite = mutant.found_by, "tests/native/test_conformance.py"
    return [f"{suite}::test_every_level[{kernel}-{mutant.level}]",
            f"{suite}::test_every_level_with_strides[{kernel}-{mutant.level}]"]
