"""Mixtral's folder without Transformers: what is written is read back, every layout is read, and what is
wrong is named. (tests/oracle compares with Transformers itself.)"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nn import InputError, MoETransformer, MoETransformerConfig
from nn.interop import mixtral
from nn.layers.rotary import RopeScaling, inverse_frequencies

SMALL = MoETransformerConfig(vocab_size=11, hidden_size=8, num_heads=2, head_dim=6, intermediate_size=5,
                             num_experts=3, max_seq_len=64)
SCALINGS = [RopeScaling(), RopeScaling("ntk", 8.0), RopeScaling("ntk", 8.0, 8), RopeScaling("dynamic", 4.0),
            RopeScaling("dynamic", 4.0, 64), RopeScaling("linear", 2.0), RopeScaling("yarn", 4.0),
            RopeScaling("yarn", 4.0, 16, beta_fast=4.0, beta_slow=0.5, attention_factor=1.25)]
Changes = dict[str, np.ndarray | None]
EXPERT = "model.layers.1.block_sparse_moe.experts.2."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    MoETransformer(SMALL).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, changes: Changes) -> None:
    """None takes a tensor out."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        MoETransformer.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_same_weights(first: MoETransformer, second: MoETransformer) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert all(one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one)


def test_every_field_has_its_place() -> None:
    """A new field of the configuration must not get lost on the way through config.json."""
    placed = [*mixtral.FIELDS, *mixtral.FIXED, *set(mixtral.OWN)]
    assert sorted(placed) == sorted(f.name for f in fields(MoETransformerConfig))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.type)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_round_trip(scaling: RopeScaling, dtype: str, tmp_path: Path) -> None:
    config = SMALL.replace(rope_scaling=scaling, rope_theta=500.0, sliding_window=9, num_kv_heads=2,
                           norm_eps=1e-3, router_z_coef=0.25, balance_coef=0.0, drop_policy="slot",
                           tie_embeddings=dtype == "float64")
    model = MoETransformer(config, seed=3, dtype=dtype)
    model.save_pretrained(tmp_path)
    back = MoETransformer.from_pretrained(tmp_path)
    assert back.config == config
    assert_same_weights(model, back)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.type)
def test_config_means_the_same_to_others(scaling: RopeScaling) -> None:
    """Without our own entry, that is for any other reader: the same frequencies, to the bit."""
    config = SMALL.replace(rope_scaling=scaling)
    theirs = mixtral.to_hugging_face(config)
    del theirs["cuda_nn"]
    back = mixtral.from_hugging_face(theirs)
    frequencies = [inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling, 64) for c in (config, back)]
    assert np.array_equal(frequencies[0][0], frequencies[1][0])
    assert frequencies[0][1] == frequencies[1][1]


def test_an_edited_theta_counts(folder: Path) -> None:
    """Our own entry describes the file it was written with; it does not outlive a change by hand."""
    stretched = SMALL.replace(rope_scaling=RopeScaling("ntk", 8.0), router_z_coef=0.5)
    MoETransformer(stretched).save_pretrained(folder)
    edit_config(folder, rope_theta=77.0)
    config = MoETransformer.from_pretrained(folder).config
    assert (config.rope_theta, config.rope_scaling, config.router_z_coef) == (77.0, RopeScaling(), 0.5)


def test_the_preset_of_6_9b_is_described() -> None:
    config = MoETransformer.moe_6_9b().config
    theirs = mixtral.to_hugging_face(config)
    assert theirs["rope_theta"] == pytest.approx(85550.3759, abs=1e-3)      # 10000 · 8^(64/62)
    assert theirs["max_position_embeddings"] == 262144
    assert mixtral.from_hugging_face(theirs) == config


