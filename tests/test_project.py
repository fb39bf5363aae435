"""The project as a whole: what `import nn` does, who may import whom, and whether its files agree."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "nn").rglob("*.py"))
CUDA_SOURCES = sorted((ROOT / "cuda").rglob("*.py"))

# A module imports from its own line and from those above it.  All of cuda.nn stands above the first line.
RANKS = (
    ("errors", "names", "files", "config", "random", "dtypes", "backends", "packed", "threads", "arithmetic"),
    ("tape", "tensor", "operators", "ops"),
    ("state", "cache", "layers"),
    ("flops", "interop", "models", "data", "optim", "generate"),
    ("train", "eval", "bench"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}

IMPORT = """
import json, os, sys, threading
import numpy, ml_dtypes
def state():
    tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return dict(os.environ), threading.active_count(), tasks
before, opened = state(), []
def watch(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        opened.append(str(arguments[0]))
sys.addaudithook(watch)
import nn
print(json.dumps({"unchanged": state() == before, "opened": opened, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh process saw while it imported nn; -B: it may be the first, with bytecode to write."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return json.loads(done.stdout)


HEAVY = ("jsonargparse", "rich", "matplotlib", "tokenizers", "safetensors", "yaml", "torch", "transformers")


@pytest.mark.parametrize("package", HEAVY)
def test_import_loads_nothing_heavy(imported: dict, package: str) -> None:
    assert package not in imported["modules"]


def test_import_opens_no_file_starts_no_thread_and_leaves_the_environment(imported: dict) -> None:
    assert imported["opened"] == []
    assert imported["unchanged"]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or in a function; those for type checking do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in hidden:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in hidden:
            assert node.level == 0, f"{path}: relative import; write it out"
            yield from (
                (f"nn.{alias.name}" for alias in node.names) if node.module == "nn" else [node.module or ""]
            )


def test_every_module_has_its_rank() -> None:
    found = {path.relative_to(ROOT / "nn").parts[0].removesuffix(".py") for path in SOURCES}
    assert found == {*RANK, "__init__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "nn").parts[0].removesuffix(".py")
    for module in imports(path):
        top = module.split(".")[1] if module.startswith("nn.") else None
        if own == "__init__" or top is None:
            continue
        target = RANK.get(top, RANK["models"])  # what nn/__init__.py offers is the models or below
        assert target <= RANK[own], f"nn.{own} must not import {module}, which stands above it (see RANKS)"


def test_cuda_nn_imports_nothing_of_nn() -> None:
    for path in CUDA_SOURCES:
        for module in imports(path):
            assert module.split(".")[0] != "nn", f"{path}: {module} stands above it (see RANKS)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_framework_is_imported(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {
        "torch",
        "jax",
        "transformers",
        "tensorflow",
    }


def test_no_bare_package_folder_is_missing_its_init() -> None:
    for folder in {path.parent for path in (*SOURCES, *CUDA_SOURCES)}:
        assert (folder / "__init__.py").exists(), folder


def dependencies(text: str) -> list[str]:
    """The strings of the `dependencies` list in pyproject.toml (tomllib is not in Python 3.10)."""
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert block
    return re.findall(r'"([^"]+)"', block[1])


def test_requirements_agree_with_pyproject() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == dependencies((ROOT / "pyproject.toml").read_text())
    names = [re.split(r"[<>=]", line)[0] for line in listed]
    assert names == ["numpy", "ml_dtypes", "safetensors", "PyYAML", "tokenizers", "rich", "jsonargparse",
                     "threadpoolctl"]


def test_the_namespace_package_cuda_stays_open() -> None:
    assert not (ROOT / "cuda" / "__init__.py").exists()  # NVIDIA's cuda.* packages live in it, too


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "The cuda-nn authors" in text


def make(*words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_make_lists_its_commands() -> None:
    done = make()
    for command in ("setup", "train", "test", "cuda", "lint", "bench", "clean"):
        assert re.search(rf"^  make {command} +\S", done.stdout, re.MULTILINE)


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 2.7.18 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stdout
    assert "Python 2.7.18" in done.stdout
    assert not (tmp_path / "venv").exists()
