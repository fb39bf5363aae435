"""A language model of any blocks in a run: trained, resumed to the same bits, measured, read back."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.cli.main import main
from nn.config import load, update
from nn.errors import InputError
from nn.models import LanguageModel, LanguageModelConfig, MoETransformerConfig
from nn.train import Callback, TrainConfig, latest_valid, load_trained, train

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea"]
FILE = """
tokenizer: bytes
held_out_fraction: 0.2
seq_len: 16
batch_size: 2
accumulate: 2
steps: 8
warmup: 2
lr: 1e-2
eval_every: 4
eval_tokens: 64
checkpoint_every: 3
sample_tokens: 4
model:
  hidden_size: 8
  num_layers: 3
  max_seq_len: 16
  mixer: RGA
  feed_forward: [swiglu, moe]
  memory: [none, none, engram]
  prelude: [nsb]
  tie_embeddings: true
  options:
    retention: {num_heads: 2}
    gla: {num_heads: 2}
    full_attention: {num_heads: 2, rope_scaling: {type: ntk, factor: 2.0}}
    swiglu: {intermediate_size: 8}
    moe: {num_experts: 3, intermediate_size: 6, router_jitter: 0.1}
    engram: {engram_vocab_size: [11, 13], n_head_per_ngram: 2, n_embed_per_ngram: 4}
    nsb: {rules: 4, rdim: 3, dropout: 0.3}
"""


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn.train.job.draw_loss", lambda run: None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, chance = tmp_path_factory.mktemp("mixed"), random.Random(0)
    (path / "text.txt").write_text("\n".join(" ".join(chance.choices(WORDS, k=8)) for _ in range(120)))
    (path / "run.yaml").write_text(FILE + f"data: {path / 'text.txt'}\n")
    return path


@pytest.fixture(scope="session")
def settings(folder: Path) -> TrainConfig:
    return load(folder / "run.yaml", TrainConfig)


def weights(run: Path) -> dict[str, bytes]:
    found = latest_valid(run / "checkpoints")
    assert found is not None
    return {f"{kind}.{name}": array.tobytes() for kind, arrays in found.tensors.items()
            for name, array in arrays.items()}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


def test_the_file_says_which_model_it_is(settings: TrainConfig, tmp_path: Path) -> None:
    assert isinstance(settings.model, LanguageModelConfig)
    assert settings.model.mixer == "RGA"
    assert settings.model.options["moe"]["num_experts"] == 3
    path = tmp_path / "other.yaml"
    for text, kind in (("model: {hidden_size: 32}", MoETransformerConfig),
                       ("model: {hidden_size: 32, num_experts: 2}", MoETransformerConfig),
                       ("model: {hidden_size: 32, mixer: mamba}", LanguageModelConfig)):
        path.write_text(text)
        made = load(path, TrainConfig).model
        assert isinstance(made, kind)
        assert made.hidden_size == 32
    kept = update(TrainConfig(model=LanguageModelConfig(mixer="RA")), {"model.hidden_size": 32}).model
    assert kept == LanguageModelConfig(mixer="RA", hidden_size=32)
    path.write_text("model: {mixer: mamba, num_experts: 2}")
    with pytest.raises(InputError, match=r"num_experts|mixer"):
        load(path, TrainConfig)


def test_a_stopped_run_continues_to_the_same_bits(settings: TrainConfig, tmp_path: Path) -> None:
    """The router's jitter, dropped rules and recomputed layers included"""
    straight = train(replace(settings, run=str(tmp_path / "straight")))
    stopped = train(replace(settings, run=str(tmp_path / "stopped")), callbacks=[StopAt(5)])
    assert stopped.steps == 5
    resumed = train(resume=stopped.run)
    recomputed = train(replace(settings, run=str(tmp_path / "again"), gradient_checkpointing=True))
    assert losses(straight.run) == losses(resumed.run) == losses(recomputed.run)
    assert weights(straight.run) == weights(resumed.run) == weights(recomputed.run)
    assert losses(straight.run)[-1] < losses(straight.run)[0] - 0.2
    model, _ = load_trained(resumed.run)
    assert isinstance(model, LanguageModel)
    assert model.config.vocab_size == model.vocab_size


def test_every_verb_takes_such_a_run(folder: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert main(["train", "--config", str(folder / "run.yaml"), "--run", str(run), "--steps", "3",
                 "--model.num-layers", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 layers of width 8 (engram, full_attention, gla, moe, pre_norm, retention, swiglu)" in out
    assert main(["generate", "--run", str(run), "--prompt", "the ", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the ")
    assert main(["eval", "--run", str(run), "--config", str(folder / "run.yaml")]) == 2      # other layers
    assert "num_layers is 3, but 4" in capsys.readouterr().err
    assert main(["eval", "--run", str(run)]) == 0
    assert "final: bits_per_byte=" in capsys.readouterr().out
    assert main(["flops", "--config", str(run / "config.yaml")]) == 0
    assert "body.retention" in capsys.readouterr().out


def test_constraints_appear_in_the_loss_with_their_weight(settings: TrainConfig, tmp_path: Path) -> None:
    constraints = {"activation": {"weight": 0.5}, "smoothness": {"weight": 0.0}}
    plain = train(replace(settings, steps=2, run=str(tmp_path / "plain")))
    held = train(replace(settings, steps=2, run=str(tmp_path / "held"), constraints=constraints))
    first, second = (json.loads(line) for line in (held.run / "metrics.jsonl").read_text().splitlines()[:2])
    assert first["constraint/activation"] == pytest.approx(0.5, rel=0.05)      # of normalised states
    assert "constraint/smoothness" not in first
    assert first["loss"] == losses(plain.run)[0]
    assert second["loss"] != losses(plain.run)[1]
    assert load(held.run / "config.yaml", TrainConfig).constraints == constraints


@pytest.mark.parametrize(("given", "message"), [
    ({"activaton": {"weight": 1.0}}, "did you mean 'activation'"),
    ({"activation": {}}, "constraints.activation.weight: None is not a number"),
    ({"activation": {"weight": 1.0, "power": 2}}, "constraints.activation: .* no arguments")])
def test_wrong_constraints(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(constraints=given)


def test_experts_are_counted_per_layer(settings: TrainConfig) -> None:
    made = LanguageModel(settings.model.replace(vocab_size=31), seed=0)
    ids = np.arange(12).reshape(1, 12)
    figures = made.loss(ids, ids)[1]
    assert figures["moe/load"].shape == (1, 3)          # one of the three layers has experts