def test_a_config_json_as_it_is_published() -> None:
    """Mixtral-8x7B-v0.1: 46.7 billion parameters, 12.9 of them active (Jiang et al. 2024, section 2)."""
    model = MoETransformer(mixtral.from_hugging_face({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True,
        "vocab_size": 32000}))
    assert model.num_parameters() == 46_702_792_704
    assert round(model.num_parameters(active=True) / 1e9, 1) == 12.9
    assert (model.config.head_dim, model.config.balance_coef) == (128, 0.02)


def test_no_token_ends_the_text_unless_named(folder: Path) -> None:
    """Left out, Transformers would take 2 for the end of a text."""
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cast_while_reading(dtype: str, folder: Path) -> None:
    model = MoETransformer.from_pretrained(folder, dtype=dtype)
    stored = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert model.norm.weight.dtype == np.dtype(dtype if dtype == "float32" else ml_dtypes.bfloat16)
    assert np.array_equal(model.norm.weight.numpy(), stored.astype(model.norm.weight.dtype))


def test_experts_rows_are_in_order(folder: Path) -> None:
    stored, model = load_file(folder / "model.safetensors"), MoETransformer.from_pretrained(folder)
    experts = model.layers[1].mlp.experts
    assert np.array_equal(experts.gate_up_proj.numpy()[2, :5], stored[EXPERT + "w1.weight"])
    assert np.array_equal(experts.gate_up_proj.numpy()[2, 5:], stored[EXPERT + "w3.weight"])
    assert np.array_equal(experts.down_proj.numpy()[2], stored[EXPERT + "w2.weight"])


