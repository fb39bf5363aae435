"""Adapters written here, put on Transformers' model: by a plain PyTorch formula, and by PEFT.  The same
logits, and the same gradients of every A and B."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from nn.interop import peft as ours
from nn.layers.lora import LoRA, LoRASettings
from nn.models.qwen3 import QWEN3_0_6B, Qwen3
from tests.oracle import hugging_face
from tests.oracle.compare import assert_close, error, tokens

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "max_seq_len": 64}
CONFIG = QWEN3_0_6B.replace(**SIZES, init_std=0.2, options={
    "full_attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "qk_norm": "head"},
    "swiglu": {"intermediate_size": 24}})
TARGETS = ("q_proj", "v_proj", "down_proj")


def adapted(folder: Path, **settings: Any) -> tuple[Qwen3, LoRA]:
    """A model and its adapters, both in the folder."""
    model = Qwen3(CONFIG, seed=1)
    model.save_pretrained(folder / "model")
    lora = LoRA(model, LoRASettings(r=3, alpha=5.0, targets=TARGETS, **settings))
    rng = np.random.default_rng(0)
    for found in lora.adapted().values():
        b = found.adapter.lora_B
        b.data = rng.normal(scale=0.3, size=b.shape).astype(b.dtype)
    ours.save(lora, folder / "adapter")
    return model, lora


def file_name(name: str) -> str:
    """Of an adapter's parameter here, in PEFT's file; independent of nn/interop."""
    for one, other in (("body.", ""), (".mixer.", ".self_attn."), ("feed_forward.ffn", "mlp"),
                       (".adapter.", ".")):
        name = name.replace(one, other)
    return f"base_model.model.model.{name}.weight"


def gradients(model: Qwen3, lora: LoRA) -> dict[str, np.ndarray]:
    ids, targets = tokens(61)
    model.loss(ids, targets)[0].backward()
    return {file_name(name): p.grad for name, p in lora.named_parameters().items()}


class Corrected(torch.nn.Module):
    """W + γ B A"""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, factor: float) -> None:
        super().__init__()
        self.a, self.b, self.factor = torch.nn.Parameter(a), torch.nn.Parameter(b), factor

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.factor * (self.b @ self.a)


@pytest.mark.parametrize("rslora", [False, True])
def test_plain_pytorch(rslora: bool, tmp_path: Path) -> None:
    model, lora = adapted(tmp_path, rslora=rslora)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    corrections = {}
    for name in [name for name in stored if "lora_A" in name]:
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        corrected = Corrected(stored[name], stored[name.replace("lora_A", "lora_B")],
                              5.0 / (math.sqrt(3) if rslora else 3))
        parametrize.register_parametrization(theirs.get_submodule(path), "weight", corrected)
        corrections |= {name: corrected.a, name.replace("lora_A", "lora_B"): corrected.b}
    ids, targets = tokens(61)
    result = hugging_face.cross_entropy(theirs, ids, targets)
    result.loss.backward()
    assert error(model(ids).numpy(), result.logits.detach()) < 1e-5
    assert_close(gradients(model, lora), {name: p.grad.numpy() for name, p in corrections.items()}, 1e-5)


def test_peft_reads_it(tmp_path: Path) -> None:
    model, lora = adapted(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    ids, targets = tokens(61)
    result = hugging_face.cross_entropy(theirs, ids, targets)
    result.loss.backward()
    assert error(model(ids).numpy(), result.logits.detach()) < 1e-5
    found = {name.replace(".default", ""): p.grad.numpy() for name, p in theirs.named_parameters()
             if "lora_" in name}
    assert_close(gradients(model, lora), found, 1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_reads_what_peft_writes(rslora: bool, tmp_path: Path) -> None:
    Qwen3(CONFIG, seed=1).save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["k_proj", "up_proj"], use_rslora=rslora, init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "adapter")
    model = Qwen3.from_pretrained(tmp_path / "model")
    ours.load(model, tmp_path / "adapter")
    ids, _ = tokens(61)
    with torch.no_grad():
        assert error(model(ids).numpy(), theirs(torch.tensor(ids)).logits) < 1e-5
