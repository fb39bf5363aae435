"""Commands of the five requirement documents, as they stand there.  A script's is a verb's with the same
flags (VERBS), made small by options appended to it; what builds and tests is a target of the Makefile
(TARGETS).  Nothing here uses the network."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nn.cli.main import main
from nn.config import load
from nn.data.shakespeare import PAGES
from nn.train import TrainConfig

ROOT = Path(__file__).parents[2]

NN_CORE = """
pip install -e .
pip install -e .[dev]
pytest -q
python scripts/smoke_toy_lm.py
"""
NANOLLM = r"""
python scripts/train.py \
  --config configs/model/baseline_0_6B.yaml \
  --train-config configs/train/pretrain_adamw.yaml
python scripts/train.py \
  --config configs/model/moe_a0_6B.yaml \
  --train-config configs/train/pretrain_muon.yaml
python scripts/eval.py \
  --config configs/model/baseline_0_6B.yaml \
  --ckpt path/to/checkpoint
python scripts/estimate_flops.py \
  --config configs/model/baseline_0_6B.yaml
"""
CUDA_NN = """
# Build
cargo build --release
# Test (53 tests)
cargo test
# Clippy
cargo clippy --all-targets
cd crates/go
# Test
go test ./...
# Build (requires CUDA library)
go build ./...
cd crates/python
# Install
pip install -e ".[dev]"
# Test (42 tests)
pytest
# Force CPU-only (Rust)
CUDA_PATH="" cargo build --release
"""
LINEARNEXUS = """
python -m venv .venv
source .venv/bin/activate
pip install -e ".[dev]"
pytest -q
# Example single-file test:
pytest tests/test_mla.py -q
python train_lm.py --model gpt-small --download-shakespeare --max-steps 100 --batch-size 2
python sample.py --checkpoint checkpoints/step_100 --prompt "Hello" --max-tokens 50
"""
NEOFORMER_X = """
python neoformer_x_fixed.py --train --epochs 1 --batch 8 --seq 256 --max_tokens 50000
python neoformer_x_fixed.py --eval
python neoformer_x_fixed.py
"""

VERBS = {"scripts/smoke_toy_lm.py": "train --preset smoke", "scripts/train.py": "train",
         "scripts/eval.py": "eval", "scripts/estimate_flops.py": "flops", "train_lm.py": "train",
         "sample.py": "generate", "neoformer_x_fixed.py --train": "train --model neoformer-125m",
         "neoformer_x_fixed.py --eval": "eval", "neoformer_x_fixed.py": "generate"}
TARGETS = {"-m": "setup", "pip": "setup", "source": "setup", "pytest": "test", "cargo build": "cuda",
           "cargo test": "test", "cargo clippy": "lint", "go test": "test", "go build": "cuda"}

TEXT = ["--data", "text.txt", "--tokenizer", "bytes", "--held-out-fraction", "0.2", "--eval-tokens", "64",
        "--sample-tokens", "4"]
SHAPE = ["--model.hidden-size", "16", "--model.num-layers", "2",
         "--model.options.full_attention.num_heads", "2"]
QWEN = [*SHAPE, "--model.max-seq-len", "32", "--model.options.full_attention.num_kv_heads", "1",
        "--model.options.full_attention.head_dim", "8"]
DENSE = [*QWEN, "--model.options.swiglu.intermediate-size", "16"]
EXPERTS = [*QWEN, "--model.options.moe.intermediate_size", "8", "--model.options.moe.num_experts", "4",
           "--model.options.moe.top_k", "2"]
FEW = [*TEXT, "--steps", "2", "--batch-size", "2", "--seq-len", "16", "--accumulate", "1", "--warmup", "1"]


def commands(document: str) -> list[str]:
    """One per line; a backslash joins lines, # begins a comment."""
    lines = document.replace("\\\n", " ").strip().splitlines()
    return [" ".join(line.split()) for line in lines if not line.startswith("#")]