def shard(folder: Path, count: int = 3) -> None:
    """model.safetensors taken apart, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = {name: names[i % count] for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(folder: Path) -> None:
    expected = MoETransformer.from_pretrained(folder)
    shard(folder)
    assert_same_weights(MoETransformer.from_pretrained(folder), expected)


def test_one_file_counts_more_than_an_old_index(folder: Path) -> None:
    """As in Transformers: a folder of shards saved over holds both."""
    shard(folder)
    newer = MoETransformer(SMALL, seed=9)
    newer.save_pretrained(folder)
    assert_same_weights(MoETransformer.from_pretrained(folder), newer)


def test_stacked_experts(folder: Path) -> None:
    """Transformers 5 can write them as it has them in memory."""
    expected = MoETransformer.from_pretrained(folder)
    changes: Changes = dict.fromkeys(load_file(folder / "model.safetensors"))
    ours = expected.state_dict()
    changes |= {theirs: ours[name] for name, theirs in mixtral.names(SMALL, stacked=True).items()}
    edit_weights(folder, changes)
    assert len(load_file(folder / "model.safetensors")) == len(ours)
    assert_same_weights(MoETransformer.from_pretrained(folder), expected)


def test_redundant_tensors_are_passed_over(tmp_path: Path) -> None:
    model = MoETransformer(SMALL.replace(tie_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    edit_weights(tmp_path, {"lm_head.weight": model.embed_tokens.weight.numpy(),
                            "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)})
    assert_same_weights(MoETransformer.from_pretrained(tmp_path), model)


def test_key_value_heads_left_open_are_as_many_as_heads() -> None:
    theirs = mixtral.to_hugging_face(SMALL) | {"num_key_value_heads": None, "head_dim": None}
    config = mixtral.from_hugging_face(theirs)
    assert (config.num_kv_heads, config.head_dim) == (2, 4)


WRONG_CONFIGS = [
    ({"model_type": "llama"}, ["model_type", "'llama'", "mixtral"]),
    ({"model_type": None}, ["model_type", "None"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
    ({"attention_bias": True}, ["attention_bias"]),
    ({"attention_dropout": 0.1}, ["attention_dropout", "0.1", "0.0"]),
    ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["rope_type", "'llama3'", "yarn"]),
    ({"rope_scaling": {"type": "ntk", "factor": 8.0}}, ["rope_type", "'ntk'"]),
    ({"rope_scaling": {"rope_type": "linear"}}, ["'linear'", "factor"]),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, ["factor", "0.5"]),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, ["truncate"]),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": "32"}}, ["beta_fast", "'32'"]),
    ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
    ({"rope_scaling": "yarn"}, ["rope_scaling", "'yarn'"]),
    ({"hidden_size": "64"}, ["hidden_size", "'64'"]),
    ({"num_hidden_layers": 2.5}, ["num_hidden_layers", "2.5"]),
    ({"num_local_experts": True}, ["num_local_experts", "True"]),
    ({"tie_word_embeddings": 1}, ["tie_word_embeddings", "1"]),
    ({"num_attention_heads": 3}, ["q_proj.weight", "[12, 8]", "[18, 8]"]),
    ({"num_experts_per_tok": 9}, ["top_k", "9"]),
    ({"cuda_nn": {"router_zeta": 1.0}}, ["cuda_nn.router_zeta", "version"]),
    ({"cuda_nn": {"rope_scaling": {"kind": "ntk"}}}, ["cuda_nn", "'kind'"]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_CONFIGS, ids=lambda value: json.dumps(value)[:40])
def test_wrong_configs_are_named(changes: dict[str, Any], words: list[str], folder: Path) -> None:
    edit_config(folder, **changes)
    message = refusal(folder)
    assert all(word in message for word in words), message


WRONG_WEIGHTS = [
    ({EXPERT + "w3.weight": None}, [EXPERT + "w3.weight is missing"]),
    ({"lm_head.weight": None}, ["lm_head.weight is missing"]),
    ({"model.layers.2.input_layernorm.weight": np.ones(8)}, ["layers.2.input_layernorm.weight is not"]),
    ({"model.layers.0.self_attn.q_proj.bias": np.ones(12)}, ["layers.0.self_attn.q_proj.bias is not"]),
    ({EXPERT + "w2.weight": np.ones((5, 8))}, [EXPERT + "w2.weight", "[5, 8]", "[8, 5]"]),
    ({"model.norm.weight": np.ones(9)}, ["model.norm.weight", "[9]", "[8]"]),
    ({"model.norm.weight": np.ones(8, np.int8)}, ["model.norm.weight", "I8", "BF16"]),
    ({f"model.layers.{i}.self_attn.{x}_proj.weight": None for i in (0, 1) for x in "qk"}, ["and 1 more"]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_WEIGHTS, ids=lambda value: next(iter(value)))
def test_wrong_weights_are_named(changes: Changes, words: list[str], folder: Path) -> None:
    edit_weights(folder, changes)
    message = refusal(folder)
    assert str(folder) in message
    assert all(word in message for word in words), message


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    for damaged in (whole[:-7], whole[:100], b"", b"PK" + whole):
        weights.write_bytes(damaged)
        assert "model.safetensors: damaged" in refusal(folder)
    weights.unlink()
    assert "model.safetensors: no such file" in refusal(folder)
    for text, word in (("{", "not JSON"), ("[]", "holds a list"), ("\x80", "not JSON")):
        config.write_bytes(text.encode("latin-1"))
        assert f"config.json: {word}" in refusal(folder)
    config.unlink()
    assert "config.json: no such file" in refusal(folder)


def test_wrong_shards_are_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: no such file" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    assert "weight_map" in refusal(folder)


@pytest.mark.parametrize(("field", "value"), [
    ("norm", "layernorm"), ("qk_norm", True), ("attention_bias", True), ("rope_interleaved", True),
    ("renormalize", False), ("capacity_factor", 1.5), ("num_experts", 0)])
def test_what_is_not_mixtral_is_not_saved_as_one(field: str, value: Any, tmp_path: Path) -> None:
    model = MoETransformer(SMALL.replace(**{field: value}))
    with pytest.raises(InputError, match=f"{field}: {value!r}.*Mixtral"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_older_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="weights not written.*No space left"):
        MoETransformer(SMALL.replace(num_layers=1)).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
