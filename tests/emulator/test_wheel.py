"""A wheel holds the emulator's C++ sources, and works from where it is unpacked."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import numpy as np
from cuda.nn import emulator
from cuda.nn.emulator import build
assert "{place}" in build.__file__ and "{place}" in str(build.source_folder()), build.source_folder()
module = emulator.compile("{source}", mode="check")
out = np.zeros(3, np.float32)
module.launch("scale", 1, 4, [out, np.ones(3, np.float32), np.int32(3)])
assert out.tolist() == [2, 2, 2] and module.reports == []
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from copies of what git tracks or would, without the network."""
    if not _can_build():
        pytest.skip("the wheel is built with setuptools 77 or newer (pip install -e '.[dev]')")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools import build_meta; build_meta.build_wheel(__import__('sys').argv[1])",
            folder,
        ],
        cwd=_copy(folder / "source"),
        env=os.environ | {"CUDA_NN_BUILD_NATIVE": "0"},         # tests/native/test_build.py
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def _can_build() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def _copy(place: Path) -> Path:
    place.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for name in ("nn", "cuda", "csrc"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def test_the_sources_are_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("csrc/emulator", "csrc/emulator/cudart"):
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                assert (
                    f"cuda/nn/emulator/{path.relative_to(ROOT / 'csrc').as_posix()}".replace(
                        "emulator/emulator", "emulator/csrc"
                    )
                    in names
                )
    assert "cuda/nn/emulator/translate/instructions/memory.py" in names
    assert "cuda/nn/__init__.py" in names
    assert "cuda/__init__.py" not in names
    assert not any(name.startswith("tests/") for name in names)


def test_it_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = USE.format(place=tmp_path / "site", source=Path(__file__).parent / "interface.cu")
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
