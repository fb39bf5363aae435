"""Reading the pages of docs/: their blocks, marked tables and text; running their blocks.

In a Python block, a line that ends in `# → value` is evaluated and compared, numbers to the digits written
there; a line of its own that begins with it belongs to the statement above."""

import ast
import contextlib
import io
import os
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.cli.main import main

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


# ---- reading ----


def read(page: str | Path) -> str:
    """A page by path, or by its name in docs/."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str | Path) -> list[Block]:
    text = read(page)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCED.finditer(text)]


def prose(page: str | Path) -> str:
    """The page without its fenced blocks."""
    return FENCED.sub("", read(page))


def one_line(page: str | Path) -> str:
    """The page with its line breaks as spaces, to look for a sentence in."""
    return " ".join(read(page).split())


def marked(page: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- end -->`."""
    found = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- end -->$", read(page), re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no <!-- {name} -->"
    return found[1].strip()


def rows(page: str, name: str) -> list[list[str]]:
    """The cells of a marked table, without its head and without the marks of code and bold."""
    lines = marked(page, f"table: {name}").splitlines()[2:]
    return [[cell.strip().strip("*`") for cell in line.strip("|").split("|")] for line in lines]


# ---- running ----


def run_page(page: Path, folder: Path) -> None:
    """Every Python and shell block in the page's order, in one namespace and one folder."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    with working_in(folder):
        for block in blocks(page):
            where = f"docs/{page.name}, block of line {block.line}"
            if block.language == "python":
                run_python(block.text, where, namespace)
            elif block.language == "sh":
                run_shell(block.text, where)
            elif block.language == "cuda":
                save(block.text, where)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 does not have; what is printed inside goes nowhere."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.chdir(before)


def save(source: str, where: str) -> None:
    """A file, under the name with which its first line begins."""
    name = re.match(r"// ([\w.]+):", source)
    assert name, f"{where}: the first line is to be `// FILE.cu: what it is`"
    Path(name[1]).write_text(source, encoding="utf-8")


def run_python(source: str, where: str, namespace: dict[str, Any]) -> None:
    """The statements one by one; those with an expected value must be expressions that have it."""
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        expected = expectation(lines, statement)
        if expected is None:
            exec(compile(ast.Module([statement], []), where, "exec"), namespace)
        else:
            assert isinstance(statement, ast.Expr), f"{where}: only an expression has a value"
            value = eval(compile(ast.Expression(statement.value), where, "eval"), namespace)
            assert agrees(value, expected), f"{where}: {ast.unparse(statement)} is {value}, not {expected}"


def expectation(lines: list[str], statement: ast.stmt) -> str | None:
    """The text behind `# →` on the statement's last line, or on a line of its own below."""
    end = statement.end_lineno or statement.lineno
    below = lines[end] if end < len(lines) and lines[end].startswith("# → ") else ""
    return next((line.split("# → ")[1].strip() for line in (lines[end - 1], below) if "# → " in line), None)


def agrees(value: Any, expected: str) -> bool:
    """Whether a value is what the page says: numbers to the digits written there, all else literally."""
    numbers = re.findall(r"(?<![\w'\"])-?\d+(?:\.(\d+))?", expected)
    halves = [0.5 * 10.0 ** -len(digits) for digits in numbers]
    return _same(_plain(value), ast.literal_eval(expected), iter(halves))


def _plain(value: Any) -> Any:
    """Arrays as lists, NumPy's numbers as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return type(value)(map(_plain, value)) if isinstance(value, tuple | list) else value


def _same(found: Any, wanted: Any, tolerances: Iterator[float]) -> bool:
    if isinstance(wanted, tuple | list):
        pairs = zip(found, wanted, strict=True)
        return len(found) == len(wanted) and all(_same(f, w, tolerances) for f, w in pairs)
    if isinstance(wanted, bool | str):
        return type(found) is type(wanted) and found == wanted
    return abs(found - wanted) <= next(tolerances) * (1.0 + 1e-9)


def run_shell(source: str, where: str) -> None:
    """`cuda-nn ...` in this process, `python examples/...` likewise; nothing else is run."""
    for line in source.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or ["#"]
        if program == "python":
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        elif program != "#":
            assert program == "cuda-nn", f"{where}: {program} is not run here; mark the block ```text"
            assert main(words) == 0, f"{where}: {line}"
