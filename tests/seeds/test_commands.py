"""Commands of the requirement documents "nanoLLM" and "LinearNexus", as they stand there; what they call
`python scripts/train.py` is `cuda-nn train`."""

import shlex
from pathlib import Path

import pytest

from nn.cli.main import main

NANOLLM = """
python scripts/train.py \
  --config configs/model/moe_a0_6B.yaml \
  --train-config configs/train/pretrain_adamw.yaml

python scripts/eval.py \
  --config configs/model/moe_a0_6B.yaml \
  --ckpt path/to/checkpoint

python scripts/estimate_flops.py \
  --config configs/model/moe_a0_6B.yaml
"""
LINEARNEXUS = 'python sample.py --checkpoint checkpoints/step_100 --prompt "Hello" --max-tokens 50'
VERBS = {"scripts/train.py": "train", "scripts/eval.py": "eval", "scripts/estimate_flops.py": "flops",
         "sample.py": "generate"}

MODEL = """
hidden_size: 16
num_layers: 2
num_heads: 2
num_kv_heads: 1
intermediate_size: 16
num_experts: 4
top_k: 2
max_seq_len: 32
"""
TRAINING = """
steps: 4
warmup: 1
batch_size: 2
seq_len: 16
tokenizer: bytes
eval_tokens: 64
checkpoint_every: 4
held_out_fraction: 0.3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the documents, with models that train in a second."""
    monkeypatch.chdir(tmp_path)
    for path, text in {"configs/model/moe_a0_6B.yaml": MODEL, "configs/train/pretrain_adamw.yaml": TRAINING,
                       "text.txt": "\n\n".join(f"Hello world, number {i}" for i in range(200))}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(command: str, *more: str, **paths: str) -> int:
    words = shlex.split(command)
    assert words[0] == "python"
    return main([VERBS[words[1]], *(paths.get(word, word) for word in words[2:]), *more])


def test_train_evaluate_count_and_sample(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, evaluate, flops = NANOLLM.strip().split("\n\n")
    assert run(train, "--data", "text.txt", "--run", "run") == 0
    config = (project / "run" / "config.yaml").read_text()
    assert "hidden_size: 16" in config
    assert "steps: 4" in config

    checkpoint = "run/checkpoints/step_000004"
    assert run(evaluate, **{"path/to/checkpoint": checkpoint}) == 0
    capsys.readouterr()
    assert run(flops) == 0
    assert "router" in capsys.readouterr().out

    assert run(LINEARNEXUS, **{"checkpoints/step_100": checkpoint}) == 0
    assert capsys.readouterr().out.startswith("Hello")
