"""What is compiled for one level of instructions stays in it.

A function that the compiler may emit in several objects (inline, a template) is kept once by the linker: were
it compiled for AVX-512 as well, that one may be chosen, and run on a machine without it."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}" / "objects"
LEVELS = sorted(path.name for path in OBJECTS.glob("*") if (path / "kernels").is_dir())
pytestmark = pytest.mark.skipif(not LEVELS or not shutil.which("nm"),
                                reason="the objects are made by make native; nm is binutils'")


def symbols(path: Path, *options: str) -> list[str]:
    done = subprocess.run(["nm", "-C", *options, path], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_shares_no_code(level: str) -> None:
    for path in sorted((OBJECTS / level / "kernels").glob("*.o")):
        for line in symbols(path, "--defined-only"):
            kind, symbol = line.split(maxsplit=2)[-2:] if line[:1] != " " else ("", "")
            if kind in ("W", "V", "u", "T") and not symbol.startswith("DW.ref."):      # an address, no code
                assert f"nn::{level}::" in symbol, f"{path.name}: {symbol}"


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_of_a_level_runs_when_it_is_loaded(level: str) -> None:
    for path in sorted((OBJECTS / level / "kernels").glob("*.o")):
        assert not [line for line in symbols(path) if "_GLOBAL__sub_I" in line], path.name
