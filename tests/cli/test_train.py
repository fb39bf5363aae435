"""cuda-nn train: settings from everywhere, what it prints, stopping and going on."""

import json
import signal
from pathlib import Path

import pytest

from nn.cli.main import main
from nn.cli.sources import model_presets
from nn.config import load
from nn.models import MoETransformerConfig
from nn.train import Callback, TrainConfig, TrainResult, train

from .conftest import SMALL

SHAPE = "hidden_size: 16\nintermediate_size: 16\nnum_heads: 2\nnum_experts: 2\n"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_says_what_it_does_and_ends_with_its_result(cuda_nn, tmp_path: Path, text_file: Path) -> None:
    status, out, err = cuda_nn("train", *SMALL, "--data", text_file, "--run", tmp_path / "a")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    for name in ("text", "tokenizer", "model", "training", "backend", "run"):
        assert any(line.startswith(f"{name} ") for line in lines)
    assert "2 layers of width 16, 2 of 4 experts per token" in out
    assert [line.split()[0] for line in lines if line.startswith("step=")] == [
        f"step={i}" for i in (2, 3, 4, 6)
    ]
    sample = out.split("what it writes:\n\n")[1]
    assert sample.startswith("def ")
    last = dict(part.split("=", 1) for part in lines[-1].removeprefix("final: ").split())
    assert list(last) == ["bits_per_byte", "gzip", "xz", "tokens", "seconds", "run"]
    assert last["run"] == str(tmp_path / "a")
    assert int(last["tokens"]) == 6 * 2 * 16
    assert 0 < float(last["bits_per_byte"]) < 10


def test_same_command_same_losses(trained: Path, tmp_path: Path, text_file: Path) -> None:
    assert main(["train", *SMALL, "--data", str(text_file), "--run", str(tmp_path / "b")]) == 0
    first, second = lines_of(trained), lines_of(tmp_path / "b")
    assert [line["loss"] for line in first] == [line["loss"] for line in second]
    assert len(first) == 6


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that would have been trained."""
    found: list[TrainConfig] = []

    def note(config: TrainConfig, **_: object) -> TrainResult:
        found.append(config)
        return TrainResult(1.0, 2.0, 2.0, 0, 0.0, Path("nowhere"), 0, interrupted=int(signal.SIGINT))

    monkeypatch.setattr("nn.cli.train.train", note)
    return found


def test_defaults(cuda_nn, asked: list[TrainConfig]) -> None:
    cuda_nn("train")
    assert asked == [TrainConfig()]


def test_later_sources_win(cuda_nn, asked: list[TrainConfig], tmp_path: Path) -> None:
    """preset < --config (a model's file) < --train-config < options"""
    (tmp_path / "model.yaml").write_text(SHAPE)
    (tmp_path / "train.yaml").write_text("lr: 1e-2\nsteps: 7\nseq_len: 32\n")
    cuda_nn(
        "train",
        "--preset",
        "smoke",
        "--config",
        tmp_path / "model.yaml",
        "--train-config",
        tmp_path / "train.yaml",
        "--steps",
        9,
        "--model.top_k",
        1,
    )
    (config,) = asked
    assert config.model == MoETransformerConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        num_experts=2,
        top_k=1,
        max_seq_len=64,
        head_dim=config.model.head_dim,
    )
    assert (config.lr, config.steps, config.seq_len, config.tokenizer) == (1e-2, 9, 32, "bytes")


def test_a_runs_own_file_gives_the_same_run(cuda_nn, asked: list[TrainConfig], trained: Path) -> None:
    cuda_nn("train", "--config", trained / "config.yaml")
    assert asked == [load(trained / "config.yaml", TrainConfig)]