def scripts(document: str) -> Iterator[list[str]]:
    """Of each command that runs a script its verb and its words."""
    for command in commands(document):
        words = shlex.split(command)
        if words[0] == "python" and words[1] != "-m":
            name = next(name for name in VERBS if " ".join(words[1:]).startswith(name))
            yield [*VERBS[name].split(), *words[2:]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the documents."""
    def no_network(*_: object, **__: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nn.data.shakespeare.urlopen", no_network)
    monkeypatch.setattr("nn.train.job.draw_loss", lambda _: None)      # takes longer than the training
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "text.txt").write_text("\n\n".join(f"Hello world, number {i}" for i in range(200)))
    return tmp_path


def config_of(run: Path) -> Any:
    return load(run / "config.yaml", TrainConfig)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def newest(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.parametrize("command", [c for d in (NN_CORE, NANOLLM, CUDA_NN, LINEARNEXUS, NEOFORMER_X)
                                     for c in commands(d)])
def test_every_command_is_a_verb_or_a_target(command: str) -> None:
    words = command.removeprefix('CUDA_PATH="" ').removeprefix("python ")
    if words.startswith((*VERBS, "cd ")):       # there is one package, and no crate to go to
        return
    targets = [target for name, target in TARGETS.items() if words.startswith(name)]
    assert len(targets) == 1
    assert re.search(rf"^{targets[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_nn_core(folder: Path) -> None:
    (smoke,) = scripts(NN_CORE)
    assert main([*smoke, *TEXT, "--steps", "20", "--model.hidden-size", "16"]) == 0
    found = losses(newest(folder))
    assert len(found) == 20
    assert found[-1] < found[0] - 0.5


def test_nanollm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, experts, evaluate, flops = scripts(NANOLLM)
    assert main([*dense, *DENSE, *FEW, "--run", "dense"]) == 0
    assert main([*experts, *EXPERTS, *FEW, "--run", "experts"]) == 0
    first, second = (config_of(folder / name) for name in ("dense", "experts"))
    assert (first.model.feed_forward, first.optimizer, first.dtype) == ("swiglu", "adamw", "bfloat16")
    assert (second.model.feed_forward, second.optimizer, second.dtype) == ("moe", "muon", "bfloat16")
    assert first.model.options["full_attention"]["qk_norm"] == "head"      # the file's, beside the changes
    assert "moe/load_balance" in (folder / "experts" / "metrics.jsonl").read_text().splitlines()[-1]

    evaluate[evaluate.index("path/to/checkpoint")] = "dense/checkpoints/step_000002"
    capsys.readouterr()
    assert main([*evaluate, *DENSE]) == 0
    assert "perplexity=" in capsys.readouterr().out
    assert main(evaluate) == 2          # the file as it is describes another model
    assert "hidden_size is 1024, but 16 in the checkpoint" in capsys.readouterr().err

    assert main([*flops, "--seq-len", "2048"]) == 0
    printed = capsys.readouterr().out
    assert "596,049,920" in printed
    last = [line for line in printed.splitlines() if line.startswith("total")][-1]
    layer = 2 * 1024 * (2048 + 1024 + 1024 + 2048 + 3 * 3072) + 4 * 2048 * 2049 / 2
    assert last.split()[1] == f"{(28 * layer + 2 * 1024 * 151936) / 1e6:,.3f}" == "1,426.964"


def test_linearnexus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, sample = scripts(LINEARNEXUS)
    (folder / "shakespeare.txt").write_text(PAGES.read_text())
    small = ["--seq-len", "16", "--model.options.swiglu.intermediate_size", "16"]
    assert main([*train, *SHAPE, *small, *TEXT[2:]]) == 0
    run = newest(folder)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000100"]
    assert config_of(run).data == "shakespeare.txt"
    capsys.readouterr()
    assert main(sample) == 0
    written = capsys.readouterr().out
    assert written.startswith("Hello")
    assert main([*sample, "--checkpoint", str(run / "checkpoints" / "step_000100")]) == 0
    assert capsys.readouterr().out == written


def test_neoformer_x(folder: Path, capsys: pytest.CaptureFixture[str],
                     caplog: pytest.LogCaptureFixture) -> None:
    (folder / "long.txt").write_text("\n\n".join(f"verse {i}, of {i * i}" for i in range(4000)))
    train, evaluate, sample = scripts(NEOFORMER_X)
    small = [*SHAPE, "--model.options.full_attention.num_kv_heads", "1",
             "--model.options.mlp.intermediate_size", "16", "--model.options.rmc.mem_size", "4"]
    assert main([*train, *small, *TEXT, "--data", "long.txt"]) == 0
    run = newest(folder)
    config = config_of(run)
    assert config.model.prelude == ("rmc", "nsb")
    assert len(losses(run)) == config.steps == 25       # 195 windows of 256 in 50,000 tokens, 8 at a time
    assert "25 steps of 2,048 tokens, 1.02 passes" in capsys.readouterr().out
    assert "--train: it is what this verb does" in caplog.messages

    assert main([*evaluate, "--seq-len", "128"]) == 0
    assert "perplexity=" in capsys.readouterr().out
    assert main([*sample, "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
