"""Findings as SARIF 2.1.0, which code hosts show beside the lines of a change.

    Path("kernels.sarif").write_text(json.dumps(sarif.log(module.reports)))

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cuda.nn.emulator.report import KINDS, Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
WARNINGS = (
    "uninitialized",
    "step_budget",
    "unsupported",
    "omitted",
)  # the rest is wrong on every GPU: errors


def log(reports: Sequence[Report], version: str = "") -> dict[str, Any]:
    """The whole document, one run with one result per finding.  Files under the working folder are named
    relative to it."""
    kinds = sorted({report.kind for report in reports})
    driver: dict[str, Any] = {"name": "cuda-nn kernels check", "rules": [_rule(kind) for kind in kinds]}
    if version:
        driver["version"] = version
    run = {
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "originalUriBaseIds": {"SRCROOT": {"uri": Path.cwd().as_uri() + "/"}},
        "results": [_result(report, kinds.index(report.kind)) for report in reports],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(kind: str) -> dict[str, Any]:
    text = KINDS.get(kind, kind.replace("_", " "))
    return {
        "id": kind,
        "name": "".join(word.capitalize() for word in kind.split("_")),
        "shortDescription": {"text": text},
        "defaultConfiguration": {"level": "warning" if kind in WARNINGS else "error"},
    }


def _result(report: Report, rule: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ruleId": report.kind,
        "ruleIndex": rule,
        "level": "warning" if report.kind in WARNINGS else "error",
        "message": {"text": " ".join(filter(None, (f"{report.message}.", report.fix)))},
        "occurrenceCount": max(report.count, 1),
        "partialFingerprints": {"cudaNN/v1": _fingerprint(report)},
        "properties": {
            "kernel": report.kernel,
            "thread": report.thread,
            "block": report.block,
            "opcode": report.opcode,
        },
    }
    if report.file and report.line:
        found["locations"] = [_location(report.file, report.line)]
    if report.other_line:
        other = _location(report.other_file or report.file, report.other_line)
        found["relatedLocations"] = [other | {"id": 1, "message": {"text": "the other side"}}]
    return found


def _location(file: str, line: int) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": _artifact(file), "region": {"startLine": line}}}


def _artifact(file: str) -> dict[str, str]:
    path = Path(os.path.abspath(file))
    if path.is_relative_to(Path.cwd()):
        return {
            "uri": Path(path.relative_to(Path.cwd())).as_posix().replace("%", "%25").replace(" ", "%20"),
            "uriBaseId": "SRCROOT",
        }
    return {"uri": path.as_uri()}


def _fingerprint(report: Report) -> str:
    """Equal for the same finding after lines above it were added or removed: made of the line's text, not its
    number."""
    parts: Iterable[str] = (report.kind, report.mangled, report.opcode, *_texts(report))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _texts(report: Report) -> list[str]:
    from cuda.nn.emulator.render import source_line

    places = ((report.file, report.line), (report.other_file or report.file, report.other_line or 0))
    return [source_line(file, line).strip() for file, line in places]
