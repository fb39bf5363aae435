"""Bugs planted in kernels, one at a time, in a private copy of csrc; emulation must find each of them.

    python -m tests.mutants.device rope norm [--only TEXT]          # all families by default

A family is a module beside this one with

    NEEDS       folders below csrc/kernels whose objects its checks call ("." is the files that have none)
    TRIMS       (file, text, instead): fewer instantiations, so that a mutant is compiled quickly
    UNITS       {header: the source that is compiled for a bug in it}
    ARCH        what its checks run on, if not sm_80
    MUTANTS     the bugs, each with the check that must find it: ordinary tests, with few of their cases

Found: a failed check (a wrong value, other bits under another schedule, waste counted) or a report of the
emulator.  A mutant costs one run of nvcc, a translation of the kernels that its check launches, and the
check; where the line is the host's, also of the host compiler and the linker.  All other objects are those of
the library that the tests use."""

import importlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from cuda.nn import build
from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator import toolchain
from cuda.nn.errors import UnsupportedError

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
TIMEOUT = 300                                # seconds for a check; a mutant may never end
OBJECT, PTX = "mutant.o", "mutant.ptx"
# What the emulator says of a kernel that was left out, of one that its translator refuses, and of a type that
# a trim left out: nothing was checked.
NOT_RUN = ("is not in the translated module", "cannot be run: the translator", "the kernel executed a trap")
Check = Callable[[EmulatedDevice], None]
CHECKS = get_context("forkserver")           # what checks import is imported once, and each has its process


@dataclass(frozen=True)
class Mutant:
    file: str                                # below csrc
    story: str                               # what a person got wrong
    line: str                                # text that stands once in the file
    instead: str
    found_by: Check                          # a function of its family's module
    unit: str = ""                           # the source that is compiled, if not the one of UNITS
    host: bool = False                       # its line is the host's


@dataclass(frozen=True)
class Finding:
    said: str                                # what is wrong; "" if nothing
    seconds: float = 0.0                     # of the processor, by the check and the translation
    launched: frozenset[str] = field(default_factory=frozenset)


def families() -> list[str]:
    """The modules beside this one."""
    return sorted(path.stem for path in HERE.parent.glob("*.py")
                  if path != HERE and not path.stem.startswith(("test_", "_")))


def family(name: str) -> Any:
    return importlib.import_module(f"tests.mutants.device.{name}")


def without(*dtypes: str) -> list[tuple[str, str, str]]:
    """TRIMS: kernels of these types are not compiled, and a check that wants one cannot run."""
    types = {"FLOAT32": "float", "FLOAT16": "::nn::half", "BFLOAT16": "::nn::bfloat16"}
    return [("device/number.cuh", f"case NN_{d}: {{ using T = {types[d]}; __VA_ARGS__; }} break;",
             f'case NN_{d}: return ::nn::fail(NN_ERROR_UNSUPPORTED, "left out");') for d in dtypes]


def some_bits(device: EmulatedDevice) -> Callable[..., None]:
    """The fixture same_bits with fewer schedules."""

    def check(run: Callable[[], list[Any]]) -> None:
        found = []
        for schedule, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            device.configure(schedule=schedule, seed=seed)
            found.append([array.tobytes() for array in run()])
            assert found[-1] == found[0], f"other bits under schedule {schedule}, seed {seed}"
        device.configure()

    return check


# ---- building ----------------------------------------------------------------------------------------------


