"""Exporting to ONNX where the package onnx is not installed.  What is exported: tests/oracle/test_onnx.py."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from nn.interop.onnx import export
from nn.models import create_model


def test_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match="onnx: the package is not installed; pip install onnx"):
        export(create_model("gpt-tiny", seed=0), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
