"""docs/adding_new_blocks.md, followed: its file, its line, and then everything that every block must pass."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.layers import registry
from nn.layers.stack import Stack, StackSettings
from tests.blocks import harness, test_every_block, test_packed
from tests.docs.pages import blocks, read

PAGE = "adding_new_blocks.md"
NAME = "gated_average"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page's file under its name, and its line, which the page gives both ways."""
    source = next(block.text for block in blocks(PAGE) if block.language == "python")
    (tmp_path / f"{NAME}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    name, place = re.findall(r'registry\.MIXERS\["(\w+)"\] = "([\w.]+)"', read(PAGE))[0]
    monkeypatch.setitem(registry.MIXERS, name, place)
    importlib.invalidate_caches()
    yield importlib.import_module(NAME)
    del sys.modules[NAME]


def test_the_line_for_the_package_names_the_same_class() -> None:
    name, place = re.findall(r'^ +"(\w+)": "([\w.]+)",$', read(PAGE), re.MULTILINE)[0]
    assert (name, place.rpartition(".")[2]) == (NAME, "GatedAverage")
    assert all(line.startswith("nn.layers.") for role in registry.ROLES.values() for line in role.values())


def test_it_passes_what_every_block_must(module: Any) -> None:
    """Every test of test_every_block, and those of packed rows, with each of its arguments"""
    (case,) = harness.cases_of("mixer", NAME)
    tests = [value for source in (test_every_block, test_packed) for name, value in vars(source).items()
             if name.startswith("test_")]
    ran = [test(case, **options) for test in tests if "case" in inspect.signature(test).parameters
           for options in arguments(test)]
    assert len(ran) >= 29


def arguments(test: Any) -> list[dict[str, Any]]:
    """The arguments besides `case` that pytest would run a test with"""
    sets: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = mark.args[0] if isinstance(mark.args[0], tuple | list) else re.split(r", *", mark.args[0])
        if names != ["case"]:
            values = [v if len(names) > 1 else (v,) for v in mark.args[1]]
            sets = [known | dict(zip(names, v, strict=True)) for known in sets for v in values]
    return sets


def test_it_stands_in_a_stack(module: Any) -> None:
    settings = StackSettings(hidden_size=8, mixer=(NAME, "full_attention"),
                             options={NAME: {"num_heads": 2}, "full_attention": {"num_heads": 2}})
    stack = harness.shaken(Stack(settings, dtype="float64"), 0)
    given = harness.inputs(settings)
    whole, _ = harness.run(stack, given, mode="chunk")
    parts, state = harness.in_parts(stack, given, [5, 8], ["chunk", "chunk", "recurrent"])
    harness.close(parts, whole)
    assert isinstance(state.layers[0].mixer, module.GatedAverageState)


def test_it_computes_what_the_page_says(module: Any) -> None:
    """Against the two lines of the page, token by token"""
    (case,) = harness.cases_of("mixer", NAME)
    block, x = case.build(), harness.inputs(case.settings).x
    a = 1.0 / (1.0 + np.exp(-x @ block.a_proj.weight.data.T))                      # [B,T,H]
    v = (x @ block.v_proj.weight.data.T).reshape(*x.shape[:2], 2, 3)
    h = np.zeros((len(x), 2, 3))
    for t in range(x.shape[1]):
        h = a[:, t, :, None] * h + (1.0 - a[:, t, :, None]) * v[:, t]
        y = h.reshape(len(x), 6) @ block.o_proj.weight.data.T
        harness.close(harness.run(block, harness.inputs(case.settings), mode="chunk")[0][:, t], y, 1e-12)


def test_the_file_is_complete() -> None:
    """It imports what it uses: nothing stands outside the page's first block."""
    source = next(block.text for block in blocks(PAGE) if block.language == "python")
    assert ast.get_docstring(ast.parse(source))
