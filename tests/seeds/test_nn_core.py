"""The requirement document "nn-core": its Python, its command, its numbers.

The snippets stand here as they stand there.  They run with the name `nncore` read as `nn`, and PyTorch's
random integers as NumPy's; tests/oracle/test_nn_core_torch.py runs them with PyTorch itself."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.cache import KVCache
from nn.cli.main import main
from nn.models import MoEConfig, Transformer, TransformerConfig
from nn.optim import AdamW, clip_grad_norm
from nn.train import Trainer, preset
from nn.train.checkpoint import load_checkpoint, save_checkpoint
from nn.train.corpus import prepare
from nn.train.run_folder import RunFolder

QUICKSTART = """
from nncore.models import TransformerConfig, BlockConfig, AttentionConfig, Transformer

cfg = TransformerConfig(
    vocab_size=256,
    d_model=128,
    n_layers=4,
    max_seq_len=1024,
    block=BlockConfig(
        attn=AttentionConfig(n_heads=4),
        norm="rmsnorm",
        positional="rope",
        attn_backend="auto",
        ffn_type="mlp",
    ),
)

model = Transformer(cfg)
"""
DECODING = """
import torch
from nncore.cache import KVCache

model.eval()
cache = KVCache(num_layers=model.cfg.n_layers)

# prefill
prefix = torch.randint(0, cfg.vocab_size, (1, 16))
logits = model(prefix, kv_cache=cache, is_decode=False)

# decode 1 token at a time
next_tok = torch.randint(0, cfg.vocab_size, (1, 1))
logits_step = model(next_tok, kv_cache=cache, is_decode=True)
"""
MOE = """
from nncore.models import MoEConfig

cfg.block.ffn_type = "moe"
cfg.block.moe = MoEConfig(num_experts=8, top_k=2, aux_loss=True)

logits, aux = model(torch.randint(0, cfg.vocab_size, (1, 8)), return_aux=True)
print(aux.keys())
"""
RECURRENCE = """
cfg.recursive = True
cfg.recurrence_steps = 4
logits = model(torch.randint(0, cfg.vocab_size, (1, 32)))
"""
SMOKE = "python scripts/smoke_toy_lm.py"
AUX_KEYS = ["moe/load_balance", "moe/router_z", "moe/router_entropy"]


def run(*snippets: str, framework: str = "") -> dict[str, Any]:
    """The names that the snippets leave, run one behind the other"""
    names: dict[str, Any] = {}
    for snippet in snippets:
        snippet = snippet.replace("nncore", "nn")
        if not framework:
            snippet = snippet.replace("import torch", "import numpy as np").replace("torch.", "np.random.")
        exec(snippet, names)
    return names


@pytest.fixture(scope="module")
def quickstart() -> dict[str, Any]:
    return run(QUICKSTART, DECODING)


def test_quickstart(quickstart: dict[str, Any]) -> None:
    """Its 820,352 parameters: embedding, four layers of attention, MLP and norms, the last norm."""
    model, d = quickstart["model"], 128
    assert model.num_parameters() == 256 * d + 4 * (4 * d * d + 8 * d * d + 2 * d) + d == 820_352
    assert model.cfg == quickstart["cfg"]
    assert model.cfg.head_dim == 32


def test_with_biases(quickstart: dict[str, Any]) -> None:
    cfg = TransformerConfig.from_dict(quickstart["cfg"].to_dict())
    cfg.block.bias = cfg.block.attn.bias = True
    assert Transformer(cfg).num_parameters() == 820_352 + 4_608


def test_decode_time_kv_cache(quickstart: dict[str, Any]) -> None:
    model, cache = quickstart["model"], quickstart["cache"]
    prefix, next_tok = quickstart["prefix"], quickstart["next_tok"]
    whole = model(np.concatenate([prefix, next_tok], axis=1)).numpy()
    assert (quickstart["logits"].shape, quickstart["logits_step"].shape) == ((1, 16, 256), (1, 1, 256))
    assert (cache.length, cache.offset) == (17, 17)
    np.testing.assert_allclose(quickstart["logits"], whole[:, :16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(quickstart["logits_step"], whole[:, 16:], rtol=0, atol=1e-5)


def test_bytes_of_the_cache(quickstart: dict[str, Any]) -> None:
    """4 KiB per token: keys and values of 4 layers, 128 floats each"""
    model, cache = quickstart["model"], KVCache(num_layers=4)
    model(np.zeros((1, 3), int), kv_cache=cache)
    assert cache.nbytes == 3 * 2 * 4 * 128 * 4 == 3 * 4096


def test_moe_and_aux_losses(capsys: pytest.CaptureFixture[str]) -> None:
    """The model was built before its configuration changed: it has no experts.  Built again, it has."""
    names = run(QUICKSTART, DECODING, MOE)
    assert capsys.readouterr().out == "dict_keys([])\n"
    assert names["logits"].shape == (1, 8, 256)
    model = Transformer(names["cfg"])
    logits, aux = model(np.zeros((1, 8), int), return_aux=True)
    assert logits.shape == (1, 8, 256)
    assert list(aux) == AUX_KEYS
    expert, dense = 8 * 128 * 128, 8 * 128 * 128
    assert model.num_parameters() == 820_352 + 4 * (8 * expert - dense + 8 * 128)
    assert model.num_parameters(active=True) == 820_352 + 4 * (2 * expert - dense + 8 * 128)


def test_recurrence() -> None:
    names = run(QUICKSTART, DECODING, RECURRENCE)
    assert names["logits"].shape == (1, 32, 256)
    assert names["model"].num_parameters() == 820_352                 # built before
    model, d = Transformer(names["cfg"]), 128
    assert model(np.zeros((1, 32), int)).shape == (1, 32, 256)
    assert model.num_parameters() == 256 * d + (12 * d * d + 2 * d) + d       # one block
    deep = run(QUICKSTART)["model"].main.config.flops(1, 32)
    assert sum(model.main.config.flops(1, 32).values()) == sum(deep.values())       # the work of four


# ---- the smoke tests that the document lists ----


def copies(random: np.random.Generator, batch: int = 8, half: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Tokens 1 ... 15, a 0, and the same tokens again: the second half is to be predicted."""
    text = random.integers(1, 16, (batch, half))
    row = np.concatenate([text, np.zeros((batch, 1), int), text], axis=1)
    targets = row[:, 1:].copy()
    targets[:, : half] = -100
    return row[:, :-1], targets


