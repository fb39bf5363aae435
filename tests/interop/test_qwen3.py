"""Qwen3's folders without Transformers: what is written is read back, what a published config.json says is
understood, what Qwen3 does not have is refused.  (tests/oracle compares with Transformers itself.)"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nn import InputError, MoETransformer
from nn.interop import qwen3
from nn.interop.pretrained import from_pretrained
from nn.models.language_model import LanguageModelConfig
from nn.models.qwen3 import QWEN3_0_6B, QWEN3_MOE_A0_6B, Qwen3

HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 6, "qk_norm": "head", "rope_theta": 1e6}
SMALL = {"vocab_size": 11, "hidden_size": 8, "num_layers": 2, "max_seq_len": 64}
DENSE = QWEN3_0_6B.replace(**SMALL, options={"full_attention": HEADS, "swiglu": {"intermediate_size": 5}})
SPARSE = QWEN3_MOE_A0_6B.replace(**SMALL, tie_embeddings=False, feed_forward=("swiglu", "moe"), options={
    "full_attention": HEADS, "swiglu": {"intermediate_size": 7},
    "moe": {"intermediate_size": 5, "num_experts": 3, "top_k": 2}})

# config.json of Qwen3-0.6B as it is published
PUBLISHED = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936}


def parameters(config: LanguageModelConfig, active: bool = False) -> int:
    return sum(config.parameters(active).values())


def test_the_published_model_is_the_baseline() -> None:
    """Parameters, those without the embedding, and operations per token at 2,048."""
    assert qwen3.from_hugging_face(PUBLISHED) == QWEN3_0_6B
    model = Qwen3(QWEN3_0_6B)
    assert model.num_parameters() == parameters(QWEN3_0_6B) == 596_049_920
    assert parameters(QWEN3_0_6B) - QWEN3_0_6B.parameters()["embedding"] == 440_467_456
    assert model.flops(2048) == 1_426_964_480
    assert not any(p.allocated for p in model.parameters())


def test_the_sibling_with_experts() -> None:
    layer = 6_291_712 + 2_048 + 64 * 1024 + 64 * 3 * 1024 * 384        # attention, norms, router, experts
    assert parameters(QWEN3_MOE_A0_6B) == 28 * layer + 1024 + 155_582_464
    assert round(parameters(QWEN3_MOE_A0_6B) / 1e9, 3) == 2.448
    assert parameters(QWEN3_MOE_A0_6B, active=True) == 597_884_928
    assert Qwen3(QWEN3_MOE_A0_6B).num_parameters() == parameters(QWEN3_MOE_A0_6B)


def test_a_large_published_mixture() -> None:
    """Qwen3-30B-A3B."""
    config = qwen3.from_hugging_face({
        "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "tie_word_embeddings": False, "vocab_size": 151936})
    assert parameters(config) == 30_532_122_624
    assert parameters(config, active=True) == 3_353_032_704
    assert config.options["moe"]["renormalize"] is True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("config", [DENSE, SPARSE, SPARSE.replace(init_std=0.5, mtp_weight=0.7)])
def test_round_trip(config: LanguageModelConfig, dtype: str, tmp_path: Path) -> None:
    model = Qwen3(config, seed=3, dtype=dtype)
    model.save_pretrained(tmp_path)
    back = Qwen3.from_pretrained(tmp_path)
    assert back.config == config
    one, other = model.state_dict(), back.state_dict()
    assert list(one) == list(other)
    assert all(one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one)


def test_names_and_shapes_of_a_folder(tmp_path: Path) -> None:
    """As a checkpoint has them."""
    Qwen3(SPARSE).save_pretrained(tmp_path)
    attention = {"input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,),
                 "self_attn.q_proj.weight": (12, 8), "self_attn.k_proj.weight": (6, 8),
                 "self_attn.v_proj.weight": (6, 8), "self_attn.o_proj.weight": (8, 12),
                 "self_attn.q_norm.weight": (6,), "self_attn.k_norm.weight": (6,)}
    dense = {"mlp.gate_proj.weight": (7, 8), "mlp.up_proj.weight": (7, 8), "mlp.down_proj.weight": (8, 7)}
    experts = {f"mlp.experts.{e}.{name}.weight": shape for e in range(3)
               for name, shape in (("gate_proj", (5, 8)), ("up_proj", (5, 8)), ("down_proj", (8, 5)))}
    expected = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}
    expected |= {f"model.layers.0.{name}": shape for name, shape in (attention | dense).items()}
    expected |= {f"model.layers.1.{name}": shape
                 for name, shape in (attention | experts | {"mlp.gate.weight": (3, 8)}).items()}
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == expected
    Qwen3(DENSE).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")       # tied: stored once


@pytest.mark.parametrize("changes", [{"rope_theta": 77.0}, {"rms_norm_eps": 0.5}, {"initializer_range": 0.3}])
def test_an_edited_field_counts(changes: dict[str, Any], tmp_path: Path) -> None:
    """Our own entry describes the file it was written with; it does not outlive a change by hand."""
    Qwen3(DENSE.replace(init_scheme="gpt2")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    config = Qwen3.from_pretrained(tmp_path).config
    found = {"rope_theta": config.options["full_attention"]["rope_theta"], "rms_norm_eps": config.norm_eps,
             "initializer_range": config.init_std}
    assert {key: found[key] for key in changes} == changes
    assert config.init_scheme == "normal"


@pytest.mark.parametrize(("changes", "message"), [
    ({"residual": "mhc"}, "residual: 'mhc'"), ({"mixer": "mla", "options": {}}, "mixer: 'mla'"),
    ({"memory": "rmc"}, "memory: 'rmc'"), ({"mtp_depth": 1}, "mtp_depth: 1"),
    ({"norm": "layernorm"}, "norm: 'layernorm'"), ({"final_norm": False}, "final_norm"),
    ({"positions": "learned"}, "positions"), ({"logit_softcap": 30.0}, "logit_softcap"),
    ({"options": {"full_attention": HEADS | {"qk_norm": "none"}}}, "layer 0, full_attention.qk_norm: 'none'"),
    ({"options": {"full_attention": HEADS | {"rope_interleaved": True}}}, "rope_interleaved"),
    ({"options": {"full_attention": HEADS | {"attn_bias": True}}}, "full_attention.attn_bias: True"),
    ({"feed_forward": "mlp", "options": {"full_attention": HEADS}}, "feed_forward: 'mlp'"),
    ({"feed_forward": "moe", "options": {"full_attention": HEADS, "moe": {"num_shared_experts": 1}}},
     "moe.num_shared_experts: 1"),
    ({"feed_forward": "moe", "options": {"full_attention": HEADS, "moe": {"score": "sigmoid"}}}, "moe.score"),
    ({"mixer": ("full_attention", "sliding_attention"), "options": {
        "full_attention": HEADS, "sliding_attention": HEADS | {"sink_tokens": 1}}}, "sink_tokens: 1")])
def test_what_qwen3_does_not_have_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Qwen3(DENSE.replace(**changes)).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "llama"}, "model_type is 'llama'"), ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_type is 'llama3'"),
    ({"num_hidden_layers": "28"}, "num_hidden_layers is '28'"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ({"quantization_config": {"bits": 4}}, "quantization_config")])
def test_what_a_config_json_asks_for_and_we_do_not_compute(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        qwen3.from_hugging_face(PUBLISHED | changes)


def test_damage_is_named(tmp_path: Path) -> None:
    Qwen3(DENSE).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    tensors["model.norm.weight"] = np.ones(9, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    missing = r"1\.self_attn\.q_norm\.weight is missing"
    with pytest.raises(InputError, match=rf"{missing}; model\.norm\.weight has shape"):
        Qwen3.from_pretrained(tmp_path)


def test_a_folder_says_which_architecture_it_is(tmp_path: Path) -> None:
    Qwen3(DENSE).save_pretrained(tmp_path / "qwen")
    MoETransformer.tiny().save_pretrained(tmp_path / "mixtral")
    assert type(from_pretrained(tmp_path / "qwen")) is Qwen3
    assert type(from_pretrained(tmp_path / "mixtral", dtype="float64")) is MoETransformer
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type is 'gpt2'; mixtral, qwen3, qwen3_moe are read"):
        from_pretrained(tmp_path)