def test_widths_of_heads_follow_the_hidden_size(cuda_nn, asked: list[TrainConfig]) -> None:
    cuda_nn("train", "--model.hidden-size", 128)
    assert asked[0].model.head_dim * asked[0].model.num_heads == 128


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps: 0"),
        (["--preset", "smok"], "smoke"),
        (
            ["--model.hiden-size", "3"],
            "--model.hiden-size: unknown option. Did you mean --model.hidden-size?",
        ),
        (["--model.top-k", "9"], "top_k: 9"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file or directory"),
        (["--data", "/nowhere.txt", "--runs", "RUNS"], "/nowhere.txt"),
        (["--preset", "gpt-small"], "--preset: gpt-small is a model, not a run; give it by --model"),
        (["--model", "gpt-smal"], "model: 'gpt-smal' is not known; did you mean 'gpt-small'?"),
        (["--model", "mamba-small", "--model.options.mamba.state-sise", "3"], "state_sise"),
        (["--model", "gpt-tiny", "--model.options.swiglu.intermediate_size.x", "3"],
         "intermediate_size: 256 has no x in it"),
        (["--model.options.swiglu", "3"], "--model.options.swiglu: expected dict, got '3'"),
        (["--download-shakespeare", "--data", "a.txt"], "--data: a.txt; with --download-shakespeare"),
        (["--epochs", "1", "--steps", "2"], "--epochs: --steps also says how long to train"),
        (["--epochs", "-1"], "epochs: -1.0 must be 0 or more"),
        (["--resume", "--model", "tiny"], "--model: a resumed run keeps its settings"),
        (["--resume", "--lr", "1"], "--lr: a resumed run keeps its settings"),
        (["--resume", "/nowhere"], "/nowhere"),
        (["--resume", "--runs", "RUNS"], "RUNS"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    cuda_nn, tmp_path: Path, words: list[str], message: str
) -> None:
    runs = str(tmp_path / "runs")
    status, out, err = cuda_nn("train", *[runs if word == "RUNS" else word for word in words])
    assert status == 2
    assert err.startswith("cuda-nn train: error: ")
    assert message.replace("RUNS", runs) in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("name", model_presets())
def test_every_model_has_a_run(cuda_nn, asked: list[TrainConfig], name: str) -> None:
    cuda_nn("train", "--model", name)
    (config,) = asked
    assert config.model == model_presets()[name]
    width = config.model.hidden_size
    assert config.lr == pytest.approx(5e-3 * (min(1, 128 / width)))


def test_options_reach_into_a_model_by_name(cuda_nn, asked: list[TrainConfig]) -> None:
    cuda_nn("train", "--model", "gpt-small", "--model.num-layers", 3,
            "--model.options.swiglu.intermediate-size", 9)
    model = asked[0].model
    assert (model.num_layers, model.options["swiglu"], model.options["full_attention"]["num_heads"]) == (
        3, {"intermediate_size": 9}, 12)


def test_unknown_key_in_a_file_names_the_line(cuda_nn, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 3\nlr_max: 3\n")
    assert cuda_nn("train", "--config", path)[2] == (
        f"cuda-nn train: error: lr_max: unknown key. Did you mean lr? ({path} line 2)\n"
    )


def test_a_used_folder_is_not_overwritten(cuda_nn, trained: Path, text_file: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in trained.rglob("*") if p.name != ".lock")
    status, _, err = cuda_nn("train", *SMALL, "--data", text_file, "--run", trained)
    assert status == 2
    assert "--resume" in err
    assert sorted((p, p.stat().st_mtime_ns) for p in trained.rglob("*") if p.name != ".lock") == before


class InterruptAt(Callback):
    """Ctrl-C while a step is running."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: dict) -> None:
        if record["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_losses(
    cuda_nn, monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, text_file: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "nn.cli.train.train", lambda config, callbacks: train(config, callbacks=[InterruptAt(4)])
        )
        status, out, _ = cuda_nn("train", *SMALL, "--data", text_file, "--runs", tmp_path)
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert status == 130
    assert out.splitlines()[-1] == f"stopped after step 4; go on with: cuda-nn train --resume {run}"
    status, out, _ = cuda_nn("train", "--resume", "--runs", tmp_path)
    assert status == 0
    assert out.splitlines()[-1].startswith("final: bits_per_byte=")
    assert [line["loss"] for line in lines_of(run)] == [line["loss"] for line in lines_of(trained)]
