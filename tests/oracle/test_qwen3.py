"""Qwen3 and Qwen3-MoE of Transformers: folders written by one are read by the other, and both compute the
same logits, losses and gradients of every parameter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from nn.interop.qwen3 import from_hugging_face
from nn.layers.rotary import RopeScaling
from nn.models.language_model import LanguageModelConfig
from nn.models.qwen3 import QWEN3_0_6B, QWEN3_MOE_A0_6B, Qwen3
from tests.oracle import hugging_face
from tests.oracle.compare import assert_close, error, tokens

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "qk_norm": "head", "rope_theta": 1e4}
SMALL = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "max_seq_len": 64}
DENSE = QWEN3_0_6B.replace(**SMALL, options={"full_attention": HEADS, "swiglu": {"intermediate_size": 24}})
EXPERTS = {"intermediate_size": 10, "num_experts": 4, "top_k": 2}
SPARSE = QWEN3_MOE_A0_6B.replace(**SMALL, options={"full_attention": HEADS, "moe": EXPERTS})


def attending(base: LanguageModelConfig, **changes: Any) -> LanguageModelConfig:
    return base.replace(options=base.options | {"full_attention": HEADS | changes})


def scaled(scaling: RopeScaling) -> LanguageModelConfig:
    return attending(DENSE, rope_scaling=vars(scaling))


CONFIGS = {
    "dense": DENSE,
    "multi-query, untied": attending(DENSE, num_kv_heads=1).replace(tie_embeddings=False),
    "multi-head, head_dim = D / H": attending(DENSE, num_kv_heads=4, head_dim=8),
    "biases": attending(DENSE, attn_bias=True, out_bias=True),
    "theta, eps": attending(DENSE, rope_theta=1e6).replace(norm_eps=1e-2),
    "a window in the second layer": DENSE.replace(
        mixer=("full_attention", "sliding_attention"),
        options=DENSE.options | {"sliding_attention": HEADS | {"window": 5}}),
    "ntk": scaled(RopeScaling("ntk", 8.0)),
    "yarn": scaled(RopeScaling("yarn", 4.0, beta_fast=4.0)),
    "experts": SPARSE,
    "experts, not renormalised": SPARSE.replace(
        options=SPARSE.options | {"moe": EXPERTS | {"renormalize": False}}),
    "one expert per token": SPARSE.replace(options=SPARSE.options | {"moe": EXPERTS | {"top_k": 1}}),
    "experts in the second layer": SPARSE.replace(
        feed_forward=("swiglu", "moe"), options=SPARSE.options | {"swiglu": {"intermediate_size": 24}}),
    "experts behind windows": SPARSE.replace(
        mixer="sliding_attention", options={"sliding_attention": HEADS | {"window": 5}, "moe": EXPERTS}),
}
LIMIT = {"float32": 1e-5, "float64": 1e-9}


def random_model(config: LanguageModelConfig, dtype: str, seed: int = 0) -> Qwen3:
    """Weights far from their initial ones: norms differ per channel, routers prefer, attention looks."""
    model, rng = Qwen3(config, dtype=dtype), np.random.default_rng(seed)
    for name, parameter in model.named_parameters().items():
        noise = rng.normal(scale=0.2, size=parameter.shape)
        parameter.data = (1.0 + noise if "norm" in name else noise).astype(parameter.dtype)
    return model


def their_name(name: str) -> str:
    """Of our parameter, as Transformers has it in memory; independent of nn/interop."""
    for ours, theirs in (("body.", ""), (".mixer.", ".self_attn."), ("connection.norms.0", "input_layernorm"),
                         ("connection.norms.1", "post_attention_layernorm"), ("feed_forward.ffn", "mlp"),
                         ("feed_forward.moe.router", "mlp.gate"), ("feed_forward.moe", "mlp")):
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def load(folder: Path, dtype: str = "float32") -> Any:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    eager = {"experts_implementation": "eager"} if kind == "qwen3_moe" else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **eager)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(CONFIGS[name], dtype)
    model.save_pretrained(tmp_path)
    ids, targets = tokens(61)
    with hugging_face.in_full(dtype):
        theirs = load(tmp_path, dtype)
        result = hugging_face.cross_entropy(theirs, ids, targets)
        result.loss.backward()
    loss, figures = model.loss(ids, targets, aux_scale=0.0)
    loss.backward()
    assert isinstance(theirs, Qwen3ForCausalLM | Qwen3MoeForCausalLM)
    assert theirs.dtype == getattr(torch, dtype)
    assert error(model(ids).numpy(), result.logits.detach()) < LIMIT[dtype]
    assert error(figures["loss"], result.loss.item()) < LIMIT[dtype]
    assert_close({their_name(n): p.grad for n, p in model.named_parameters().items()},
                 {n: p.grad.numpy() for n, p in theirs.named_parameters()}, LIMIT[dtype])
    assert not [r.message for r in caplog.records if r.levelname == "WARNING"], "of our config.json"


def theirs(sparse: bool, **fields: Any) -> Any:
    """A model of Transformers with every weight random, its norms too."""
    torch.manual_seed(0)
    own = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
           "initializer_range": 0.2}
    moe = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
    model = (Qwen3MoeForCausalLM(Qwen3MoeConfig(**own | moe | fields)) if sparse
             else Qwen3ForCausalLM(Qwen3Config(**own | fields))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
    return model


THEIRS: dict[str, tuple[bool, dict[str, Any]]] = {
    "dense": (False, {}),
    "tied": (False, {"tie_word_embeddings": True}),
    "biases": (False, {"attention_bias": True}),
    "windows from layer 1": (False, {"use_sliding_window": True, "sliding_window": 5,
                                     "max_window_layers": 1}),
    "a window that is off": (False, {"use_sliding_window": False, "sliding_window": 5}),
    "layer types": (False, {"use_sliding_window": True, "sliding_window": 5, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]}),
    "theta": (False, {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    "yarn": (False, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0,
                                         "original_max_position_embeddings": 16, "beta_fast": 4.0}}),
    "experts": (True, {}),
    "experts, renormalised": (True, {"norm_topk_prob": True}),
    "every second layer": (True, {"decoder_sparse_step": 2}),
    "all but the first": (True, {"mlp_only_layers": [0]}),
    "experts, windows": (True, {"use_sliding_window": True, "sliding_window": 5}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_reads_their_folders(name: str, tmp_path: Path) -> None:
    sparse, fields = THEIRS[name]
    model = theirs(sparse, **fields)
    model.save_pretrained(tmp_path)
    ids, _ = tokens(61, length=64)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits
    assert error(Qwen3.from_pretrained(tmp_path)(ids).numpy(), expected) < 1e-5


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"save_original_format": False}])
def test_reads_their_layouts(options: dict[str, Any], tmp_path: Path) -> None:
    """In shards with an index; with the experts stacked, as they are in memory."""
    model = theirs(True)
    model.save_pretrained(tmp_path, **options)
    ids, _ = tokens(61)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits
    assert error(Qwen3.from_pretrained(tmp_path)(ids).numpy(), expected) < 1e-5


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_through_transformers_keeps_everything(config: LanguageModelConfig, dtype: str,
                                                          tmp_path: Path) -> None:
    """The same names and bits, and also what they have no field for."""
    config = config.replace(init_scheme="gpt2", options=config.options | (
        {"moe": EXPERTS | {"router_z_coef": 0.5, "drop_policy": "slot"}} if config is SPARSE else {}))
    model = random_model(config, dtype)
    model.save_pretrained(tmp_path / "ours")
    load(tmp_path / "ours", dtype).save_pretrained(tmp_path / "theirs")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Qwen3.from_pretrained(tmp_path / "theirs").config == config


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_fields_left_out_mean_what_they_mean_to_transformers(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    config = (Qwen3Config if kind == "qwen3" else Qwen3MoeConfig).from_pretrained(tmp_path)
    assert from_hugging_face({"model_type": kind}) == from_hugging_face(config.to_dict())


def test_decoding_equals_transformers(tmp_path: Path) -> None:
    """Pieces of 6, 1 and 4 tokens through both caches."""
    model = random_model(CONFIGS["a window in the second layer"], "float32").eval()
    model.save_pretrained(tmp_path)
    reference, (ids, _) = load(tmp_path), tokens(61, length=11)
    state, past = model.init_state(2), None
    for start, end in ((0, 6), (6, 7), (7, 11)):
        with torch.no_grad():
            result = reference(torch.tensor(ids[:, start:end]), past_key_values=past, use_cache=True)
        past = result.past_key_values
        assert error(model(ids[:, start:end], cache=state).numpy(), result.logits) < 1e-5
