"""The other libraries' programs of cuda-nn bench: that they run, on tiny sizes, and do the same work."""

import json
import math
from typing import Any

import pytest

from nn.bench.operations import NAMES
from nn.bench.peers import torch_decoding, torch_training
from nn.bench.training import step_task
from nn.cli.main import main
from nn.models.presets import TINY

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle
QUICK = ("--samples", "1", "--seconds", "0", "--threads", "1", "--json")


def rows_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["bench", *words, *QUICK]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_operations(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, "cpu", "--small", "--peers", "torch eager,torch eager +tuned")
    for library in ("torch eager", "torch eager +tuned"):
        assert [row["name"] for row in rows if row["library"] == library] == list(NAMES)
    assert not [row for row in rows if "error" in row]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_training_step_of_gpt(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    rows = rows_of(capsys, "train", "--model", "gpt-tiny", "--batch", "2", "--seq", "8", "--dtype", dtype,
                   "--peers", "torch")
    ours, theirs = (row for row in rows if row["library"] != "ceiling")
    assert ours["parameters"] == theirs["parameters"]
    assert theirs["first_loss"] == pytest.approx(ours["first_loss"], abs=0.5)       # ln of the vocabulary
    assert ours["first_loss"] == pytest.approx(math.log(256), abs=0.5)


@pytest.mark.parametrize("way", ["eager", "capacity eager"])
def test_a_training_step_of_experts(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("NN_THREADS", "1")
    before = torch.get_num_threads()
    theirs = torch_training.step_task("tiny", "f32", 2, 16, way)
    torch.set_num_threads(before)
    ours = step_task("tiny", "f32", 2, 16)
    assert theirs.facts["parameters"] == ours.facts["parameters"]
    assert theirs.flops == ours.flops
    assert theirs.facts["first_loss"] == pytest.approx(ours.facts["first_loss"], abs=0.5)
    theirs.run()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_decoding(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("NN_THREADS", "1")
    before = torch.get_num_threads()
    try:
        tasks = torch_decoding.tasks("tiny", dtype, prompt=3, new=4, prefill=8)
        assert tasks["decode"]().run() > 0
        assert tasks["prefill"]().tokens == 8
    finally:
        torch.set_grad_enabled(True)
        torch.set_num_threads(before)


def test_the_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NN_THREADS", "1")
    before = torch.get_num_threads()
    try:
        model = torch_decoding.TorchModel("tiny", "f32", 8)
        ids = torch.tensor([5, 3, 8, 1, 4])
        whole = model(ids, 0)
        for place in range(5):
            last = model(ids[place : place + 1], place)
        assert int(whole) == int(last)
        assert TINY.num_experts == len(model.layers[0]["w13"])
    finally:
        torch.set_grad_enabled(True)
        torch.set_num_threads(before)
