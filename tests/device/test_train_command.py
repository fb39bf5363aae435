"""cuda-nn train --device emulated: the run folder, its evaluation, and going on with it."""

import json
from pathlib import Path

import pytest

from cuda.nn.errors import DeviceError, NoDeviceError
from nn.backends import devices
from nn.backends.protocol import KERNELS
from nn.cli.main import main
from nn.config import load
from nn.errors import InputError
from nn.train import TrainConfig, latest_valid

SMALL = ["--preset", "smoke", "--device", "emulated", "--batch-size", "2", "--seq-len", "16",
         "--eval-tokens", "64", "--eval-every", "2", "--checkpoint-every", "2", "--sample-tokens", "4"]


def train(folder: Path, *more: str) -> Path:
    text = folder / "text.txt"       # short: the last evaluation reads all of what is held out
    text.write_text("def " * 150)
    assert main(["train", *SMALL, "--data", str(text), "--run", str(folder / "one"), *more]) == 0
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
    assert f"the kernel library runs {len(KERNELS)} kernels (cuda-nn info lists them), on the device" in said


def test_a_model_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks of several kinds, from the options to text that the trained model writes"""
    hybrid = ["--model", "delta-hybrid-small", "--model.num-layers", "2", "--model.hidden-size", "32",
              "--model.mixer", "delta_net,full_attention", "--model.options.delta_net.num_heads", "2",
              "--model.options.full_attention.num_heads", "2", "--model.options.swiglu.intermediate_size",
              "48", "--steps", "3", "--warmup", "1", "--lr", "1e-2"]
    run = train(tmp_path, *hybrid)
    assert load(run / "config.yaml", TrainConfig).device == "emulated"
    (tmp_path / "host").mkdir()
    found, host = losses(run), losses(train(tmp_path / "host", *hybrid, "--device", "cpu"))
    assert len(found) == 3
    assert found == pytest.approx(host, rel=1e-4)
    assert found[0] - found[-1] > 0.5
    capsys.readouterr()
    assert main(["generate", "--checkpoint", str(run / "checkpoints/step_3"), "--prompt", "def",
                 "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("def")


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "smoke", "--device", "cuda", "--runs", str(tmp_path)]) == 2
    assert "device: cuda: " in capsys.readouterr().err


@pytest.mark.parametrize(("error", "said"), [
    (NoDeviceError("no device here"), ""), (DeviceError("driver mismatch"),
                                            "the GPU is not used: driver mismatch")])
def test_a_gpu_that_fails_is_not_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch, error: Exception,
                                                        caplog: pytest.LogCaptureFixture, said: str) -> None:
    monkeypatch.delenv("NN_BACKEND", raising=False)
    monkeypatch.setattr(devices, "_error", lambda _: error)
    assert devices.open_device("auto") is None
    assert caplog.messages == ([said] if said else [])
    with pytest.raises(InputError, match=str(error)):
        devices.open_device("cuda")
