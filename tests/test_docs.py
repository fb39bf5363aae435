"""What docs/ says is true: links, paths and names exist, the map is complete, every block runs.

The numbers and tables of the page about the model are in tests/docs.        Try: pytest tests/test_docs.py"""

import contextlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig
from tests.docs import pages
from tests.docs.pages import DOCS, ROOT, agrees, blocks, marked, prose, read, rows

PAGES = [*DOCS, *sorted(ROOT.glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
WIDTH = 110
LEARN = "2-learn.md"


# ---- form ----


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    text = pages.FENCED.sub(lambda block: "" if block[1] == "yaml" else block[0], read(path))
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_blocks_have_a_language_that_is_run_or_is_not_to_be(path: Path) -> None:
    assert {block.language for block in blocks(path)} <= {"python", "sh", "text", "yaml", "mermaid", "cuda"}
    assert read(path).count("\n```") == 2 * len(blocks(path))


def slugs(path: Path) -> set[str]:
    """The anchors that headings get on GitHub."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        if not re.match(r"\w+:", target):
            page = (path.parent / file).resolve() if file else path
            assert page.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in slugs(page), f"{path.name}: {target} has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_paths_exist(path: Path) -> None:
    spans = re.findall(r"`((?:nn|cuda/nn|csrc|tests|docs|examples|bench)/[\w./-]*)`", prose(path))
    assert [span for span in spans if not (ROOT / span).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_dotted_names_exist(path: Path) -> None:
    for span in re.findall(r"`((?:nn|ops)\.[A-Za-z_][\w.]*)", prose(path)):
        assert exists(span), f"{path.name}: {span}"


def exists(dotted: str) -> bool:
    """Whether there is something behind `nn.ops.swiglu` or `ops.swiglu`."""
    parts = dotted.removeprefix("nn.").split(".")
    return any(_holds(parts[:cut], parts[cut:]) for cut in range(len(parts), -1, -1))


def _holds(module: list[str], names: list[str]) -> bool:
    with contextlib.suppress(ModuleNotFoundError, AttributeError):
        found: Any = importlib.import_module(".".join(["nn", *module]))
        for name in names:
            found = getattr(found, name)
        return True
    return False


# ---- the map of the tree ----


def mapped() -> Iterator[str]:
    """Every path that the map names; two spaces of indentation are one folder deeper."""
    stack: list[str] = []
    for line in marked("00-index.md", "map").splitlines()[1:-1]:
        if line.strip():
            stack[(len(line) - len(line.lstrip())) // 2 :] = [line.split()[0]]
            yield "".join(stack)


@pytest.mark.parametrize("path", list(mapped()))
def test_the_map_names_what_exists(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("folder", ["nn", "examples"])
def test_the_map_leaves_nothing_out(folder: str) -> None:
    there = {path.name for path in (ROOT / folder).iterdir()} - {"__pycache__", "__init__.py", "py.typed"}
    assert {path.split("/")[1] for path in mapped() if path.startswith(f"{folder}/")} - {""} == there


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"^\| \[([\w.-]+\.md)\]", read("00-index.md"), re.MULTILINE))
    assert listed | {"00-index.md"} == {path.name for path in DOCS}


# ---- running the pages ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every page, run; the folders in which they were."""
    made: dict[str, Path] = {}
    for path in DOCS:
        made[path.name] = tmp_path_factory.mktemp(path.stem)
        pages.run_page(path, made[path.name])
    return made


def test_every_block_runs_and_gives_what_the_page_says(folders: dict[str, Path]) -> None:
    assert list(folders) == [path.name for path in DOCS]


CASES = [("0.55", 0.5503, 0.556), ("(1, [2.5, 3])", (1, np.array([2.54, 3.4])), (1, np.array([2.5, 3.6]))),
         ("True", True, 1), ("'a'", "a", "b"), ("[-1.50]", [-1.504], [1.5])]


@pytest.mark.parametrize(("expected", "right", "wrong"), CASES)
def test_values_are_compared_to_the_digits_written(expected: str, right: Any, wrong: Any) -> None:
    assert agrees(right, expected)
    assert not agrees(wrong, expected)


WRONG = ["1 + 1      # → 3", "(1 +\n 1)      # → 3", "1 + 1\n# → 3", "x = 2      # → 2"]


@pytest.mark.parametrize("source", WRONG)
def test_a_wrong_value_on_a_page_is_found(source: str) -> None:
    with pytest.raises(AssertionError, match="somewhere"):
        pages.run_python(source, "somewhere", {})


def test_table_of_files_in_a_run(folders: dict[str, Path]) -> None:
    pytest.importorskip("matplotlib", reason="draws loss.png")
    run = folders[LEARN] / "runs" / "book"
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    found = {re.sub(r"step_\d{6}", "step_NNNNNN", name) for name in found}
    assert found == {name for name, _ in rows(LEARN, "run folder")}


def test_table_of_metrics(folders: dict[str, Path]) -> None:
    lines = (folders[LEARN] / "runs" / "book" / "metrics.jsonl").read_text().splitlines()
    written = {key for line in lines for key in json.loads(line)}
    limited = MoETransformer(MoETransformerConfig(hidden_size=16, capacity_factor=0.1))
    reported = set(limited.loss(np.zeros((1, 8), int), np.zeros((1, 8), int))[1])
    assert {key for key, _ in rows(LEARN, "metrics")} == written | reported
    assert reported - written == {"moe/overflow"}
