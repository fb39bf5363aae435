"""Exported graphs, computed by the reference evaluator of the package onnx, give the model's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from nn.interop.onnx import export
from nn.models import (
    AttentionConfig,
    BlockConfig,
    LanguageModel,
    LanguageModelConfig,
    LMModel,
    MoETransformer,
    NeoFormerX,
    Transformer,
    TransformerConfig,
)
from nn.models.lm_config import ModelConfig
from nn.models.neoformer_config import NeoFormerXConfig
from nn.tensor import no_grad
from tests.blocks.harness import close, shaken

NEOFORMER: dict[str, Any] = {"vocab_size": 19, "d_model": 16, "nhead": 4, "kv_heads": 2, "layers": 2,
                             "mem_size": 3, "rules": 3, "rdim": 5, "max_seq_len": 8, "ffn_size": 12}
LM: dict[str, Any] = {"vocab_size": 19, "hidden_size": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
                      "intermediate_size": 12, "max_seq_len": 8}
TRANSFORMER = TransformerConfig(vocab_size=19, d_model=16, n_layers=2, max_seq_len=8,
                                block=BlockConfig(attn=AttentionConfig(n_heads=2), positional="sinusoidal"))
HEADS = {"num_heads": 4}
MODELS: dict[str, Any] = {
    "neoformer": lambda: NeoFormerX(NeoFormerXConfig(**NEOFORMER)),
    "neoformer, plus": lambda: NeoFormerX(NeoFormerXConfig(**NEOFORMER, norm="rmsnorm", ffn="swiglu")),
    "neoformer, gelu": lambda: NeoFormerX(NeoFormerXConfig(**NEOFORMER, ffn="gelu", rmc_residual=True)),
    "gpt": lambda: LMModel(ModelConfig(**LM)),
    "mla": lambda: LMModel(ModelConfig(**LM, block_pattern="mla", q_lora_rank=6)),
    "gpt-2": lambda: LanguageModel(LanguageModelConfig(
        vocab_size=19, hidden_size=16, norm="layernorm", feed_forward="mlp", positions="learned",
        max_seq_len=8, options={"full_attention": {**HEADS, "rope_theta": 0.0},
                                "mlp": {"activation": "gelu_tanh"}})),
    "clipped heads of length 1": lambda: LanguageModel(LanguageModelConfig(
        vocab_size=19, hidden_size=16, max_seq_len=8,
        options={"full_attention": {**HEADS, "qk_norm": "l2", "clip_qkv": 0.1}})),
    "transformer": lambda: Transformer(TRANSFORMER).main,
    "partial rotation, qk-norm, parallel": lambda: LanguageModel(LanguageModelConfig(
        vocab_size=19, hidden_size=16, max_seq_len=8, residual="parallel", tie_embeddings=True,
        options={"full_attention": {**HEADS, "qk_norm": "head", "partial_rotary_factor": 0.5, "window": 3}})),
}


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    found: np.ndarray = ReferenceEvaluator(str(path)).run(None, {"ids": ids})[0]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_gives_the_logits(name: str, tmp_path: Path) -> None:
    """Of other ids than those it was made with, and with texts filled up behind their end"""
    model, path = shaken(MODELS[name](), 1), tmp_path / "model.onnx"
    export(model, path, batch=2, length=7)
    onnx.checker.check_model(str(path), full_check=True)
    ids = np.random.default_rng(7).integers(0, 19, (2, 7))
    with no_grad():
        expected = model.logits(model.hidden(ids)).data
        close(logits_of(path, ids), expected, 1e-4)
        ids[:, 5:] = 0
        close(logits_of(path, ids)[:, :5], expected[:, :5], 1e-4)


def test_a_transformer_is_its_decoder(tmp_path: Path) -> None:
    model, path = Transformer(TRANSFORMER, seed=3), tmp_path / "model.onnx"
    export(model, path, length=5)
    ids = np.random.default_rng(7).integers(0, 19, (1, 5))
    with no_grad():
        close(logits_of(path, ids), model(ids).data, 1e-4)
    for mode in ("encoder", "seq2seq"):
        other = TransformerConfig.from_dict(TRANSFORMER.to_dict())
        other.mode = mode
        with pytest.raises(ValueError, match=f"model: mode '{mode}'; export a decoder"):
            export(Transformer(other), tmp_path / "other.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_weights_keep_their_names_and_are_stored_once(tmp_path: Path) -> None:
    model, path = LMModel(ModelConfig(**LM)), tmp_path / "model.onnx"
    export(model, path)
    graph = onnx.load(str(path)).graph
    stored = {each.name: list(each.dims) for each in graph.initializer}
    assert {name: list(p.shape) for name, p in model.named_parameters().items()}.items() <= stored.items()
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 8]
    assert model.training, "as it was"


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LMModel(ModelConfig(**LM, block_pattern="mamba")), "no ONNX counterpart is known"),
    (lambda: LanguageModel(LanguageModelConfig(vocab_size=19, hidden_size=16, max_seq_len=8, memory="engram",
                                               options={"full_attention": HEADS})), "follows from the ids"),
    (MoETransformer.tiny, "cannot be exported"),
    (lambda: LMModel(ModelConfig(**LM), dtype="bfloat16"), "its weights are bfloat16; export one of float32"),
])
def test_what_cannot_be_exported_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(make(), tmp_path / "model.onnx", length=6)
    assert not list(tmp_path.iterdir())
