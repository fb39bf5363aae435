"""What docs/ says is true: links and paths exist, blocks run, numbers are recomputed, tables agree with the code.

A Python line that ends in `# → value` is evaluated and compared, numbers to the digits that are written.
`<!-- table: name -->` marks a table; TABLES says what it must hold.       Try: pytest tests/test_docs.py"""

import ast
import contextlib
import importlib
import io
import math
import os
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, flops, interop, ops
from nn.backends.reference import moe
from nn.cli.main import main
from nn.config import dump, settings
from nn.interop import mixtral
from nn.models import preset
from nn.models.moe_transformer import Module

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
WIDTH = 110


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[Block]:
    text = read(path)
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in found]


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(path), flags=re.DOTALL | re.MULTILINE)


def marked(page: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- end -->`."""
    found = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- end -->$", read(ROOT / "docs" / page), re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no <!-- {name} -->"
    return found[1].strip()


# ---- form ----


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_lines_are_short_and_blocks_have_a_known_language(path: Path) -> None:
    outside = re.sub(r"^```yaml.*?^```$", "", read(path), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in outside.splitlines() if len(line) > WIDTH] == []
    assert {block.language for block in blocks(path)} <= {"python", "sh", "text", "yaml", "mermaid"}


def slugs(path: Path) -> set[str]:
    """The anchors that headings get on GitHub."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


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
    spans = re.findall(r"`((?:nn|tests|docs|examples)/[\w./-]*)`", prose(path))
    assert [span for span in spans if not (ROOT / span).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_dotted_names_exist(path: Path) -> None:
    for span in re.findall(r"`((?:nn|ops)\.[A-Za-z_][\w.]*)(?:\([^`]*\))?`", prose(path)):
        resolve(span)


def resolve(dotted: str) -> Any:
    """The object behind `nn.ops.swiglu` or `ops.swiglu`."""
    parts = dotted.removeprefix("nn.").split(".")
    for cut in range(len(parts), -1, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found: Any = importlib.import_module(".".join(["nn", *parts[:cut]]))
            for part in parts[cut:]:
                found = getattr(found, part)
            return found
    raise AssertionError(dotted)


# ---- the map of the tree ----


def mapped() -> list[str]:
    """Every path that the map names."""
    paths, stack = [], []
    for line in blocks_of_text(marked("00-index.md", "map")):
        if line.strip():
            depth = (len(line) - len(line.lstrip())) // 2
            stack[depth:] = [line.split()[0]]
            paths.append("".join(stack))
    return paths


def blocks_of_text(fenced: str) -> list[str]:
    return fenced.splitlines()[1:-1]


def test_the_map_names_what_exists() -> None:
    for path in mapped():
        assert (ROOT / path).is_dir() == path.endswith("/"), path
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("folder", ["nn", "docs", "examples"])
def test_the_map_or_the_table_of_pages_leaves_nothing_out(folder: str) -> None:
    hidden = {"__pycache__", "__init__.py", "py.typed", "00-index.md"}
    there = {path.name for path in (ROOT / folder).iterdir() if path.suffix in ("", ".py", ".md")} - hidden
    pages = set(re.findall(r"^\| \[([\w.-]+\.md)\]", read(ROOT / "docs" / "00-index.md"), re.MULTILINE))
    named = {path.split("/")[1] for path in mapped() if path.startswith(f"{folder}/")}
    assert there == (pages if folder == "docs" else named - {""})


# ---- running the pages ----


def run_page(path: Path, folder: Path) -> dict[str, Any]:
    """Every Python and shell block in the page's order, in one namespace and one folder; the namespace."""
    namespace: dict[str, Any] = {"__name__": path.stem}
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else changed_to(folder):
        for block in blocks(path):
            where = f"docs/{path.name}:{block.line}"
            if block.language == "python":
                run_python(block, where, namespace)
            elif block.language == "sh":
                run_shell(block, where)
    return namespace


@contextlib.contextmanager
def changed_to(folder: Path) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 does not have."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_python(block: Block, where: str, namespace: dict[str, Any]) -> None:
    lines = block.text.splitlines()
    for statement in ast.parse(block.text).body:
        expected = expectation(lines, statement)
        code: ast.Module | ast.Expression = ast.Module([statement], [])
        if expected is None:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(ast.fix_missing_locations(code), where, "exec"), namespace)
        else:
            assert isinstance(statement, ast.Expr), f"{where}: only an expression has a value"
            value = eval(compile(ast.Expression(statement.value), where, "eval"), namespace)
            assert agrees(value, expected), f"{where}: {ast.unparse(statement)} is {value}, not {expected}"


def expectation(lines: list[str], statement: ast.stmt) -> str | None:
    """The text behind `# →` on the statement's last line, or on a line of its own below."""
    end = statement.end_lineno or statement.lineno
    below = lines[end] if end < len(lines) and lines[end].startswith("# → ") else ""
    for line in (lines[end - 1], below):
        if " → " in line:
            return line.split("# → ")[1].strip()
    return None


def agrees(value: Any, expected: str) -> bool:
    """Whether a value is what the page says: numbers to the digits written there, everything else literally."""
    wanted, found = ast.literal_eval(expected), plain(value)
    numbers = re.findall(r"(?<![\w'\"])-?\d+(?:\.(\d+))?", expected)
    return same(found, wanted, iter([0.5 * 10.0 ** -len(digits) for digits in numbers]))


def plain(value: Any) -> Any:
    """Arrays as lists, NumPy's numbers as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return type(value)(map(plain, value)) if isinstance(value, tuple | list) else value


def same(found: Any, wanted: Any, tolerances: Iterator[float]) -> bool:
    if isinstance(wanted, tuple | list):
        return len(found) == len(wanted) and all(same(f, w, tolerances) for f, w in zip(found, wanted, strict=True))
    if isinstance(wanted, bool | str) or wanted is None:
        return bool(found == wanted)
    return abs(found - wanted) <= next(tolerances) * (1 + 1e-9)


def run_shell(block: Block, where: str) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or ["", ""]
        if program == "python":
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        elif program:
            assert program == "cuda-nn", f"{where}: {program} cannot be run here; mark the block ```text"
            with contextlib.redirect_stdout(io.StringIO()):
                assert main(words) == 0, f"{where}: {line}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder in which each page was run, by page; filled by test_page_runs."""
    return {path.name: tmp_path_factory.mktemp(path.stem) for path in DOCS}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_page_runs(path: Path, folders: dict[str, Path]) -> None:
    run_page(path, folders[path.name])
