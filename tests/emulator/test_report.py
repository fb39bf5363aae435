"""Reports: what they say as text, with the source's lines; how equal ones merge; that every kind is known to
SARIF and the docs."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from cuda.nn.emulator import render, report
from cuda.nn.emulator.report import KINDS, Report, from_json, merge

CSRC = Path(__file__).parents[2] / "csrc" / "emulator"


def found(**changes: object) -> Report:
    one = {
        "kind": "race",
        "message": "read of 4 bytes at tile[3]",
        "kernel": "_Z4scanILi128EEvPi",
        "file": "scan.cu",
        "line": 3,
        "other_line": 2,
        "thread": [1, 0, 0],
        "block": [0, 2, 0],
        "count": 2,
        "fix": "Put __syncthreads() between.",
    }
    return from_json(one | changes)


def shown(*reports: Report) -> str:
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True)
    render.findings(reports, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_report_reads_as_one_line() -> None:
    assert str(found()) == "race: scan<128> at scan.cu:3 and 2: read of 4 bytes at tile[3]"
    assert (
        str(found(other_file="tile.cuh"))
        == "race: scan<128> at scan.cu:3 and tile.cuh:2: read of 4 bytes at tile[3]"
    )
    assert (
        str(found(kind="invalid_call", kernel="", file="", line=0, other_line=None))
        == "invalid_call: read of 4 bytes at tile[3]"
    )


def test_findings_show_both_lines_underlined(tmp_path: Path) -> None:
    source = tmp_path / "scan.cu"
    source.write_text("__global__ void scan() {\n    tile[i] = x;\n\tout = tile[3];\n}\n")
    text = shown(found(file=str(source), other_file=str(source)))
    assert text.splitlines() == [
        "race in scan<128>: read of 4 bytes at tile[3] (2 times)",
        f"  {source}:3  thread (1,0,0) of block (0,2,0)",
        "    2 |     tile[i] = x;",
        "    3 |     out = tile[3];",
        "      |     ^^^^^^^^^^^^^^",
        f"  {source}:2  the other side",
        "    1 | __global__ void scan() {",
        "    2 |     tile[i] = x;",
        "      |     ^^^^^^^^^^^^",
        "fix: Put __syncthreads() between.",
        "",
        "1 finding: 1 race",
    ]


def test_a_source_that_is_not_there_is_only_named() -> None:
    assert "  gone.cu:3  thread (1,0,0) of block (0,2,0)\n  gone.cu:2  the other side\n" in shown(
        found(file="gone.cu")
    )


def test_without_line_information_the_way_to_it_is_named() -> None:
    assert "nvcc -lineinfo keeps them" in shown(found(file="", line=0, other_line=None, ptx_line=7))
    assert "nvcc" not in shown(found(file="", line=0, other_line=None, ptx_line=0))


def test_brackets_in_messages_are_text() -> None:
    assert "tile[bold]" in shown(found(message="tile[bold]"))


def test_a_summary_counts_kinds() -> None:
    assert render.summary([]) == "no findings"
    assert render.summary([found(), found(), found(kind="trap")]) == "3 findings: 2 race, 1 trap"


def test_equal_findings_are_one_with_a_count() -> None:
    reports = merge([found(), found(message="read of 4 bytes at tile[9]", count=5), found(line=4)])
    assert [(one.line, one.count) for one in reports] == [(3, 7), (4, 2)]


def test_files_under_the_working_folder_are_named_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.short(str(tmp_path / "a" / "k.cu")) == "a/k.cu"
    assert report.short("/usr/include/x.h") == "/usr/include/x.h"


def test_every_kind_in_the_sources_is_described() -> None:
    """The runtime names kinds in string literals; each must have its line in KINDS, and KINDS nothing
    else."""
    text = "\n".join(path.read_text() for path in sorted(CSRC.rglob("*.cpp")))
    calls = r'(?:finding\([^"();]+, |report_call\(|reject\(\w+, |\bkind = )"([a-z_]+)"'
    assert set(re.findall(calls, text)) <= set(KINDS)
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []
