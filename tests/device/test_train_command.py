"""cuda-nn train --device emulated: the run folder, its evaluation, and going on with it."""

import json
from pathlib import Path

import pytest

from nn.cli.main import main
from nn.config import load
from nn.train import TrainConfig, latest_valid

SMALL = ["--preset", "smoke", "--device", "emulated", "--batch-size", "2", "--seq-len", "16",
         "--eval-tokens", "64", "--eval-every", "2", "--checkpoint-every", "2", "--sample-tokens", "4"]


def train(folder: Path, *more: str) -> Path:
    assert main(["train", *SMALL, "--run", str(folder / "one"), *more]) == 0
    return folder / "one"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "--steps", "4")
    found = losses(run)
    assert len(found) == 4
    assert found[-1] < found[0]
    assert load(run / "config.yaml", TrainConfig).device == "emulated"
    checkpoint = latest_valid(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert any(name.endswith(".m") for name in checkpoint.tensors["optimizer"])
    said = capsys.readouterr().out
    assert "final: bits_per_byte=" in said
    assert "the kernel library runs 42 kernels (cuda-nn info lists them), on the device emulated" in said


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "smoke", "--device", "cuda", "--runs", str(tmp_path)]) == 2
    assert "device: cuda: " in capsys.readouterr().err
