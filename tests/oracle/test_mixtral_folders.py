"""Checkpoint folders written by Transformers, read here, and the other way round: layouts, number types,
rotary scalings, fields left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from nn import MoETransformer, MoETransformerConfig
from nn.interop.mixtral import from_hugging_face
from nn.layers.rotary import RopeScaling
from tests.oracle.compare import error, random_model, their_names, tokens

SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
         "max_position_embeddings": 64, "initializer_range": 0.2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}


def scaled(**rope: Any) -> dict[str, Any]:
    # head_dim: their dynamic and yarn need it written out (transformers 5.20 to 5.23)
    return {"head_dim": 8, "rope_parameters": {"rope_theta": 1e4} | rope}


THEIRS = {
    "defaults": {},
    "head_dim": {"head_dim": 20},
    "tied": {"tie_word_embeddings": True},
    "window": {"sliding_window": 5},
    "theta": scaled(rope_type="default", rope_theta=500.0),
    "linear": scaled(rope_type="linear", factor=4.0),
    "dynamic": scaled(rope_type="dynamic", factor=4.0),
    "yarn": scaled(**YARN),
    "yarn, trained context left out": scaled(rope_type="yarn", factor=4.0, beta_fast=4.0),
    "yarn, attention factor": scaled(**YARN, attention_factor=1.5),
    "yarn, mscale": scaled(**YARN, mscale=1.0, mscale_all_dim=0.5),
    "yarn, one mscale": scaled(**YARN, mscale=1.0),
}


def theirs(**fields: Any) -> MixtralForCausalLM:
    """A model of Transformers with every weight random, its norms too."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL | fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
    return model


def logits(model: MixtralForCausalLM, length: int = 17) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(tokens(61, length=length)[0])).logits


def assert_same_logits(ours: MoETransformer, model: MixtralForCausalLM, length: int = 17) -> None:
    assert error(ours(tokens(61, length=length)[0]).numpy(), logits(model, length)) < 1e-5


@pytest.mark.parametrize("name", THEIRS)
def test_reads_their_folders(name: str, tmp_path: Path) -> None:
    """Over the whole context, where a wrong scaling shows most."""
    model = theirs(**THEIRS[name])
    model.save_pretrained(tmp_path)
    assert_same_logits(MoETransformer.from_pretrained(tmp_path), model, length=64)


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"save_original_format": False},
                                     {"save_original_format": False, "max_shard_size": "20KB"}])
def test_reads_their_layouts(options: dict[str, Any], tmp_path: Path) -> None:
    """In shards with an index; with the experts stacked, as they are in memory."""
    model = theirs()
    model.save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors.index.json").exists() == ("max_shard_size" in options)
    assert_same_logits(MoETransformer.from_pretrained(tmp_path), model)


def test_reads_an_older_config(tmp_path: Path) -> None:
    """Transformers 4 wrote rope_theta and rope_scaling side by side, and the scaling's kind as `type`."""
    model = theirs(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_logits(MoETransformer.from_pretrained(tmp_path), model, length=64)


def test_fields_left_out_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    read = from_hugging_face({"model_type": "mixtral"})
    assert read == from_hugging_face(MixtralConfig.from_pretrained(tmp_path).to_dict())
    assert (read.norm_eps, read.rope_theta, read.num_kv_heads, read.head_dim) == (1e-5, 1e6, 8, 128)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_number_types_both_ways(dtype: str, tmp_path: Path) -> None:
    """The same bits; the logits computed in float32 from them agree."""
    random_model(MoETransformerConfig(vocab_size=61), dtype).save_pretrained(tmp_path / "ours")
    model = MixtralForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == getattr(torch, dtype)
    model.save_pretrained(tmp_path / "theirs")
    ours = [MoETransformer.from_pretrained(tmp_path / name) for name in ("ours", "theirs")]
    first, second = (m.state_dict() for m in ours)
    assert ours[1].embed_tokens.weight.dtype.name == dtype
    assert all(np.array_equal(first[name].view(np.uint8), second[name].view(np.uint8)) for name in first)
    wide = MoETransformer.from_pretrained(tmp_path / "theirs", dtype="float32")
    assert wide.embed_tokens.weight.dtype == np.float32
    assert_same_logits(wide, model.float())


def test_bfloat16_is_as_exact_as_theirs(tmp_path: Path) -> None:
    """At most twice their error against float64 (FlashAttention's rule).  All experts serve every token:
    rounding must not decide which."""
    ours = random_model(MoETransformerConfig(vocab_size=61, top_k=4), "bfloat16")
    ours.save_pretrained(tmp_path)
    exact = MoETransformer.from_pretrained(tmp_path, dtype="float64")(tokens(61)[0]).numpy()
    theirs = error(logits(MixtralForCausalLM.from_pretrained(tmp_path)).float(), exact)
    assert error(ours(tokens(61)[0]).numpy(), exact) < 2 * theirs


@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling("ntk", 8.0), RopeScaling("dynamic", 4.0),
                                     RopeScaling("linear", 2.0), RopeScaling("yarn", 4.0, beta_fast=4.0)])
def test_round_trip_through_transformers_keeps_everything(scaling: RopeScaling, tmp_path: Path) -> None:
    """Also what Mixtral has no name for, such as the kind of scaling that became a larger theta."""
    config = MoETransformer.tiny().config.replace(rope_scaling=scaling, router_z_coef=0.5, router_jitter=0.25,
                                                  vocab_size=61, sliding_window=7, drop_policy="slot")
    model = random_model(config, "float32")
    model.save_pretrained(tmp_path / "ours")
    MixtralForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = MoETransformer.from_pretrained(tmp_path / "theirs")
    assert back.config == config
    ids, _ = tokens(61, length=40)
    assert np.array_equal(back.eval()(ids).numpy(), model.eval()(ids).numpy())


def test_names_are_those_of_transformers(tmp_path: Path) -> None:
    """Both folders hold the same tensors, by name and shape."""
    from safetensors.torch import load_file

    ours = random_model(MoETransformer.tiny().config, "float32")
    ours.save_pretrained(tmp_path / "ours")
    MixtralForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert first.keys() == second.keys() == their_names(ours.state_dict()).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
