"""Configurations of a Transformer: other spellings, changes, files, refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import config as files
from nn.errors import InputError
from nn.models import AttentionConfig, BlockConfig, MoEConfig, Transformer, TransformerConfig

from .transformers import config, ids

CHANGED: dict[str, Any] = {
    "mode": "seq2seq", "n_encoder_layers": 3, "recursive": True, "recurrence_steps": 4,
    "exit_router": "latent", "exit_threshold": 0.5, "norm": "layernorm", "qk_norm": "head",
    "ffn_type": "moe", "moe": {"top_k": 1, "aux_loss": False}, "positional": "learned"}


@pytest.mark.parametrize("changes", [{}, CHANGED])
def test_round_trips(changes: dict[str, Any], tmp_path: Path) -> None:
    """Through dicts, through YAML, by deepcopy"""
    cfg = config(**changes)
    files.save(cfg, tmp_path / "cfg.yaml")
    for twin in (TransformerConfig.from_dict(cfg.to_dict()), copy.deepcopy(cfg),
                 files.load(tmp_path / "cfg.yaml", TransformerConfig)):
        assert twin == cfg
        assert twin.block.attn is not cfg.block.attn
        twin.block.attn.n_heads = 1
        assert twin != cfg


def test_other_spellings() -> None:
    attn = AttentionConfig(num_heads=4, num_kv_heads=2)
    assert (attn.n_heads, attn.n_kv_heads) == (4, 2)
    attn.num_heads = 8
    assert attn == AttentionConfig(n_heads=8, n_kv_heads=2)
    cfg = TransformerConfig(vocab_size=5, d_model=16, num_decoder_layers=3, num_encoder_layers=1)
    assert (cfg.n_layers, cfg.num_decoder_layers, cfg.n_encoder_layers) == (3, 3, 1)
    model = Transformer(config())
    assert model.config is model.cfg


def test_a_model_keeps_its_own_copy() -> None:
    cfg = config()
    model = Transformer(cfg)
    before, parameters = model(ids()).numpy(), model.num_parameters()
    cfg.block.ffn_type, cfg.recursive, cfg.d_model, cfg.block.attn.n_heads = "moe", True, 6, 3
    assert np.array_equal(model(ids()).numpy(), before)
    assert (model.num_parameters(), model.cfg) == (parameters, config())
    assert Transformer(cfg).num_parameters() != parameters          # built again, it is another
    cfg.block.attn.n_heads = 4
    with pytest.raises(InputError, match="d_model: 6 is not a multiple of block.attn.n_heads = 4"):
        Transformer(cfg)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"d_modell": 8}, "TransformerConfig.d_modell: unknown setting; did you mean 'd_model'"),
    "another type": ({"d_model": 8.5}, "TransformerConfig.d_model: expected a whole number (int), got 8.5"),
    "a truth": ({"n_layers": True}, "expected a whole number"),
    "text": ({"norm": 1}, "BlockConfig.norm: expected text"),
    "no layers": ({"n_layers": 0}, "n_layers: 0 is not 1 or more"),
    "heads": ({"d_model": 9}, "d_model: 9 is not a multiple of block.attn.n_heads = 2"),
    "key heads": ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads = 4"),
    "odd heads": ({"d_model": 6}, "block.attn.head_dim: 3 is odd"),
    "norm": ({"norm": "rms"}, "norm: 'rms' is not known; did you mean 'rmsnorm'"),
    "positions": ({"positional": "alibi"}, "positional: 'alibi' is not known"),
    "backend": ({"attn_backend": "flash"}, "attn_backend: 'flash' is not known"),
    "feed-forward": ({"ffn_type": "mpl"}, "did you mean 'mlp'"),
    "mode": ({"mode": "encoder-decoder"}, "mode: 'encoder-decoder' is not known"),
    "rule": ({"update_rule": "add"}, "update_rule: 'add' is not known"),
    "exit": ({"exit_router": "threshold"}, "exit_router: 'threshold' is not known"),
    "experts": ({"moe": {"top_k": 5}}, "top_k: 5 is not between 1 and num_experts = 4"),
    "dropout": ({"dropout": 1.0}, "dropout: 1.0 is not in [0, 1)"),
    "not finite": ({"init_std": float("nan")}, "init_std: nan is not a positive number"),
    "start": ({"start_id": 13}, "start_id: 13 is not an id below vocab_size = 13"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=r".*") as caught:
        config(**changes)
    assert message in str(caught.value)


def test_changes_are_checked_as_they_are_made() -> None:
    cfg = config()
    for part, name, value in ((cfg, "block", 3), (cfg.block, "ffn", "moe"), (cfg.block, "moe", "8"),
                              (cfg.block.attn, "n_heads", "2"), (cfg, "recursive", 1)):
        with pytest.raises(InputError):
            setattr(part, name, value)
    assert cfg == config()
    cfg.block.moe = {"num_experts": 3}
    assert cfg.block.moe == MoEConfig(num_experts=3)
    with pytest.raises(InputError, match="n_heads, num_heads give one setting twice"):
        AttentionConfig(n_heads=2, num_heads=2)
    with pytest.raises(AttributeError, match="has no setting 'heads'"):
        _ = BlockConfig().heads


def test_an_unknown_key_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text("vocab_size: 5\nd_model: 8\nn_layers: 1\nblock:\n  nrom: layernorm\n")
    with pytest.raises(InputError, match=r"block.nrom: unknown key. Did you mean block.norm\?"):
        files.load(tmp_path / "cfg.yaml", TransformerConfig)
