"""Formulas against what is there: parameters counted in the model, multiply-adds counted as they happen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, flops
from nn.backends.reference import moe
from nn.errors import InputError
from nn.layers.rotary import RopeScaling
from nn.models import PRESETS
from nn.models.presets import MOE_6_9B, TINY

SMALL = MoETransformerConfig(vocab_size=31, hidden_size=16, num_layers=3, num_heads=4, num_kv_heads=2,
                             head_dim=6, intermediate_size=10, num_experts=4, top_k=2, max_seq_len=64)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {}, "multi-head": {"num_kv_heads": 4}, "multi-query": {"num_kv_heads": 1},
    "qk-norm": {"qk_norm": True}, "biases": {"attention_bias": True}, "layernorm": {"norm": "layernorm"},
    "tied": {"tie_embeddings": True}, "dense": {"num_experts": 0},
    "dense gelu": {"num_experts": 0, "ffn": "gelu"}, "one expert": {"num_experts": 1, "top_k": 1},
    "every expert": {"top_k": 4}, "window": {"sliding_window": 5}, "one layer": {"num_layers": 1},
    "everything": {"qk_norm": True, "attention_bias": True, "norm": "layernorm", "tie_embeddings": True,
                   "num_kv_heads": 1}}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config = SMALL.replace(**VARIANTS[name])
    model = MoETransformer(config)
    assert sum(flops.parameters(config).values()) == model.num_parameters()
    assert sum(p.data.size for p in model.parameters()) == model.num_parameters()


@pytest.mark.parametrize("name", VARIANTS)
def test_active_parameters_are_those_a_token_meets(name: str) -> None:
    """Everything, less the experts that it does not visit."""
    config = SMALL.replace(**VARIANTS[name])
    model = MoETransformer(config)
    shapes = {name: p.shape for name, p in model.named_parameters().items() if ".experts." in name}
    idle = sum((shape[0] - config.top_k) * shape[1] * shape[2] for shape in shapes.values())
    assert model.num_parameters(active=True) == model.num_parameters() - idle


@contextmanager
def counted() -> Iterator[list[int]]:
    """Multiply-adds of every matrix product that NumPy does inside the block, in real size."""
    sizes: list[int] = []
    real = np.matmul

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = real(a, b)
        sizes.append(y.size * a.shape[-1])
        return y

    np.matmul = matmul
    try:
        yield sizes
    finally:
        np.matmul = real


# a block computes more than it needs
COUNTED = {name: changes for name, changes in VARIANTS.items() if name != "window"}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("length", [1, 7])
def test_flops_are_those_of_the_products(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference forms all scores of a block, T² instead of the T (T + 1) / 2 that the formula counts, and
    fills experts' groups up to whole tiles, here of one row."""
    monkeypatch.setattr(moe, "TILE", 1)
    config = SMALL.replace(**COUNTED[name])
    model = MoETransformer(config, dtype="float64")
    ids = np.arange(2 * length).reshape(2, length)
    with counted() as sizes:
        model.loss(ids, ids)
    per_token = 2 * sum(sizes) / ids.size
    formula = flops.breakdown(config, length)
    head = formula["head"]    # the loss forms its gradients too: two more products
    core = formula["attention_core"] / flops.mean_context(length) * length
    assert per_token == sum(formula.values()) + 2 * head + core - formula["attention_core"]


def test_each_component() -> None:
    assert flops.breakdown(SMALL, 9) == {
        "attention_projections": 3 * 2 * 16 * (24 + 12 + 12 + 24), "attention_core": 3 * 2 * 2 * 24 * 5,
        "router": 3 * 2 * 16 * 4, "feed_forward": 3 * 2 * 2 * 3 * 16 * 10, "head": 2 * 16 * 31}


@pytest.mark.parametrize(("length", "window"), [(1, 0), (2, 0), (9, 0), (9, 1), (9, 3), (9, 8), (9, 9),
                                                (9, 20), (50, 7)])
def test_mean_context_counts_visible_keys(length: int, window: int) -> None:
    visible = [min(t + 1, window) if window else t + 1 for t in range(length)]
    assert flops.mean_context(length, window) == pytest.approx(sum(visible) / length, rel=1e-15)


