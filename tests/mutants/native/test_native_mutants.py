"""Every bug planted in a native kernel is found by tests/native, and the healthy kernels pass the same tests.

    python -m pytest -n 0 tests/mutants/native                       # one bug per family
    CUDA_NN_MUTANTS=all python -m pytest -n 0 tests/mutants/native   # all of them; make mutants

Which one of a family is planted follows from its sources: another one whenever they change, the same one
until then, so that a failure can be repeated.  Bugs in what every kernel includes are planted by
`make mutants` alone: each of them compiles everything anew.  Bugs for Arm are planted where its compiler and
emulator are installed (.ci/arm)."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from nn.backends import native
from tests.mutants.native.workshop import SOURCES, Mutant, Workshop, emulated, families, mutants

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
EVERY = [(name, mutant) for name in families() for mutant in mutants(name)]
LEVELS = native.levels() + emulated() if native.missing() is None else []
INCLUDED_EVERYWHERE = ("kernels/kernel.h", "simd/vec.h", "simd/math.h", "core/types.h")


def here(name: str) -> list[Mutant]:
    """Those of a family whose instructions this processor or an emulator has."""
    return [mutant for mutant in mutants(name) if mutant.level in LEVELS]


def chosen() -> list[tuple[str, Mutant]]:
    if os.environ.get("CUDA_NN_MUTANTS") == "all":
        return [(name, mutant) for name in families() for mutant in here(name)]
    quick = {name: [one for one in here(name) if one.file not in INCLUDED_EVERYWHERE] for name in families()}
    return [(name, one_of(quick[name])) for name in families() if quick[name]]


def one_of(some: list[Mutant]) -> Mutant:
    text = b"".join((SOURCES / file).read_bytes() for file in sorted({mutant.file for mutant in some}))
    return some[int(hashlib.sha256(text).hexdigest(), 16) % len(some)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("mutant", [mutant for _, mutant in chosen()],
                         ids=[f"{name}: {mutant.story}" for name, mutant in chosen()])
def test_is_found(shop: Workshop, mutant: Mutant) -> None:
    assert shop.found(mutant), f"nothing found: {mutant}"


# ---- without a compiler ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mutant"), EVERY, ids=[f"{name}: {mutant.story}" for name, mutant in EVERY])
def test_its_line_stands_once_in_the_sources(name: str, mutant: Mutant) -> None:
    assert (SOURCES / mutant.file).read_text().count(mutant.line) == 1
    assert mutant.line != mutant.instead


def test_every_kernel_file_has_a_bug() -> None:
    files = {mutant.file for _, mutant in EVERY}
    kernels = {str(path.relative_to(SOURCES)) for path in Path(SOURCES / "kernels").rglob("*")
               if path.suffix in (".cpp", ".h")}
    assert kernels - files == {"kernels/ceiling.cpp"}       # loops for nn/bench, whose results nobody reads


def test_stories_name_one_bug_each() -> None:
    assert [story for story, n in Counter(mutant.story for _, mutant in EVERY).items() if n > 1] == []
