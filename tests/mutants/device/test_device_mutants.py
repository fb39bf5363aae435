"""Every bug planted in a kernel is found by emulation, and the healthy kernels pass the same checks.

    python -m pytest -n 2 tests/mutants/device                       # one bug per family
    CUDA_NN_MUTANTS=all python -m pytest -n 2 tests/mutants/device   # all of them; make mutants

Which one of a family is planted follows from its sources: another one whenever they change, the same one
until then, so that a failure can be repeated."""

import hashlib
import os
from collections import Counter

import pytest

from cuda.nn import build
from tests.mutants.device import _translate
from tests.mutants.device.workshop import Mutant, Workshop, families, family, unit_of

EVERY = [(name, mutant) for name in families() for mutant in family(name).MUTANTS]
IDS = [f"{name}: {mutant.story}" for name, mutant in EVERY]
SOURCES = build.source_folder()
WITHOUT_A_BUG = {f"kernels/{name}.cu" for name in (      # a few lines that choose what the others hold
    "attention/forward", "attention/forward_bfloat16", "attention/backward_bfloat16", "gemm/mma_bf16",
    "gemm/wgmma_f16_sm90a")}


def chosen() -> list[tuple[str, Mutant]]:
    if os.environ.get("CUDA_NN_MUTANTS") == "all":
        return EVERY
    return [(name, one_of(name)) for name in families()]


def one_of(name: str) -> Mutant:
    mutants = family(name).MUTANTS
    text = b"".join((SOURCES / file).read_bytes() for file in sorted({mutant.file for mutant in mutants}))
    return mutants[int(hashlib.sha256(text).hexdigest(), 16) % len(mutants)]


@pytest.fixture(scope="module")
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(("shop", "mutant"), chosen(), indirect=["shop"],
                         ids=[f"{name}: {mutant.story}" for name, mutant in chosen()])
def test_is_found(shop: Workshop, mutant: Mutant) -> None:
    assert shop.found(mutant).said, f"nothing found: {mutant}"


# ---- without a compiler ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mutant"), EVERY, ids=IDS)
def test_its_line_stands_once_in_the_sources(name: str, mutant: Mutant) -> None:
    assert (SOURCES / mutant.file).read_text().count(mutant.line) == 1
    assert mutant.line != mutant.instead
    assert (SOURCES / unit_of(family(name), mutant)).suffix == ".cu"
    assert getattr(family(name), mutant.found_by.__name__) is mutant.found_by


@pytest.mark.parametrize("name", families())
def test_what_is_trimmed_stands_once_in_the_sources(name: str) -> None:
    for file, line, _ in family(name).TRIMS:
        assert (SOURCES / file).read_text().count(line) == 1, (file, line)


def test_every_kernel_file_has_a_bug() -> None:
    files = {mutant.file for _, mutant in EVERY} | {unit_of(family(name), mutant) for name, mutant in EVERY}
    kernels = {str(path.relative_to(SOURCES)) for path in (SOURCES / "kernels").rglob("*.cu")}
    assert kernels - files == WITHOUT_A_BUG
    assert len(EVERY) >= 90


def test_stories_name_one_bug_each() -> None:
    assert [story for story, n in Counter(IDS).items() if n > 1] == []


def test_kernels_are_cut_out_of_ptx() -> None:
    ptx = ".version 9.0\n.visible .entry a(\n)\n{\n{\nret;\n}\n}\n.weak .entry b()\n{\nret;\n}\n// end\n"
    assert _translate.keep(ptx, {"b"}) == ".version 9.0\n\n.weak .entry b()\n{\nret;\n}\n// end\n"
    assert _translate.keep(ptx, {"a", "b"}) == ptx
