"""Packed models: what they compute against the model whose weights were rounded the same way, their files,
and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.generate import SamplingConfig, generate_batch
from nn.layers.packed.file import load, save
from nn.models import MoETransformerConfig, from_config
from nn.packed import PackedWeight
from nn.tape import no_grad

SIZES: dict[str, Any] = {"vocab_size": 96, "num_layers": 2, "max_seq_len": 64}
MODELS = {
    "experts": MoETransformerConfig(hidden_size=64, num_heads=4, num_kv_heads=1, head_dim=16, qk_norm=True,
                                    intermediate_size=32, num_experts=4, top_k=2, **SIZES),
    "dense": MoETransformerConfig(hidden_size=96, num_heads=6, num_kv_heads=2, head_dim=16, num_experts=0,
                                  intermediate_size=160, tie_embeddings=True, **SIZES),
    "odd": MoETransformerConfig(hidden_size=30, num_heads=2, num_kv_heads=1, head_dim=14, num_experts=0,
                                intermediate_size=45, **SIZES)}
# largest difference, of the largest logit; 8 bits of activations: measured 2e-3 to 6e-3
LIMITS = {"f32": 2e-6, "bf16": 2e-6, "q8_0": 2e-2, "q4_0": 2e-2}
IDS = np.random.default_rng(3).integers(0, 96, (2, 21))


def rounded(model: Any, form: str) -> Any:
    """The model with its large weights packed and unpacked; the embedding only as the head"""
    for name, parameter in model.named_parameters().items():
        if not any(word in name for word in ("norm", "router", "embed")):
            parameter.data = PackedWeight.pack(parameter.data, form).unpack()
    return model


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("name", ["experts", "dense"])
def test_equals_the_model_of_rounded_weights(name: str, form: str) -> None:
    model = from_config(MODELS[name].replace(tie_embeddings=False)).eval()
    packed, plain = model.pack(form), rounded(from_config(model.config).eval(), form)
    with no_grad():
        expected, got = plain(IDS).numpy(), packed(IDS).numpy()
    assert np.abs(got - expected).max() <= LIMITS[form] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", LIMITS)
def test_goes_on_behind_a_cache(name: str, form: str, dtype: str) -> None:
    packed = from_config(MODELS[name], dtype=dtype).pack(form)
    with no_grad():
        whole = packed(IDS).numpy().astype(np.float32)
    cache = packed.init_state(2)
    pieces = [IDS[:, :15], *(IDS[:, i : i + 1] for i in range(15, 21))]
    parts = [packed(piece, cache=cache) for piece in pieces]
    found = np.concatenate([part.numpy().astype(np.float32) for part in parts], axis=1)
    limit = max(LIMITS[form], 2e-2 if dtype == "bfloat16" else 0.0)
    assert np.abs(found - whole).max() <= limit * np.abs(whole).max()


def test_generates_what_the_model_does() -> None:
    for config in (MODELS["dense"], MODELS["experts"]):
        model = from_config(config).eval()
        sampling = SamplingConfig(max_tokens=12, temperature=0.0)
        prompts = [list(IDS[0, :5]), list(IDS[1, :5])]
        expected = generate_batch(model, prompts, sampling)
        assert generate_batch(model.pack("f32"), prompts, sampling) == expected


@pytest.mark.parametrize("form", LIMITS)
def test_a_file_gives_the_same_bits(form: str, tmp_path: Path) -> None:
    model = from_config(MODELS["experts"], dtype="bfloat16")
    save(model, tmp_path / "model.packed", form)
    again = load(from_config(MODELS["experts"], seed=5, dtype="bfloat16"), tmp_path / "model.packed")
    with no_grad():
        assert np.array_equal(again(IDS).numpy(), model.pack(form)(IDS).numpy())
    with pytest.raises(InputError, match="has no|has \\[|the model has"):
        load(from_config(MODELS["dense"]), tmp_path / "model.packed")


def test_nothing_is_drawn_to_load(tmp_path: Path) -> None:
    save(from_config(MODELS["experts"]), tmp_path / "model.packed", "bf16")
    fresh = from_config(MODELS["experts"])
    load(fresh, tmp_path / "model.packed")
    drawn = [n for n, p in fresh.named_parameters().items() if p.allocated and "norm" not in n]
    assert set(drawn) <= {"embed_tokens.weight", *(n for n in drawn if "router" in n)}


def test_training_is_refused() -> None:
    packed = from_config(MODELS["dense"]).pack("bf16")
    loss, _ = packed.loss(IDS[:, :-1], IDS[:, 1:])
    with pytest.raises(RuntimeError, match="inference"):
        loss.backward()
    with pytest.raises(InputError, match="packed"):
        packed.state_dict()
    with pytest.raises(InputError, match="packed already"):
        packed.pack("q8_0")


def test_the_model_it_was_made_of_stays() -> None:
    model = from_config(MODELS["dense"]).eval()
    with no_grad():
        before = model(IDS).numpy().copy()
        model.pack("q4_0")
        assert np.array_equal(model(IDS).numpy(), before)
    assert model.state_dict()
