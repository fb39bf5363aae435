"""Bugs planted in kernels, one at a time, in a private copy of csrc; each must be found by emulation.

    python -m tests.mutants.device.workshop attention_backward [--only TEXT] [--jobs 2]

A family is a module beside this one with

    SOURCES     files below csrc/kernels that make a library of its own: as little as its check needs
    TRIMS       (file, text, instead): makes them smaller still, fewer instantiations above all
    MUTANTS     the bugs
    check(device)   raises AssertionError on a wrong value, other bits under another schedule, waste

A finding of the emulator counts as well as a failed check.  A mutant costs one run of nvcc for each file that
includes the line, one translation of it, and one check."""

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cuda.nn import build
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceError

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
TIMEOUT = 300                                # seconds for a check; a mutant may never end
MISSED, FOUND = "not found", 3               # in a report; status of a check that found something


@dataclass(frozen=True)
class Mutant:
    file: str                                # below csrc
    story: str                               # what a person got wrong
    line: str                                # text that stands once in the file
    instead: str


def families() -> list[str]:
    return sorted(path.stem for path in HERE.parent.glob("*.py")
                  if path != HERE and not path.stem.startswith(("test_", "_")))


def family(name: str) -> Any:
    return importlib.import_module(f"tests.mutants.device.{name}")


class Workshop:
    """A private copy of the sources of one family, built as it is and with bugs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.csrc, self.built = name, folder / "csrc", folder / "build"
        made = family(name)
        for part in ("include", "library", "device"):
            shutil.copytree(build.source_folder() / part, self.csrc / part)
        for place in {Path(source).parent for source in made.SOURCES}:
            shutil.copytree(build.source_folder() / "kernels" / place, self.csrc / "kernels" / place,
                            dirs_exist_ok=True)
        for source in (self.csrc / "kernels").rglob("*.cu"):
            if str(source.relative_to(self.csrc / "kernels")) not in made.SOURCES:
                source.unlink()
        for file, line, instead in made.TRIMS:
            replace(self.csrc / file, line, instead)

    def library(self) -> Path:
        """Built from what the copy holds now."""
        options = build.Options(self.built, targets=("80",), ptx_only=True, libraries=(build.EMULATED,))
        with patch.object(build, "source_folder", lambda: self.csrc):
            return build.build(options) / build.EMULATED

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        path = self.csrc / mutant.file
        healthy = path.read_text()
        replace(path, mutant.line, mutant.instead)
        try:
            yield
        finally:
            path.write_text(healthy)

    def finding(self) -> str:
        """What the family's check says of the sources as they are now; "" if nothing."""
        module = "tests.mutants.device.workshop"
        command = [sys.executable, "-m", module, self.name, "--check", str(self.library())]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"no end within {TIMEOUT} s"
        if done.returncode < 0:
            return f"killed by signal {-done.returncode}"
        if done.returncode not in (0, FOUND):
            raise RuntimeError(f"{self.name}: its check could not run:\n{done.stderr}")
        return done.stdout.strip() if done.returncode else ""


def replace(path: Path, line: str, instead: str) -> None:
    text = path.read_text()
    times = text.count(line)
    assert times == 1, f"{path}: {line!r} stands there {times} times; adapt the mutant"
    path.write_text(text.replace(line, instead))


def inspect(name: str, library: Path) -> str:
    """The first thing wrong with this library, found in this process."""
    device = EmulatedDevice(library, arch="sm_80", mode="check")
    device.clear()
    said = ""
    try:
        family(name).check(device)
    except (AssertionError, DeviceError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
    found = device.reports()
    return f"report: {str(found[0]).splitlines()[0][:120]}" if found else said


def by_file(mutants: Sequence[Mutant]) -> list[Mutant]:
    """A file that is healthy again is compiled once more; so those of one file come together."""
    return sorted(mutants, key=lambda mutant: mutant.file)


def work(name: str, mutants: Sequence[Mutant]) -> list[tuple[Mutant, str, float]]:
    """(mutant, what found it, seconds)"""
    results = []
    with tempfile.TemporaryDirectory(prefix="cuda-nn-mutants-") as folder:
        shop = Workshop(name, Path(folder))
        if healthy := shop.finding():
            raise AssertionError(f"{name}: the healthy kernels fail their own check: {healthy}")
        for mutant in by_file(mutants):
            start = time.monotonic()
            with shop.planted(mutant):
                finding = shop.finding() or MISSED
            results.append((mutant, finding, time.monotonic() - start))
            print(f"{results[-1][2]:6.1f} s  {mutant.story:60s} {finding[:100]}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=families())
    parser.add_argument("--only", default="", help="mutants whose story or file contains this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--check", type=Path, metavar="LIBRARY", help="say what is wrong with it")
    given = parser.parse_args(argv)
    if given.check:
        said = inspect(given.family, given.check)
        print(said)
        return FOUND if said else 0
    every = by_file(family(given.family).MUTANTS)
    chosen = [m for m in every if given.only in m.story or given.only in m.file]
    size = -(-len(chosen) // given.jobs)
    shares = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    with ProcessPoolExecutor(given.jobs) as pool:
        results = [r for share in pool.map(work, [given.family] * len(shares), shares) for r in share]
    missed = [mutant.story for mutant, finding, _ in results if finding == MISSED]
    print(f"{len(results) - len(missed)} of {len(results)} found, {sum(r[2] for r in results):.0f} s")
    for story in missed:
        print(f"{MISSED}: {story}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
