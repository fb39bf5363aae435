"""Adapters in files of their own: PEFT's names and fields, read back to the bit, and refused where they do
not fit.  (tests/oracle compares with Transformers and PEFT.)"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nn import InputError, MoETransformer, MoETransformerConfig
from nn.interop import peft
from nn.layers.lora import LoRA, LoRASettings
from nn.models.language_model import LanguageModel, LanguageModelConfig
from nn.models.qwen3 import QWEN3_0_6B, QWEN3_MOE_A0_6B, Qwen3

HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 6, "qk_norm": "head"}
SMALL = {"vocab_size": 11, "hidden_size": 8, "num_layers": 2, "max_seq_len": 64}
DENSE = QWEN3_0_6B.replace(**SMALL, options={"full_attention": HEADS, "swiglu": {"intermediate_size": 5}})
SPARSE = QWEN3_MOE_A0_6B.replace(**SMALL, options={
    "full_attention": HEADS, "moe": {"intermediate_size": 5, "num_experts": 3, "top_k": 2}})
MIXTRAL = MoETransformerConfig(vocab_size=11, hidden_size=8, num_heads=2, intermediate_size=5, num_experts=3)
OTHER = LanguageModelConfig(vocab_size=11, hidden_size=8, mixer="retention",
                            options={"retention": {"num_heads": 2}})
IDS = np.arange(10).reshape(2, 5)
EXPERTS = ("q_proj", "experts.gate_up_proj", "experts.down_proj")


def model_of(config: Any) -> Any:
    made = (MoETransformer if config is MIXTRAL else LanguageModel if config is OTHER else Qwen3)(config)
    return made.eval()


def adapted(config: Any, **settings: Any) -> tuple[Any, LoRA]:
    """A model with adapters that correct something."""
    model = model_of(config)
    lora, rng = LoRA(model, LoRASettings(**settings), seed=1), np.random.default_rng(0)
    for found in lora.adapted().values():
        b = found.adapter.lora_B
        b.data = rng.normal(scale=0.3, size=b.shape).astype(b.dtype)
    return model, lora


@pytest.mark.parametrize(("config", "targets"), [
    (DENSE, ("q_proj", "v_proj")), (DENSE, ("*_proj",)), (DENSE, ("layers.1.mixer.k_proj",)),
    (SPARSE, EXPERTS), (MIXTRAL, (*EXPERTS, "lm_head")), (OTHER, ("q_proj", "down_proj"))])
def test_round_trip(config: Any, targets: tuple[str, ...], tmp_path: Path) -> None:
    model, lora = adapted(config, r=3, alpha=5.0, dropout=0.0, targets=targets, rslora=True)
    peft.save(lora, tmp_path)
    other = model_of(config)
    back = peft.load(other, tmp_path)
    assert (back.settings.r, back.settings.alpha, back.settings.rslora) == (3, 5.0, True)
    assert list(back.named_parameters()) == list(lora.named_parameters())
    np.testing.assert_array_equal(other(IDS).numpy(), model(IDS).numpy())
    base = model_of(config)
    assert np.abs(base(IDS).numpy() - model(IDS).numpy()).max() > 1e-4


def test_names_and_fields(tmp_path: Path) -> None:
    """Those of PEFT: a layer's path in the Hugging Face model behind base_model.model."""
    _, lora = adapted(DENSE, r=3, alpha=5.0, dropout=0.25, targets=("q_proj", "layers.1.mixer.v_proj"))
    peft.save(lora, tmp_path, base="Qwen/Qwen3-0.6B")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    attention = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        attention.format(0, "q_proj", "A"): (3, 8), attention.format(0, "q_proj", "B"): (12, 3),
        attention.format(1, "q_proj", "A"): (3, 8), attention.format(1, "q_proj", "B"): (12, 3),
        attention.format(1, "v_proj", "A"): (3, 8), attention.format(1, "v_proj", "B"): (6, 3)}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 3,
        "inference_mode": True, "lora_alpha": 5.0, "lora_dropout": 0.25, "use_rslora": False,
        "target_modules": ["model.layers.1.self_attn.v_proj", "q_proj"], "modules_to_save": None,
        "init_lora_weights": True, "bias": "none", "fan_in_fan_out": False}


