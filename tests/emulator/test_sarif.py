"""SARIF 2.1.0: the members that the standard requires, and what code hosts need beyond them."""

import json
from pathlib import Path

import pytest

from cuda.nn.emulator import sarif
from cuda.nn.emulator.report import KINDS, from_json

SOURCE = "__global__ void k() {\n  a = b;\n  c = d;\n}\n"


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my kernels.cu").write_text(SOURCE)
    common = {
        "message": "what",
        "fix": "Do this.",
        "kernel": "_Z1kv",
        "file": str(tmp_path / "my kernels.cu"),
        "count": 3,
        "thread": [1, 0, 0],
        "block": [0, 0, 0],
    }
    reports = [
        from_json({"kind": "race", "line": 2, "other_line": 3, **common}),
        from_json({"kind": "invalid_call", "line": 0, **common, "file": ""}),
        from_json({"kind": "race", "line": 2, **common, "file": "/elsewhere/k.cuh"}),
    ]
    return json.loads(json.dumps(sarif.log(reports, "1.2.3")))


def test_what_the_standard_requires(document: dict) -> None:
    assert document["version"] == "2.1.0"  # 3.13.2
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = document["runs"]  # 3.13.4
    assert run["tool"]["driver"]["name"]  # 3.14.6, 3.18.2, 3.19.8
    assert run["tool"]["driver"]["version"] == "1.2.3"
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["invalid_call", "race"]  # 3.49.3
    for result in run["results"]:
        assert result["message"]["text"]  # 3.27.11
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]  # 3.27.5
        assert result["level"] in ("none", "note", "warning", "error")  # 3.27.10
        assert result["occurrenceCount"] >= 1
        for place in (*result.get("locations", ()), *result.get("relatedLocations", ())):
            region = place["physicalLocation"]["region"]
            assert region["startLine"] >= 1  # 3.30.5
            assert place["physicalLocation"]["artifactLocation"]["uri"]


def test_places_are_relative_to_the_working_folder(document: dict) -> None:
    first, second, third = document["runs"][0]["results"]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "my%20kernels.cu", "uriBaseId": "SRCROOT"}
    assert place["region"] == {"startLine": 2}
    assert first["relatedLocations"][0]["physicalLocation"]["region"] == {"startLine": 3}
    assert document["runs"][0]["originalUriBaseIds"]["SRCROOT"]["uri"].endswith("/")
    assert "locations" not in second
    assert third["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "file:///elsewhere/k.cuh"}


def test_a_finding_keeps_its_fingerprint_when_lines_move(tmp_path: Path) -> None:
    def fingerprint(text: str, line: int) -> str:
        path = tmp_path / f"{abs(hash(text))}.cu"
        path.write_text(text)
        one = from_json({"kind": "race", "message": "m", "kernel": "_Z1kv", "file": str(path), "line": line})
        return sarif.log([one])["runs"][0]["results"][0]["partialFingerprints"]["cudaNN/v1"]

    assert fingerprint(SOURCE, 2) == fingerprint("// one more line\n" + SOURCE, 3)
    assert fingerprint(SOURCE, 2) != fingerprint(SOURCE, 3)


def test_no_findings_are_a_valid_run() -> None:
    (run,) = sarif.log([])["runs"]
    assert run["results"] == []
    assert run["tool"]["driver"]["rules"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_rule(kind: str) -> None:
    one = from_json({"kind": kind, "message": "m"})
    (rule,) = sarif.log([one])["runs"][0]["tool"]["driver"]["rules"]
    assert rule["shortDescription"]["text"] == KINDS[kind]
    assert rule["name"].isalpha()
