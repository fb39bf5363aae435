"""A run whose steps take about a millisecond: real data, real model, real files, all small."""

import random
from dataclasses import replace

import pytest

from nn.models import MoETransformerConfig
from nn.train import RunFolder, TrainConfig, Trainer, build_model
from nn.train.corpus import prepare

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea", "as", "we", "saw", "him", "go"]


@pytest.fixture
def text_file(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(120)), encoding="utf-8")
    return path


@pytest.fixture
def make_config(tmp_path, text_file):
    """config(steps=..., model={"num_layers": 2}) in a folder of its own; the router's noise is on."""

    def make(run="run", model=None, **changes):
        shape = {"vocab_size": 259, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_experts": 2,
                 "top_k": 1, "intermediate_size": 8, "max_seq_len": 16, "router_jitter": 0.1}
        config = TrainConfig(
            data=str(text_file), tokenizer="bytes", held_out_fraction=0.2, seq_len=16, batch_size=2,
            accumulate=2, steps=12, warmup=2, lr=1e-2, eval_every=5, eval_tokens=64, checkpoint_every=4,
            log_every=3,
            runs=str(tmp_path / "runs"), run=str(tmp_path / run), sample_tokens=0,
            model=MoETransformerConfig(**shape | (model or {})))
        return replace(config, **changes)

    return make


@pytest.fixture
def make_trainer():
    """trainer(config) on a new run folder, trainer(path) on an existing one; folders are closed after the
    test."""
    opened = []

    def make(source, callbacks=()):
        run = RunFolder.create(source) if isinstance(source, TrainConfig) else RunFolder.open(source)
        opened.append(run)
        return Trainer(run, build_model(run.config), prepare(run.config, run.path), callbacks)

    yield make
    for run in opened:
        run.close()