@pytest.mark.parametrize(("config", "names"), [
    (MIXTRAL, "model.layers.1.block_sparse_moe.experts.2.{}"), (SPARSE, "model.layers.1.mlp.experts.2.{}")])
def test_experts_one_by_one(config: Any, names: str, tmp_path: Path) -> None:
    _, lora = adapted(config, r=3, targets=EXPERTS)
    peft.save(lora, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    gate, up, down = ("w1", "w3", "w2") if config is MIXTRAL else ("gate_proj", "up_proj", "down_proj")

    def tensor(name: str, part: str) -> np.ndarray:
        return stored[f"base_model.model.{names.format(name)}.lora_{part}.weight"]

    both = [found for path, found in lora.adapted().items() if path.endswith("gate_up_proj")][1].adapter
    np.testing.assert_array_equal(tensor(gate, "A"), both.lora_A.numpy()[2])
    np.testing.assert_array_equal(tensor(up, "A"), both.lora_A.numpy()[2])
    np.testing.assert_array_equal(tensor(gate, "B"), both.lora_B.numpy()[2, :5])
    np.testing.assert_array_equal(tensor(up, "B"), both.lora_B.numpy()[2, 5:])
    assert tensor(down, "B").shape == (8, 3)


def test_what_is_trained_as_it_is(tmp_path: Path) -> None:
    model, lora = adapted(DENSE, train_also=("norm.weight", "embed_tokens.weight"))
    for name in ("norm.weight", "embed_tokens.weight"):
        parameter = model.named_parameters()[name]
        parameter.data = parameter.data * np.float32(1.5)
    peft.save(lora, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {"base_model.model.model.norm.weight", "base_model.model.model.embed_tokens.weight"} < set(stored)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "model.embed_tokens", "model.norm"]
    other = model_of(DENSE)
    peft.load(other, tmp_path)
    np.testing.assert_array_equal(other(IDS).numpy(), model(IDS).numpy())


@pytest.mark.parametrize("config", [DENSE, MIXTRAL], ids=["Qwen3", "Mixtral"])
def test_a_model_with_adapters_is_not_saved_without_them(config: Any, tmp_path: Path) -> None:
    model, lora = adapted(config)
    with pytest.raises(InputError, match=r"adapter\.lora_A: has no name in this layout; adapters are merged"):
        model.save_pretrained(tmp_path)
    expected = model(IDS).numpy()
    lora.merge()
    lora.remove()
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(type(model).from_pretrained(tmp_path)(IDS).numpy(), expected, atol=1e-6)


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_dora": True}, "use_dora is True"), ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"), ({"bias": "all"}, "bias is 'all'"),
    ({"r": 5}, r"q_proj\.lora_A: shape \[3, 8\], expected \[5, 8\]")])
def test_fields_that_mean_something_else_are_refused(changes: dict[str, Any], message: str,
                                                     tmp_path: Path) -> None:
    _, lora = adapted(DENSE, r=3)
    peft.save(lora, tmp_path)
    edited(tmp_path, **changes)
    model = model_of(DENSE)
    names = list(model.named_parameters())
    with pytest.raises(InputError, match=message):
        peft.load(model, tmp_path)
    assert list(model.named_parameters()) == names            # nothing is left behind


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    _, lora = adapted(SPARSE, targets=EXPERTS)
    peft.save(lora, tmp_path)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.experts\.0\.\w+_proj' is no linear layer"):
        peft.load(model_of(DENSE), tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (("w1.lora_A", None), "w1: has lora_B, and not lora_A and lora_B"),
    (("w1.lora_A", 1.0), "w1 and .*w3 differ")])
def test_damaged_adapters_are_refused(change: tuple[str, Any], message: str, tmp_path: Path) -> None:
    _, lora = adapted(MIXTRAL, targets=EXPERTS)
    peft.save(lora, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = f"base_model.model.model.layers.0.block_sparse_moe.experts.1.{change[0]}.weight"
    if change[1] is None:
        del tensors[name]
    else:
        tensors[name] = tensors[name] + np.float32(change[1])
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        peft.load(model_of(MIXTRAL), tmp_path)
