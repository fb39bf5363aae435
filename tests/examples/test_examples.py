"""The example programs run, and what each shows is so."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from cuda.nn import emulator

FOLDER = Path(__file__).parent.parent.parent / "examples"


def run(name: str) -> Any:
    """What the example's main() returns."""
    return runpy.run_path(str(FOLDER / name))["main"]()


def test_training_learns_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    losses = run("train_tiny.py")
    assert losses[-1] < 0.1 * losses[0]
    assert "it writes: She sells" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_the_trainer_learns_anywhere(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    losses = runpy.run_path(str(FOLDER / "gpu_trainer.py"))["main"](device, 12)
    assert losses[-1] < 0.8 * losses[0]
    assert "it writes: She" in capsys.readouterr().out


def test_the_new_operation_agrees_with_finite_differences() -> None:
    assert run("write_an_operation.py") < 1e-7


def test_a_wrong_backward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    example = runpy.run_path(str(FOLDER / "write_an_operation.py"))
    monkeypatch.setattr(example["L2Normalize"], "backward", lambda self, dy: self.r * dy)
    with pytest.raises(AssertionError):
        example["main"]()


def test_a_folder_for_hugging_face_is_read_back() -> None:
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in run("exchange_with_hugging_face.py")


def test_transpositions_are_right_and_the_padded_one_is_at_its_ideal() -> None:
    module = emulator.compile(FOLDER / "transpose.cu", mode="count")
    runpy.run_path(str(FOLDER / "transpose.py"))["run"](module)
    assert module.reports == []
    padded = module.counters["transpose_padded"]
    assert (padded.sectors, padded.bank_wavefronts) == (padded.ideal_sectors, padded.ideal_wavefronts)


def test_every_example_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in FOLDER.glob("*.py"))