class Workshop:
    """A private copy of csrc with the trims of one family, where its bugs are planted and compiled."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.csrc, self.folder = name, folder / "csrc", folder
        self.made, self.healthy = family(name), build.emulated_library()
        self.launched: dict[str, Finding] = {}
        shutil.copytree(build.source_folder(), self.csrc, ignore=shutil.ignore_patterns("emulator"))
        for file, line, instead in self.made.TRIMS:
            replace(self.csrc / file, line, instead)

    @property
    def seconds(self) -> float:
        """Of the processor, for the healthy library's checks"""
        return sum(found.seconds for found in self.launched.values())

    def examined(self, check: Check) -> Finding:
        """What the check says of the healthy library, once: nothing, or there is something to repair here."""
        if check.__name__ not in self.launched:
            found = self.launched[check.__name__] = self._found(self.healthy, check, frozenset())
            if found.said:
                raise AssertionError(f"{self.name}.{check.__name__} fails on healthy kernels: {found.said}")
        return self.launched[check.__name__]

    def found(self, mutant: Mutant) -> Finding:
        """What the mutant's check says of it."""
        kernels, before = self.examined(mutant.found_by).launched, children_seconds()
        with self._planted(mutant):
            library = self._linked(mutant) if mutant.host else self._exchanged(mutant)
        spent = children_seconds() - before
        found = self._found(library, mutant.found_by, kernels)
        return Finding(found.said, found.seconds + spent)

    @contextmanager
    def _planted(self, mutant: Mutant) -> Iterator[None]:
        path = self.csrc / mutant.file
        healthy = path.read_text()
        replace(path, mutant.line, mutant.instead)
        try:
            yield
        finally:
            path.write_text(healthy)

    def _exchanged(self, mutant: Mutant) -> Path:
        """The healthy library, of which one object's kernels will be taken from the PTX compiled here."""
        unit = unit_of(self.made, mutant)
        self._compile(unit, f"-arch=compute_{arch_of(self.made)}", "-ptx", "-o", str(self.folder / PTX))
        shutil.copy(self._object(unit), self.folder / OBJECT)
        return self.healthy

    def _linked(self, mutant: Mutant) -> Path:
        """A library of the object compiled here and the healthy ones that the checks call."""
        unit, library = unit_of(self.made, mutant), self.folder / build.EMULATED
        (self.folder / PTX).unlink(missing_ok=True)
        self._compile(unit, "--compress-mode=none", build.generate((arch_of(self.made),), ptx_only=True),
                      "-Xcompiler", "-O0", "-c", "-o", str(self.folder / OBJECT))
        objects = self.healthy.parent / "objects"
        folders = [objects / "library", *(objects / "kernels" / need for need in self.made.NEEDS)]
        others = {path for folder in folders for path in folder.glob("*.o")} - {self._object(unit)}
        run([*toolchain.host_compiler().split(), "-shared",
             f"-Wl,--version-script={self.csrc / 'library' / 'exports.map'}", str(self.folder / OBJECT),
             *map(str, sorted(others)), *build.cudart(shared=True), "-o", str(library)])
        return library

    def _compile(self, unit: str, *options: str) -> None:
        run([str(build.nvcc()), *build.FLAGS, f"-I{self.csrc}", f"-I{self.csrc / 'include'}", *options,
             str(self.csrc / unit)])

    def _object(self, unit: str) -> Path:
        """Of the healthy library"""
        found = (self.healthy.parent / "objects" / unit).with_suffix(".o")
        if not found.is_file():
            raise RuntimeError(f"{found} is not there; build the library in this checkout: {build.COMMAND}")
        return found

    def _found(self, library: Path, check: Check, kernels: frozenset[str]) -> Finding:
        """In a process of its own, which may die."""
        CHECKS.set_forkserver_preload([f"tests.mutants.device.{name}" for name in families()])
        receiver, sender = CHECKS.Pipe(duplex=False)
        process = CHECKS.Process(target=examine, args=(sender, self.name, check.__name__, library, kernels,
                                                       self.folder))
        process.start()
        sender.close()
        said: Any = Finding(f"no end within {TIMEOUT} s")
        if receiver.poll(TIMEOUT):
            try:
                said = receiver.recv()
            except EOFError:
                process.join()
                said = Finding(f"the process ended with status {process.exitcode}")
        process.kill()
        process.join()
        if isinstance(said, str):
            raise RuntimeError(f"{self.name}.{check.__name__} could not be run: {said}")
        assert isinstance(said, Finding)
        return said


def arch_of(made: Any) -> str:
    return str(getattr(made, "ARCH", "sm_80")).removeprefix("sm_")


def unit_of(made: Any, mutant: Mutant) -> str:
    """The source below csrc that is compiled for a mutant."""
    return mutant.unit or str(made.UNITS.get(mutant.file, mutant.file))


def replace(path: Path, line: str, instead: str) -> None:
    text = path.read_text()
    times = text.count(line)
    assert times == 1, f"{path}: {line!r} stands there {times} times; adapt the mutant"
    path.write_text(text.replace(line, instead))


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[:4000]}")


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- checking, in the other process ------------------------------------------------------------------------


class Recording(EmulatedDevice):
    """Also remembers which kernels were launched."""

    launched: frozenset[str] = frozenset()

    def configure(self, **options: Any) -> None:
        super().configure(**options | {"count": 1})

    def counters(self) -> Any:
        found = super().counters()
        self.launched |= frozenset(found)
        return found

    def clear(self) -> None:
        self.counters()
        super().clear()


def examine(sender: Connection, name: str, check: str, library: Path, kernels: frozenset[str],
            folder: Path) -> None:
    """Sends a Finding, or a text if the check could not run."""
    device = (EmulatedDevice if kernels else Recording)(library, arch=f"sm_{arch_of(family(name))}",
                                                        mode="check")
    try:
        sender.send(inspect(device, getattr(family(name), check), kernels, folder))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
    sender.close()
    os._exit(0)                              # no destructors: a broken device would complain


def inspect(device: EmulatedDevice, check: Check, kernels: frozenset[str], folder: Path) -> Finding:
    """The first thing wrong with the device's library.  `kernels`: those to translate, if not all of them."""
    device.clear()
    if kernels:
        (folder / "kernels").write_text("\n".join(kernels))
        os.environ["CUDA_NN_EMULATOR_TRANSLATE"] = shlex.join(
            [sys.executable, "-m", "tests.mutants.device._translate", str(folder / OBJECT),
             str(folder / "kernels"), str(folder / PTX)])
        os.chdir(ROOT)
    said = ""
    try:
        check(device)
    except (UnsupportedError, AttributeError):
        raise
    except (Exception, pytest.fail.Exception) as error:
        said = f"{type(error).__name__}: {error}".strip()
    if found := device.runtime.reports():        # after some of them every call of the device fails
        said = f"report of {found[0]['kind']}: {found[0]['message']}"
    if any(words in said for words in NOT_RUN):
        raise RuntimeError(said)
    if not kernels and not said:
        device.clear()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Finding(" ".join(said.split())[:200], used.ru_utime + used.ru_stime + children_seconds(),
                   getattr(device, "launched", frozenset()))