def small(**changes: Any) -> TransformerConfig:
    cfg = run(QUICKSTART)["cfg"]
    cfg.vocab_size, cfg.d_model, cfg.n_layers, cfg.block.attn.n_heads, cfg.init_std = 16, 32, 2, 2, 0.1
    for name, value in changes.items():
        setattr(cfg, name, value)
    return cfg


def trained(model: Transformer, steps: int, optimizer: AdamW, seed: int = 0) -> list[float]:
    random, losses = np.random.default_rng(seed), []
    for _ in range(steps):
        model.zero_grad()
        total, figures = model.loss(*copies(random))
        total.backward()
        assert np.isfinite(clip_grad_norm(model.parameters(), 1.0))
        optimizer.step()
        losses.append(figures["loss"])
    return losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_decreases_without_nan_under_mixed_precision(dtype: str) -> None:
    """Half-precision weights and activations, sums and master weights in float32"""
    cfg = small()
    cfg.block.ffn_type, cfg.block.moe = "moe", MoEConfig(num_experts=4, expert_hidden=32)
    model = Transformer(cfg, dtype=dtype)
    losses = trained(model, 60, AdamW(model.named_parameters(), lr=1e-2))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1.0
    assert {str(parameter.dtype) for parameter in model.parameters()} == {dtype}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    """A model that was saved and loaded goes on as the one that was not, to the last bit."""
    cfg = small(recursive=True, recurrence_steps=2)
    model = Transformer(cfg)
    optimizer = AdamW(model.named_parameters(), lr=1e-2)
    trained(model, 3, optimizer)
    tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = save_checkpoint(tmp_path, 3, tensors, {})
    twin = Transformer(cfg, seed=1)
    other = AdamW(twin.named_parameters(), lr=1e-2)
    saved = load_checkpoint(path).tensors
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert trained(twin, 3, other, seed=1) == trained(model, 3, optimizer, seed=1)
    ids = np.arange(12)[None] % 16
    assert np.array_equal(twin(ids).numpy(), model(ids).numpy())


def test_training_engine(tmp_path: Path) -> None:
    """The trainer takes it as any other model; a run that is taken up again has its weights."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"Hello world, number {i}" for i in range(300)))
    config = replace(preset("smoke"), data=str(tmp_path / "text.txt"), run=str(tmp_path / "run"), steps=8,
                     eval_every=4, checkpoint_every=4, held_out_fraction=0.2, device="cpu")
    with RunFolder.create(config) as folder:
        corpus = prepare(config, folder.path)
        cfg = small(vocab_size=corpus.tokenizer.vocab_size)
        model, ids = Transformer(cfg), np.arange(12)[None]
        trainer = Trainer(folder, model, corpus)
        result = trainer.fit()
        assert result.bits_per_byte < 7.0
        twin = Transformer(cfg, seed=3)
        assert Trainer(folder, twin, corpus).resume() == 8
        assert np.array_equal(twin(ids).numpy(), model(ids).numpy())


def test_smoke_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """scripts/smoke_toy_lm.py is `cuda-nn train --preset smoke`."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"Hello world, number {i}" for i in range(300)))
    verbs = {"scripts/smoke_toy_lm.py": ["train", "--preset", "smoke"]}
    words = shlex.split(SMOKE)
    assert words[0] == "python"
    small = ["--steps", "20", "--eval-every", "20", "--batch-size", "4", "--held-out-fraction", "0.2"]
    assert main([*verbs[words[1]], "--data", "text.txt", "--run", "run", *small, "--sample-tokens", "4"]) == 0
    losses = [json.loads(line)["loss"] for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1.0