def test_doubling_the_context_adds_only_to_the_core() -> None:
    once, twice = flops.breakdown(TINY, 512), flops.breakdown(TINY, 1024)
    assert {name for name in once if once[name] != twice[name]} == {"attention_core"}
    assert twice["attention_core"] - once["attention_core"] == TINY.num_layers * 4 * TINY.hidden_size * 256


def test_training_costs_three_times_the_forward_pass() -> None:
    model = MoETransformer(SMALL)
    assert model.flops(9, training=True) == 3 * model.flops(9) == 3 * sum(flops.breakdown(SMALL, 9).values())


def test_tiny() -> None:
    model = MoETransformer.tiny()
    assert model.config == TINY == PRESETS["tiny"]
    assert model.num_parameters() == 542_528
    assert model.num_parameters(active=True) == 345_920


def test_the_large_model_is_described_without_being_built() -> None:
    import tracemalloc
    tracemalloc.start()
    model = MoETransformer.moe_6_9b()
    total, active, forward = model.num_parameters(), model.num_parameters(active=True), model.flops(2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (total, active, forward) == (6_882_678_528, 1_786_599_168, 3_618_370_560)
    assert peak < 2_000_000
    assert not any(p.allocated for p in model.parameters())
    assert model.config == MOE_6_9B
    assert all(p.dtype.name == "bfloat16" for p in model.parameters())
    assert MOE_6_9B.rope_scaling == RopeScaling("ntk", 8.0, 32768)


def test_the_large_model_in_parts() -> None:
    per_layer = {name: value / 30 for name, value in flops.breakdown(MOE_6_9B, 2048).items()}
    assert per_layer["attention_projections"] == 2_555_904
    assert per_layer["attention_core"] == 3_147_264
    assert per_layer["router"] + per_layer["feed_forward"] == 113_270_784
    assert flops.breakdown(MOE_6_9B, 2048)["head"] == 49_152_000
    tied = MOE_6_9B.replace(tie_embeddings=True)
    assert sum(flops.parameters(tied).values()) == 6_858_102_528
    assert sum(flops.parameters(tied, active=True).values()) == 1_762_023_168


@pytest.mark.parametrize(("changes", "total", "active"), [
    ({"vocab_size": 151936, "hidden_size": 1024, "num_layers": 28, "num_heads": 16, "num_kv_heads": 8,
      "head_dim": 128, "intermediate_size": 3072, "num_experts": 0, "qk_norm": True, "tie_embeddings": True},
     596_049_920, 596_049_920),
    ({"vocab_size": 32000, "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8,
      "head_dim": 128, "intermediate_size": 14336, "num_experts": 8, "top_k": 2},
     46_702_792_704, 12_879_925_248),
    ({"vocab_size": 151936, "hidden_size": 2048, "num_layers": 48, "num_heads": 32, "num_kv_heads": 4,
      "head_dim": 128, "intermediate_size": 768, "num_experts": 128, "top_k": 8, "qk_norm": True},
     30_532_122_624, 3_353_032_704)],
    ids=["Qwen3-0.6B", "Mixtral-8x7B", "Qwen3-30B-A3B"])
def test_published_models(changes: dict[str, Any], total: int, active: int) -> None:
    config = MoETransformerConfig(**changes)
    assert sum(flops.parameters(config).values()) == total
    assert sum(flops.parameters(config, active=True).values()) == active


def test_flops_of_a_published_model() -> None:
    config = MoETransformerConfig(vocab_size=151936, hidden_size=1024, num_layers=28, num_heads=16,
                                  num_kv_heads=8, head_dim=128, intermediate_size=3072, num_experts=0,
                                  qk_norm=True, tie_embeddings=True)
    parts = flops.breakdown(config, 2048)
    assert [parts[name] / 28 for name in ("attention_projections", "attention_core", "feed_forward")] == [
        12_582_912, 8_392_704, 18_874_368]
    assert (parts["head"], sum(parts.values())) == (311_164_928, 1_426_964_480)


def test_lengths_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="seq_len: 0 is not positive"):
        flops.breakdown(TINY, 0)
    with pytest.raises(InputError, match="past: -1 is negative"):
        flops.decoding(TINY, -1)
